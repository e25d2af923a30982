"""Seeded defects in Python functions: one small edit that changes what a function does.

The text is edited in place and never printed from a syntax tree, so everything else stays as it was written. The kinds
are those of mutation testing (DeMillo, Lipton and Sayward, Computer 11, 1978):

- operator: a comparison, arithmetic or boolean operator is exchanged: `<` becomes `<=`, `and` becomes `or`.
- off_by_one: an integer is one too large or too small.
- constant: True becomes False, or False becomes True.
- variable: another argument or variable of the function is read.
- condition: the condition of `if` or `while` is negated.
- return: the value of a call is computed, but not returned.

The defects are synthetic. A few of them change nothing that a caller can observe. No code is run.
"""

from __future__ import annotations

import ast
import itertools
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np

from fedpeft.data.python_functions import Definition, SourceFile

KINDS = ("operator", "off_by_one", "constant", "variable", "condition", "return")
"""All kinds of defects."""

OPERATORS = {
    "<": "<=", "<=": "<", ">": ">=", ">=": ">", "==": "!=", "!=": "==", "in": "not in", "not in": "in",
    "is": "is not", "is not": "is", "and": "or", "or": "and", "+": "-", "-": "+", "*": "/", "/": "*", "//": "/",
    "%": "//",
}  # fmt: skip
"""Each operator with the one that takes its place."""

SYNTHETIC = "synthetic: the defects are seeded mutations"
"""Note about datasets with planted defects."""

TEXTS = (ast.JoinedStr, ast.List, ast.Tuple, ast.ListComp)
"""Operands of `+`, `*` and `%` that are not numbers."""


@dataclass(frozen=True)
class Edit:
    """A replacement of characters `start` to `end` of a text by `new`; `kind` is one of `KINDS`."""

    start: int
    end: int
    new: str
    kind: str


@dataclass(frozen=True)
class Defect:
    """A function with a defect.

    Attributes:
        text: the defective function.
        edit: what was changed; `start` to `start + len(new)` are characters of `text`.
        line: line of the edit, from 0, in the original and in `text`.
    """

    text: str
    edit: Edit
    line: int


def plant_defect(text: str, random: np.random.Generator) -> Defect | None:
    """Return the function with one defect, or None if none of `KINDS` fits.

    The kind is drawn first, evenly among those that fit, and then the place. The same generator gives the same defect.

    Args:
        text: source of one function, in ASCII.
        random: decides kind and place.
    """
    file = SourceFile.parse(text)
    if file is None or len(file.tree.body) != 1 or not isinstance(file.tree.body[0], Definition):
        return None
    edits = sorted(set(find_edits(file, file.tree.body[0])), key=lambda e: (KINDS.index(e.kind), e.start, e.new))
    groups = [list(group) for _, group in itertools.groupby(edits, key=lambda edit: edit.kind)]
    while groups:
        group = groups[int(random.integers(len(groups)))]
        edit = group.pop(int(random.integers(len(group))))
        groups = [group for group in groups if group]
        changed = file.source[: edit.start] + edit.new + file.source[edit.end :]
        if not is_equal_code(changed, file.source):
            return Defect(changed, edit, file.source.count("\n", 0, edit.start))
    return None


def is_equal_code(one: str, other: str) -> bool:
    """Return whether two texts are Python with the same syntax tree; true if one of them is not Python."""
    try:
        return ast.dump(ast.parse(one)) == ast.dump(ast.parse(other))
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return True


def find_edits(file: SourceFile, function: Definition) -> Iterator[Edit]:
    """Yield all edits of a function's body, in no particular order."""
    declared = {node.arg: 0 for node in ast.walk(function.args) if isinstance(node, ast.arg)}
    for node in _walk(function.body):
        if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            declared.setdefault(node.id, node.lineno)
    for unread in ("self", "cls", "_"):
        declared.pop(unread, None)
    places = _Places(file, declared)
    for node in _walk(function.body):
        for finder in FINDERS:
            yield from finder(places, node)


def _walk(nodes: list[ast.stmt]) -> Iterator[ast.AST]:
    """Yield the nodes below statements, without annotations and format strings.

    Versions of Python disagree about positions in format strings.
    """
    waiting: list[ast.AST] = list(nodes)
    while waiting:
        node = waiting.pop()
        yield node
        skipped = ("annotation", "returns", "type_comment", "type_params")
        for name, value in ast.iter_fields(node):
            if name not in skipped and not isinstance(node, ast.JoinedStr):
                waiting += [inner for inner in (value if isinstance(value, list) else [value]) if _is_node(inner)]


def _is_node(value: object) -> bool:
    return isinstance(value, ast.AST)


@dataclass(frozen=True)
class _Places:
    """Positions of a function's parts, and the lines from which its variables exist."""

    file: SourceFile
    declared: dict[str, int]

    def get_span(self, node: ast.expr | ast.stmt) -> tuple[int, int]:
        at = self.file.get_position
        return at(node.lineno, node.col_offset), at(node.end_lineno, node.end_col_offset)

    def exchange_operator(self, left: ast.expr, right: ast.expr) -> Iterator[Edit]:
        """Yield the edit of the operator between two operands, unless there are parentheses."""
        start, end = self.get_span(left)[1], self.get_span(right)[0]
        between = self.file.source[start:end]
        if (new := OPERATORS.get(between.strip())) is not None:
            start += len(between) - len(between.lstrip())
            yield Edit(start, start + len(between.strip()), new, "operator")


def _find_operator(places: _Places, node: ast.AST) -> Iterator[Edit]:
    match node:
        case ast.Compare(left=left, comparators=[right]):
            yield from places.exchange_operator(left, right)
        case ast.BinOp(left=left, right=right) if not (_is_text(left) or _is_text(right)):
            yield from places.exchange_operator(left, right)
        case ast.BoolOp(values=[first, second, *_]):
            yield from places.exchange_operator(first, second)


def _is_text(node: ast.expr) -> bool:
    if isinstance(node, ast.BinOp):
        return _is_text(node.left) or _is_text(node.right)
    return isinstance(node, TEXTS) or (isinstance(node, ast.Constant) and isinstance(node.value, str | bytes))


def _find_constant(places: _Places, node: ast.AST) -> Iterator[Edit]:
    if isinstance(node, ast.Constant) and isinstance(node.value, bool):
        yield Edit(*places.get_span(node), str(not node.value), "constant")
    elif isinstance(node, ast.Constant) and isinstance(node.value, int):
        for value in (node.value - 1, node.value + 1):
            if value >= 0:
                yield Edit(*places.get_span(node), str(value), "off_by_one")


def _find_variable(places: _Places, node: ast.AST) -> Iterator[Edit]:
    if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Load) and node.id in places.declared:
        for other, line in places.declared.items():
            if other != node.id and line < node.lineno:
                yield Edit(*places.get_span(node), other, "variable")


def _find_condition(places: _Places, node: ast.AST) -> Iterator[Edit]:
    if not isinstance(node, ast.If | ast.While):
        return
    start = places.get_span(node.test)[0]
    match node.test:
        case ast.UnaryOp(op=ast.Not(), operand=operand):
            yield Edit(start, places.get_span(operand)[0], "", "condition")
        case ast.Name() | ast.Attribute() | ast.Call():
            yield Edit(start, start, "not ", "condition")


def _find_return(places: _Places, node: ast.AST) -> Iterator[Edit]:
    if isinstance(node, ast.Return) and isinstance(node.value, ast.Call):
        start, value = places.get_span(node)[0], places.get_span(node.value)[0]
        if places.file.source[start:value] == "return ":
            yield Edit(start, value, "", "return")


FINDERS: tuple[Callable[[_Places, ast.AST], Iterator[Edit]], ...] = (
    _find_operator,
    _find_constant,
    _find_variable,
    _find_condition,
    _find_return,
)
"""Functions that yield the edits of one node."""

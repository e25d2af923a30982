"""Clones of Python functions: renamed local names, reordered independent statements, and rewritten statements.

The first two are the second and third type of clones of Roy, Cordy and Koschke (Science of Computer Programming 74,
2009). The
text is edited in place and never printed from a syntax tree, so everything else stays as it was written.

Renamed are the function, its arguments and its local variables. Attributes, inner functions, imports, handled
exceptions and names inside format strings keep their names. A new name may come from another function, so that a model
that reads names alone mistakes the clone for that function.

Two consecutive assignments change places if neither reads or writes what the other writes and neither calls anything.

Rewritten are comparisons (`a < b`, `b > a`), counters (`a += 1`, `a = a + 1`), conditional results (`return a if c else
b` as two statements) and the branches of `if` with `else`. For numbers, texts and containers, the result is the same.
No code is run.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator, Sequence

import numpy as np

from fedpeft.data.python_functions import Definition, SourceFile

STEMS = ("alpha", "batch", "cell", "delta", "entry", "field", "group", "handle", "item", "joint", "kind", "lower")
"""Stems of new names, completed by a number, for when `names` are used up."""

Span = tuple[int, int]
"""Line number, from 1, and column in characters."""

CALLS = (ast.Call, ast.Await, ast.Yield, ast.YieldFrom, ast.NamedExpr)


def clone(text: str, random: np.random.Generator, names: Sequence[str] = ()) -> str | None:
    """Return a clone of the function in `text`, or None if it can't be cloned.

    A clone needs one function with at least one argument or variable to rename. The same generator gives the same
    clone.

    Args:
        text: source of the function, in ASCII.
        random: decides names and order.
        names: preferred new names; those that occur in the text are skipped.
    """
    function = _parse_function(text)
    if function is None or not _find_changed_names(function).keys() - {function.name}:
        return None
    changed = rename_variables(text, function, random, names)
    return None if changed is None else reorder_assignments(changed, random)


def _parse_function(text: str) -> Definition | None:
    try:
        tree = ast.parse(text)
    except (SyntaxError, ValueError, RecursionError):
        return None
    first = tree.body[0] if len(tree.body) == 1 else None
    return first if isinstance(first, ast.FunctionDef | ast.AsyncFunctionDef) else None


def find_own_names(text: str) -> list[str]:
    """Return the names that a clone changes, sorted; empty if `text` is not a single function."""
    function = _parse_function(text)
    return [] if function is None else sorted(_find_changed_names(function))


def _find_changed_names(function: Definition) -> dict[str, list[Span]]:
    """Return the names that a clone changes, each with its places."""
    kept = _find_kept_names(function) | {"self", "cls", "_"}
    return {name: found for name, found in _find_places(function).items() if name not in kept}


def rename_variables(text: str, function: Definition, random: np.random.Generator, names: Sequence[str]) -> str | None:
    """Return `text` with new names, or None if a place of the syntax tree does not show the name in the text."""
    places = _find_changed_names(function)
    taken = set(re.findall(r"\w+", text))
    free = [name for name in names if name not in taken]
    free = [free[i] for i in random.permutation(len(free)).tolist()]
    free += [name for number in range(len(places)) for stem in STEMS if (name := f"{stem}_{number}") not in taken]
    new = dict(zip(sorted(places), free, strict=False))
    lines = text.split("\n")
    spots = [(line, column, name) for name, found in places.items() for line, column in found]
    for line, column, name in sorted(spots, reverse=True):
        row = lines[line - 1]
        if row[column : column + len(name)] != name:  # the tree does not belong to this text
            return None
        lines[line - 1] = row[:column] + new[name] + row[column + len(name) :]
    return "\n".join(lines)


def _find_places(function: Definition) -> dict[str, list[Span]]:
    """Return the places of the function's name, its arguments and its assigned variables."""
    local = {function.name}
    before = len("async def " if isinstance(function, ast.AsyncFunctionDef) else "def ")
    found: dict[str, list[Span]] = {function.name: [(function.lineno, function.col_offset + before)]}
    for node in ast.walk(function):
        if isinstance(node, ast.arg):
            local.add(node.arg)
            found.setdefault(node.arg, []).append((node.lineno, node.col_offset))
        elif isinstance(node, ast.Name):
            found.setdefault(node.id, []).append((node.lineno, node.col_offset))
            if isinstance(node.ctx, ast.Store):
                local.add(node.id)
    return {name: places for name, places in found.items() if name in local}


def _find_kept_names(function: Definition) -> set[str]:
    """Return names that can't be renamed safely.

    These occur in format strings, imports, exception handlers, patterns, global statements or the bodies of classes, or
    name inner functions and classes. Arguments are kept that a call gives by name, and so is the name of a method whose
    body has it, too: there, it means something else.
    """
    nodes = list(ast.walk(function))
    kept = _find_given_names(function, nodes)
    first = [given.arg for given in (*function.args.posonlyargs, *function.args.args)][:1]
    if first in (["self"], ["cls"]) and any(isinstance(node, ast.Name) and node.id == function.name for node in nodes):
        kept.add(function.name)
    for node in nodes:
        kept |= _find_bound_names(node) if node is not function else set()
    return kept


def _find_bound_names(node: ast.AST) -> set[str]:
    """Return the names that a statement or pattern binds, or whose text stands in it, so that they must stay."""
    match node:
        case ast.JoinedStr():
            return {inner.id for inner in ast.walk(node) if isinstance(inner, ast.Name)}
        case ast.Global(names=names) | ast.Nonlocal(names=names):
            return set(names)
        case ast.alias(name=name, asname=other):
            return {other or name.partition(".")[0]}
        case ast.ExceptHandler(name=str(name)) | ast.MatchAs(name=str(name)) | ast.MatchStar(name=str(name)):
            return {name}
        case ast.MatchMapping(rest=str(name)):
            return {name}
        case ast.ClassDef(name=name):
            return {name, *(n.id for n in ast.walk(node) if isinstance(n, ast.Name) and isinstance(n.ctx, ast.Store))}
        case ast.FunctionDef(name=name) | ast.AsyncFunctionDef(name=name):
            return {name}
    return set()


def _find_given_names(function: Definition, nodes: Sequence[ast.AST]) -> set[str]:
    """Return the names of arguments that a call gives by name, to the function itself or to an inner one."""
    inner = [node for node in nodes if isinstance(node, Definition | ast.Lambda) and node is not function]
    arguments = {given.arg for node in inner for given in ast.walk(node.args) if isinstance(given, ast.arg)}
    found = arguments & {node.arg for node in nodes if isinstance(node, ast.keyword)}
    for node in nodes:
        match node:
            case ast.Call(func=ast.Name(id=called) | ast.Attribute(attr=called), keywords=named):
                found |= {given.arg for given in named if given.arg is not None and called == function.name}
    return found


def reorder_assignments(text: str, random: np.random.Generator) -> str:
    """Return `text` with some consecutive independent assignments exchanged, each pair with probability 1/2."""
    function = _parse_function(text)
    if function is None:
        return text
    lines = text.split("\n")
    for body in _list_bodies(function):
        at = 0
        while at + 1 < len(body):
            first, second = body[at], body[at + 1]
            if is_independent(first, second) and _is_alone(first, second, lines) and random.random() < 0.5:
                start, middle, end = first.lineno - 1, second.lineno - 1, second.end_lineno
                lines[start:end] = lines[middle:end] + lines[start:middle]
                at += 1  # each statement moves once
            at += 1
    return "\n".join(lines)


def _list_bodies(function: Definition) -> list[list[ast.stmt]]:
    """Return all lists of statements, innermost last; a statement moves only within its own list."""
    parts = ("body", "orelse", "finalbody")
    return [
        body for node in ast.walk(function) for name in parts if isinstance(body := getattr(node, name, None), list)
    ]


def _is_alone(first: ast.stmt, second: ast.stmt, lines: list[str]) -> bool:
    """Return whether two consecutive statements share their lines with nothing else."""
    if first.end_lineno is None or second.end_lineno is None or second.lineno != first.end_lineno + 1:
        return False
    return all(
        not lines[s.lineno - 1][: s.col_offset].strip() and not lines[s.end_lineno - 1][s.end_col_offset :].strip()  # type: ignore[operator]
        for s in (first, second)
    )


def is_independent(first: ast.stmt, second: ast.stmt) -> bool:
    """Return whether both statements assign to plain names and give the same result in either order."""
    if not all(isinstance(s, ast.Assign | ast.AnnAssign) for s in (first, second)):
        return False
    if any(isinstance(node, CALLS) for s in (first, second) for node in ast.walk(s)):
        return False
    targets = [t for s in (first, second) for t in (s.targets if isinstance(s, ast.Assign) else [s.target])]  # type: ignore[attr-defined]
    if not all(isinstance(target, ast.Name) for target in targets):
        return False
    written, read = zip(*map(_collect_names, (first, second)), strict=True)
    return not (written[0] & (written[1] | read[1]) or written[1] & read[0])


def _collect_names(statement: ast.stmt) -> tuple[set[str], set[str]]:
    """Return the names that a statement writes, and those that it reads."""
    names = [node for node in ast.walk(statement) if isinstance(node, ast.Name)]
    written = {node.id for node in names if isinstance(node.ctx, ast.Store)}
    return written, {node.id for node in names if isinstance(node.ctx, ast.Load)}


FLIPPED = {"<": ">", ">": "<", "<=": ">=", ">=": "<=", "==": "==", "!=": "!="}
"""Comparison operators, with those for exchanged operands."""

OPPOSITE = {
    "<": ">=", ">=": "<", ">": "<=", "<=": ">", "==": "!=", "!=": "==", "in": "not in", "not in": "in", "is": "is not",
    "is not": "is",
}  # fmt: skip
"""Comparison operators, with those of the negated comparison."""

Edit = tuple[int, int, str]
"""First and last position of a text, and what replaces it."""


def rewrite_statements(text: str, random: np.random.Generator) -> str | None:
    """Return the function with at least one rewritten statement or comparison, or None if none can be rewritten.

    Each one that can be rewritten is, with probability 1/2. The same generator gives the same text.
    """
    file = SourceFile.parse(text)
    if file is None or len(file.tree.body) != 1:
        return None
    rewriter = _Rewriter(file)
    edits = sorted(edit for node in ast.walk(file.tree) for edit in rewriter.find_edits(node))
    chosen: list[Edit] = []
    for place in random.permutation(len(edits)).tolist():
        first, last, _ = edits[place]
        is_free = all(last <= start or first >= end for start, end, _ in chosen)
        if is_free and (not chosen or random.random() < 0.5):
            chosen.append(edits[place])
    changed = file.source
    for first, last, new in sorted(chosen, reverse=True):
        changed = changed[:first] + new + changed[last:]
    return changed if chosen and _parse_function(changed) is not None else None


class _Rewriter:
    """Edits that rewrite parts of a file."""

    def __init__(self, file: SourceFile) -> None:
        self.file = file

    def get_span(self, node: ast.expr | ast.stmt) -> tuple[int, int]:
        at = self.file.get_position
        return at(node.lineno, node.col_offset), at(node.end_lineno, node.end_col_offset)

    def get_text(self, node: ast.expr | ast.stmt) -> str:
        first, last = self.get_span(node)
        return self.file.source[first:last]

    def get_operator(self, left: ast.expr, right: ast.expr) -> str:
        """Return the text between two operands; it contains more than an operator if there are parentheses."""
        return self.file.source[self.get_span(left)[1] : self.get_span(right)[0]].strip()

    def find_edits(self, node: ast.AST) -> Iterator[Edit]:
        """Yield the edits of one node."""
        match node:
            case ast.Compare(left=left, comparators=[right]) if _is_simple(left) and _is_simple(right):
                operator = FLIPPED.get(self.get_operator(left, right))
                if operator is not None:
                    yield *self.get_span(node), f"{self.get_text(right)} {operator} {self.get_text(left)}"
            case ast.AugAssign(target=ast.Name(id=name), op=ast.Add() | ast.Sub(), value=ast.Constant(value=int())):
                sign = "+" if isinstance(node.op, ast.Add) else "-"
                yield *self.get_span(node), f"{name} = {name} {sign} {self.get_text(node.value)}"
            case ast.Return(value=ast.IfExp(test=test, body=body, orelse=orelse)) if node.lineno == node.end_lineno:
                start, end = self.get_span(node)
                margin = self.file.source[self.file.get_position(node.lineno, 0) : start]
                if not margin.strip() and self.get_text(node) == (
                    f"return {self.get_text(body)} if {self.get_text(test)} else {self.get_text(orelse)}"
                ):
                    lines = (
                        f"if {self.get_text(test)}:",
                        f"    return {self.get_text(body)}",
                        f"return {self.get_text(orelse)}",
                    )
                    yield start, end, f"\n{margin}".join(lines)
            case ast.If(test=test, body=body, orelse=[_, *_] as orelse):
                yield from self._exchange_branches(node, test, body, orelse)

    def _exchange_branches(
        self, node: ast.If, test: ast.expr, body: list[ast.stmt], orelse: list[ast.stmt]
    ) -> Iterator[Edit]:
        """Yield the edit of an `if` with a one-line condition and an `else` on a line of its own."""
        negated = self._negate(test)
        lines = self.file.source.split("\n")
        word = orelse[0].lineno - 2
        start = self.get_span(node)[0]
        margin = self.file.source[self.file.get_position(node.lineno, 0) : start]
        is_plain = (
            negated is not None
            and not margin.strip()
            and self.file.source[start : self.get_span(test)[1] + 1] == f"if {self.get_text(test)}:"
            and body[0].lineno == node.lineno + 1
            and body[-1].end_lineno == word
            and lines[word] == f"{margin}else:"
        )
        if is_plain:
            first = lines[node.lineno : word]
            second = lines[word + 1 : node.end_lineno]
            new = [f"if {negated}:", *second, lines[word], *first]
            yield start, self.file.get_position(node.end_lineno, len(lines[(node.end_lineno or 1) - 1])), "\n".join(new)

    def _negate(self, test: ast.expr) -> str | None:
        match test:
            case ast.UnaryOp(op=ast.Not(), operand=ast.Name() | ast.Attribute() | ast.Call() as operand):
                return self.get_text(operand)
            case ast.Name() | ast.Attribute() | ast.Call():
                return f"not {self.get_text(test)}"
            case ast.Compare(left=left, comparators=[right]):
                operator = OPPOSITE.get(self.get_operator(left, right))
                return None if operator is None else f"{self.get_text(left)} {operator} {self.get_text(right)}"
        return None


def _is_simple(node: ast.expr) -> bool:
    """Return whether an expression calls nothing, so that the order of evaluation does not matter."""
    return isinstance(node, ast.Name | ast.Constant) or (isinstance(node, ast.Attribute) and _is_simple(node.value))

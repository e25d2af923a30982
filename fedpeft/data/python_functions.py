"""Functions of Python files with a return annotation: the text without it, the annotated type, and a fingerprint.

Files are parsed and never run. The text is the source without the return annotation, decorators, docstrings and
comments, also in inner functions; arguments keep their annotations. It is cut at positions of the syntax tree and never
printed from the tree, since printing differs between versions of Python.

Functions whose type is trivial or impossible to predict are left out: methods with two leading underscores, tests,
stubs, and a package's copies of others.
"""

from __future__ import annotations

import ast
import hashlib
import io
import itertools
import tokenize
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

TYPES = {
    **dict.fromkeys(("list", "List", "Sequence", "MutableSequence"), "list"),
    **dict.fromkeys(("dict", "Dict", "Mapping", "MutableMapping", "OrderedDict", "defaultdict"), "dict"),
    **dict.fromkeys(("tuple", "Tuple"), "tuple"),
    **dict.fromkeys(("set", "Set", "frozenset", "FrozenSet", "AbstractSet"), "set"),
    **dict.fromkeys(("Iterator", "Iterable", "Generator"), "iterator"),
    **dict.fromkeys(("AsyncIterator", "AsyncIterable", "AsyncGenerator"), "iterator"),
    **dict.fromkeys(("type", "Type"), "type"),
    **dict.fromkeys(("Callable",), "callable"),
    **{name: name for name in ("bool", "bytes", "float", "int", "str")},
    "Optional": "optional",
}
"""Type to predict, by an annotation's name without its module and arguments."""

NOT_ITS_OWN = {"test", "tests", "testing", "vendor", "_vendor", "vendored", "_vendored", "extern", "third_party"}
"""Folders that are skipped."""

SYNTAX = (3, 11)
"""Newest syntax that is read; files that need a newer one are skipped.

This holds on every version of Python, with one exception: from 3.12 on, f-strings that reuse their quotes are read.
"""

Definition = ast.FunctionDef | ast.AsyncFunctionDef


@dataclass(frozen=True)
class Function:
    """A function of a file.

    Attributes:
        name: dotted, with the enclosing classes and functions, and the line.
        text: its source, cut.
        type: one of the values of `TYPES`, or `none`.
        fingerprint: equal for functions that differ only in names of arguments and local variables, their own name,
            annotations, the values of literals, and in being async.
    """

    name: str
    text: str
    type: str
    fingerprint: str


def find_functions_below(folder: Path) -> Iterator[Function]:
    """Yield the functions of all files below `folder`, in the order of their paths."""
    for module, source in read_modules(folder):
        yield from find_functions(source, module)


def read_modules(folder: Path) -> Iterator[tuple[str, str]]:
    """Yield the dotted name and source of all files below `folder`, in the order of their paths."""
    for path in sorted(folder.rglob("*.py")):
        inside = path.relative_to(folder)
        if not NOT_ITS_OWN.intersection(inside.parts[:-1]) and not path.name.startswith(("test_", "conftest")):
            try:
                source = path.read_text(encoding="utf-8")
            except UnicodeDecodeError:
                continue
            yield ".".join(inside.with_suffix("").parts), source


def find_functions(source: str, module: str) -> Iterator[Function]:
    """Yield the functions of a module, outer ones first; none if it is not Python of version `SYNTAX`."""
    if "->" not in source:
        return
    file = SourceFile.parse(source)
    if file is None:
        return
    for definition in file.definitions:
        kind = get_type(definition.returns) if definition.returns is not None else None
        if kind is None or definition.name.startswith(("__", "test")) or is_stub(definition):
            continue
        text = file.get_text(definition, returns=False)
        if text is not None:
            name = f"{module}.{definition.name}:{definition.lineno}"
            yield Function(name, text, kind, compute_fingerprint(definition))


@dataclass(frozen=True)
class SourceFile:
    """Source of a module with its syntax tree.

    Attributes:
        source: ASCII text, so that positions count characters.
        starts: the position of each line.
        tree: the syntax tree.
    """

    source: str
    starts: tuple[int, ...]
    tree: ast.Module

    @classmethod
    def parse(cls, source: str) -> SourceFile | None:
        """Parse a module; return None if it is not Python of version `SYNTAX`."""
        source = source.replace("\r\n", "\n").replace("\r", "\n")  # a form feed ends a line for `splitlines`, not here
        source = source.encode("ascii", "replace").decode()  # positions count bytes in trees, and characters in tokens
        try:
            tree = ast.parse(source, feature_version=SYNTAX)
        except (SyntaxError, ValueError, RecursionError):
            return None
        starts = itertools.accumulate((len(line) + 1 for line in source.split("\n")), initial=0)
        return cls(source, tuple(starts), tree)

    @property
    def definitions(self) -> Iterator[Definition]:
        """Functions of the module, outer ones first."""
        return _find_definitions(self.tree)

    def get_position(self, line: int | None, column: int | None) -> int:
        """Return the position of a line and column in the source."""
        return self.starts[(line or 1) - 1] + (column or 0)

    def get_text(self, definition: Definition, returns: bool) -> str | None:
        """Return a function without decorators, docstrings and comments; `returns` keeps return annotations.

        Return None if it can't be cut, because lines of a string are indented less than the function.
        """
        at, source = self.get_position, self.source
        begin, end = at(definition.lineno, definition.col_offset), at(definition.end_lineno, definition.end_col_offset)
        cuts: list[tuple[int, int]] = []
        for node in ast.walk(definition):
            cuts += [(at(*first), at(*last)) for first, last in _find_unwanted(node, node is definition)]
            if isinstance(node, Definition) and node.returns is not None and not returns:
                arrow = source.rindex("->", begin, at(node.returns.lineno, node.returns.col_offset))
                colon = source.index(":", at(node.returns.end_lineno, node.returns.end_col_offset))
                cuts.append((source.rindex(")", begin, arrow) + 1, colon))  # the annotation may be in parentheses
        try:
            return _remove_comments(_remove_spans(source, begin, end, cuts))
        except (IndentationError, tokenize.TokenError):
            return None


def _find_definitions(node: ast.AST) -> Iterator[Definition]:
    """Yield the functions in a module or statement; expressions contain none and are skipped."""
    for part in ("body", "orelse", "finalbody", "handlers", "cases"):
        for inner in getattr(node, part, ()):
            if isinstance(inner, Definition):
                yield inner
            if not isinstance(inner, ast.Expr):
                yield from _find_definitions(inner)


def get_type(annotation: ast.expr) -> str | None:
    """Return the type of an annotation, or None if it is not one of `TYPES`."""
    match annotation:
        case ast.Constant(value=None):
            return "none"
        case ast.Constant(value=str(text)):
            try:
                return get_type(ast.parse(text.strip(), mode="eval").body)
            except (SyntaxError, ValueError):
                return None
        case ast.BinOp(op=ast.BitOr()):
            return "optional" if "none" in (get_type(annotation.left), get_type(annotation.right)) else None
        case ast.Subscript(value=ast.Name(id="Union") | ast.Attribute(attr="Union"), slice=ast.Tuple(elts=members)):
            return "optional" if any(get_type(member) == "none" for member in members) else None
        case ast.Subscript(value=head):
            return get_type(head)
        case ast.Attribute(attr=name) | ast.Name(id=name):
            return TYPES.get(name)
    return None


def is_stub(definition: Definition) -> bool:
    """Return whether the function contains only a docstring, `...`, `pass` or `raise`."""
    idle = (ast.Pass, ast.Raise)
    return all(
        isinstance(s, idle) or (isinstance(s, ast.Expr) and isinstance(s.value, ast.Constant)) for s in definition.body
    )


def _find_unwanted(node: ast.AST, outermost: bool) -> Iterator[tuple[tuple[int, int], tuple[int, int]]]:
    """Yield the spans of decorators and docstrings, each from (line, column) to (line, column)."""
    if not isinstance(node, Definition | ast.ClassDef):
        return
    if node.decorator_list and not outermost:  # the outermost starts after its decorators
        first = node.decorator_list[0]
        yield (first.lineno, first.col_offset - 1), (node.lineno, node.col_offset)
    first_statement = node.body[0]
    if ast.get_docstring(node, clean=False) is not None and len(node.body) > 1:
        yield _get_span(first_statement)


def _get_span(node: ast.stmt) -> tuple[tuple[int, int], tuple[int, int]]:
    return (node.lineno, node.col_offset), (node.end_lineno or node.lineno, node.end_col_offset or node.col_offset)


def _remove_spans(source: str, begin: int, end: int, cuts: list[tuple[int, int]]) -> str:
    """Return `source[begin:end]` without the `cuts`, empty lines, and the indentation that all lines share."""
    kept: list[str] = []
    position = begin
    for first, last in sorted(cuts):
        if first > position:
            kept.append(source[position:first])
        position = max(position, last)
    kept.append(source[position:end])
    indentation = begin - (source.rfind("\n", 0, begin) + 1)
    lines = [line.rstrip() for line in "".join(kept).split("\n")]
    return "\n".join(line[indentation:] if not line[:indentation].strip() else line for line in lines if line.strip())


def _remove_comments(text: str) -> str:
    if "#" not in text:
        return text
    lines = text.split("\n")
    for token in tokenize.generate_tokens(io.StringIO(text).readline):
        if token.type == tokenize.COMMENT:
            row, column = token.start
            lines[row - 1] = lines[row - 1][:column].rstrip()
    return "\n".join(line for line in lines if line)


def compute_fingerprint(definition: Definition) -> str:
    """Return a hash of the normalized tree; see `Function`."""
    local: dict[str, str] = {}
    for node in ast.walk(definition):
        match node:
            case ast.arg(arg=name) | ast.Name(id=name, ctx=ast.Store()):
                local.setdefault(name, f"local {len(local)}")

    def describe(node: object) -> str:
        match node:
            case list():
                return f"[{','.join(map(describe, node))}]"
            case ast.Constant(value=value):
                return repr(value) if value is None or isinstance(value, bool) else type(value).__name__
            case ast.Name(id=name):
                return local.get(name, name)
            case ast.arg(arg=name):
                return local[name]
            case ast.Await(value=awaited):
                return describe(awaited)
            case ast.AsyncFunctionDef() | ast.FunctionDef():
                body = node.body[1:] if ast.get_docstring(node, clean=False) is not None else node.body
                return f"def({describe(node.args)}{describe(body)})"
            case ast.AnnAssign(target=target, value=value):
                return f"Assign({describe([target])},{describe(value)})"
            case ast.AST():
                skipped = ("ctx", "type_comment", "kind", "type_params")
                fields = (describe(value) for name, value in ast.iter_fields(node) if name not in skipped)
                return f"{type(node).__name__.removeprefix('Async')}({','.join(fields)})"
        return repr(node)

    return hashlib.sha256(describe(definition).encode()).hexdigest()

"""Tests of Python functions that compare a function with its original on drawn arguments.

The tests are a program that contains the original. It calls the function and the original with the same arguments, and
asserts equal results or the same type of error. NaN equals NaN. The end of an iteration and errors of Unicode count as
a RuntimeError, since they cross as one between processes (`fedpeft.models.answers.code_peers`). Only functions get
tests that need nothing but their arguments and builtins, and whose arguments have plain types. No code is run here.
"""

from __future__ import annotations

import ast
import builtins
from collections.abc import Callable, Mapping

import numpy as np

from fedpeft.data.python_functions import SourceFile

CALLS = 24
"""Number of calls in a program of tests."""

IMPURE = {"open", "input", "print", "exec", "eval", "compile", "globals", "locals", "vars", "id", "hash", "breakpoint"}
"""Builtins whose results depend on more than their arguments."""

WORDS = (
    "",
    "a",
    "b",
    "Ab",
    "a b",
    "x_y",
    "x.y.z",
    "a=1",
    "12",
    "-3",
    "a,b,,c",
    "  pad ",
    "CamelCase",
    "/usr/lib",
    "%s",
)

PROGRAM = """{original}

def outcome(function, arguments):
    try:
        value = function(*arguments)
        return list(value) if hasattr(value, "__next__") else value
    except (StopIteration, UnicodeError):
        return "RuntimeError"
    except Exception as error:
        return type(error).__name__

def same(one, other):
    if type(one) is type(other) and isinstance(one, (list, tuple)):
        return len(one) == len(other) and all(map(same, one, other))
    if isinstance(one, dict) and isinstance(other, dict):
        return one.keys() == other.keys() and all(same(one[key], other[key]) for key in one)
    return one == other or (one != one and other != other)

for arguments in {calls}:
    assert same(outcome({name}, arguments), outcome(original, arguments)), arguments
"""

TAKEN = {"original", "outcome", "same", "function", "arguments", "value", "error", "one", "other", "key"}
"""Names that a program of tests uses; it would not call a function of the same name."""

Draw = Callable[[], object]


class UnplainTypeError(Exception):
    """An argument has a type whose values can't be drawn."""


def write_tests(text: str, random: np.random.Generator) -> str | None:
    """Return a program of tests for the function in `text`, or None if none can be written.

    Args:
        text: source of one function, in ASCII.
        random: decides the arguments.
    """
    match SourceFile.parse(text):
        case SourceFile(tree=ast.Module(body=[ast.FunctionDef() as function])) as file:
            given = function.args
        case _:
            return None
    if function.name in TAKEN or hasattr(builtins, function.name) or not _is_self_contained(function):
        return None
    if given.vararg or given.kwarg or None in given.kw_defaults:
        return None
    try:
        draws = [_choose_draw(argument.annotation, random) for argument in (*given.posonlyargs, *given.args)]
    except UnplainTypeError:
        return None
    if not draws:
        return None
    calls = [tuple(draw() for draw in draws) for _ in range(CALLS)]
    original = _rename_to_original(file, function)
    return None if original is None else PROGRAM.format(original=original, name=function.name, calls=repr(calls))


def _is_self_contained(function: ast.FunctionDef) -> bool:
    loaded: set[str] = set()
    stored = {node.arg for node in ast.walk(function) if isinstance(node, ast.arg)}
    for node in ast.walk(ast.Module(function.body, [])):  # annotations of the arguments don't count
        match node:
            case ast.Name(id=name, ctx=ast.Load()):
                loaded.add(name)
            case ast.Name(id=name):
                stored.add(name)
            case ast.Import() | ast.ImportFrom() | ast.Global() | ast.Nonlocal():
                return False
    defaults = filter(None, (*function.args.defaults, *function.args.kw_defaults))
    return loaded - stored <= set(dir(builtins)) - IMPURE and all(isinstance(d, ast.Constant) for d in defaults)


def _rename_to_original(file: SourceFile, function: ast.FunctionDef) -> str | None:
    """Return the function as `original`, without annotations of its arguments; None: the name has another use.

    Annotations may name what is not there.
    """
    at, text = file.get_position, file.source
    nodes = list(ast.walk(function))
    if any(isinstance(node, ast.Name | ast.arg) and "original" in vars(node).values() for node in nodes):
        return None
    start = at(function.lineno, function.col_offset) + len("def ")
    edits = [(start, start + len(function.name), "original")]
    for node in nodes:
        if isinstance(node, ast.arg) and node.annotation is not None:
            end = at(node.annotation.end_lineno, node.annotation.end_col_offset)
            edits.append((at(node.lineno, node.col_offset) + len(node.arg), end, ""))
        elif isinstance(node, ast.Name) and node.id == function.name:
            edits.append((at(node.lineno, node.col_offset), at(node.end_lineno, node.end_col_offset), "original"))
    for first, last, new in sorted(edits, reverse=True):
        text = text[:first] + new + text[last:]
    return text


def _choose_draw(annotation: ast.expr | None, random: np.random.Generator) -> Draw:
    """Return what draws values of an annotated type.

    Raises:
        UnplainTypeError: the type, or one inside it, is not plain.
    """
    match annotation:
        case ast.Constant(value=None):
            return lambda: None
        case ast.Constant(value=str(text)):
            try:
                inner = ast.parse(text.strip(), mode="eval").body
            except (SyntaxError, ValueError):
                raise UnplainTypeError from None
            return _choose_draw(inner, random)
        case ast.Name(id=name) if name in _PLAIN:
            return lambda: _PLAIN[name](random)
        case ast.BinOp(op=ast.BitOr(), left=left, right=right):
            sides = [_choose_draw(left, random), _choose_draw(right, random)]
            return lambda: sides[int(random.integers(2))]()
        case ast.Subscript(value=ast.Name(id="Optional"), slice=inner):
            return _choose_draw(ast.BinOp(inner, ast.BitOr(), ast.Constant(None)), random)
        case ast.Subscript(value=ast.Name(id="list" | "List" | "Sequence" | "Iterable" | "Collection"), slice=inner):
            item = _choose_draw(inner, random)
            return lambda: [item() for _ in range(int(random.integers(5)))]
        case ast.Subscript(value=ast.Name(id="tuple" | "Tuple"), slice=ast.Tuple(elts=[_, *_] as members)):
            if len(members) == 2 and isinstance(members[1], ast.Constant) and members[1].value is ...:
                members = [members[0]] * 3
            draws = [_choose_draw(member, random) for member in members]
            return lambda: tuple(draw() for draw in draws)
        case ast.Subscript(
            value=ast.Name(id="dict" | "Dict" | "Mapping"), slice=ast.Tuple(elts=[ast.Name(id="str"), inner])
        ):
            value = _choose_draw(inner, random)
            return lambda: {str(_PLAIN["str"](random)): value() for _ in range(3)}
    raise UnplainTypeError


_PLAIN: Mapping[str, Callable[[np.random.Generator], object]] = {
    "int": lambda random: int(random.choice((-3, -1, 0, 1, 2, 3, 5, 8, 60, 100, 1024))),
    "float": lambda random: float(random.choice((-1.5, 0.0, 0.25, 1.0, 2.0, 59.9, 3600.0))),
    "bool": lambda random: bool(random.integers(2)),
    "str": lambda random: str(random.choice(WORDS)),
    "bytes": lambda random: str(random.choice(WORDS)).encode(),
}
"""Draws by the name of a type."""

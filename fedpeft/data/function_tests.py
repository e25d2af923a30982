"""Tests of Python functions that compare a function with its original on drawn arguments.

The tests are a program that contains the original. It calls the function and the original with the same arguments, and
asserts equal results or the same type of error. NaN equals NaN. The end of an iteration and errors of Unicode count as
a RuntimeError, since they cross as one between processes (`fedpeft.models.answers.code_peers`). Only functions get
tests that need nothing but their arguments and builtins, and whose arguments have plain types. No code is run here.
"""

from __future__ import annotations

import ast
import builtins
from collections.abc import Callable, Mapping, Sequence

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


def write_tests(text: str, random: np.random.Generator) -> str | None:
    """Return a program of tests for the function in `text`, or None if none can be written.

    Args:
        text: source of one function, in ASCII.
        random: decides the arguments.
    """
    file = SourceFile.parse(text)
    function = file.tree.body[0] if file is not None and len(file.tree.body) == 1 else None
    if not isinstance(function, ast.FunctionDef) or not _is_self_contained(function):
        return None
    if function.name in TAKEN or hasattr(builtins, function.name):
        return None
    given = function.args
    if given.vararg or given.kwarg or any(default is None for default in given.kw_defaults):
        return None
    draws: list[Draw] = []
    for argument in (*given.posonlyargs, *given.args):
        draw = _choose_draw(argument.annotation, random)
        if draw is None:
            return None
        draws.append(draw)
    if not draws:
        return None
    calls = [tuple(draw() for draw in draws) for _ in range(CALLS)]
    original = _rename_to_original(file, function)
    return None if original is None else PROGRAM.format(original=original, name=function.name, calls=repr(calls))


def _is_self_contained(function: ast.FunctionDef) -> bool:
    nodes = [node for statement in function.body for node in ast.walk(statement)]
    stored = {node.id for node in nodes if isinstance(node, ast.Name) and not isinstance(node.ctx, ast.Load)}
    stored |= {node.arg for node in ast.walk(function) if isinstance(node, ast.arg)}
    loaded = {node.id for node in nodes if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Load)}
    defaults = [value for value in (*function.args.defaults, *function.args.kw_defaults) if value is not None]
    return (
        loaded - stored <= set(dir(builtins)) - IMPURE
        and all(isinstance(value, ast.Constant) for value in defaults)
        and not any(isinstance(node, ast.Import | ast.ImportFrom | ast.Global | ast.Nonlocal) for node in nodes)
    )


def _rename_to_original(file: SourceFile | None, function: ast.FunctionDef) -> str | None:
    """Return the function as `original`, without annotations of its arguments; None: the name has another use.

    Annotations may name what is not there.
    """
    assert file is not None
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


def _choose_draw(annotation: ast.expr | None, random: np.random.Generator) -> Draw | None:
    """Return what draws values of an annotated type; None: the type is not plain."""
    match annotation:
        case ast.Constant(value=None):
            return lambda: None
        case ast.Constant(value=str(text)):
            try:
                return _choose_draw(ast.parse(text.strip(), mode="eval").body, random)
            except (SyntaxError, ValueError):
                return None
        case ast.Name(id=name) if name in _PLAIN:
            return lambda: _PLAIN[name](random)
        case ast.BinOp(op=ast.BitOr(), left=left, right=right):
            sides = _choose_draws([left, right], random)
            return (lambda: sides[int(random.integers(2))]()) if sides else None
        case ast.Subscript(value=ast.Name(id="Optional"), slice=inner):
            return _choose_draw(ast.BinOp(inner, ast.BitOr(), ast.Constant(None)), random)
        case ast.Subscript(value=ast.Name(id="list" | "List" | "Sequence" | "Iterable" | "Collection"), slice=inner):
            items = _choose_draws([inner], random)
            return (lambda: [items[0]() for _ in range(int(random.integers(5)))]) if items else None
        case ast.Subscript(value=ast.Name(id="tuple" | "Tuple"), slice=ast.Tuple(elts=members)):
            if len(members) == 2 and isinstance(members[1], ast.Constant) and members[1].value is ...:
                members = [members[0]] * 3
            draws = _choose_draws(members, random)
            return (lambda: tuple(draw() for draw in draws)) if draws else None
        case ast.Subscript(
            value=ast.Name(id="dict" | "Dict" | "Mapping"), slice=ast.Tuple(elts=[ast.Name(id="str"), value])
        ):
            values = _choose_draws([value], random)
            return (lambda: {str(_PLAIN["str"](random)): values[0]() for _ in range(3)}) if values else None
    return None


def _choose_draws(annotations: Sequence[ast.expr], random: np.random.Generator) -> list[Draw]:
    """Return what draws values of each type; empty if a type is not plain."""
    draws = [draw for annotation in annotations if (draw := _choose_draw(annotation, random)) is not None]
    return draws if len(draws) == len(annotations) else []


_PLAIN: Mapping[str, Callable[[np.random.Generator], object]] = {
    "int": lambda random: int(random.choice((-3, -1, 0, 1, 2, 3, 5, 8, 60, 100, 1024))),
    "float": lambda random: float(random.choice((-1.5, 0.0, 0.25, 1.0, 2.0, 59.9, 3600.0))),
    "bool": lambda random: bool(random.integers(2)),
    "str": lambda random: str(random.choice(WORDS)),
    "bytes": lambda random: str(random.choice(WORDS)).encode(),
}
"""Draws by the name of a type."""

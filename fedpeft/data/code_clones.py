"""Clones of Python functions: the same function with its own names changed and independent statements in another order,
the second and third kind of clones of Roy, Cordy and Koschke (Science of Computer Programming 74, 2009).

Names and statements are changed at their places in the text, and no tree is printed: all else stays as it was written.
Changed are the names of the function, of arguments and of local variables, never of attributes, inner functions,
imports or handled exceptions, nor what a string formats. New names may be those of another function, which a reader of
names alone then takes the clone for. Two assignments that follow each other change places where neither reads or writes
what the other writes and neither calls anything. Nothing is run.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Sequence

import numpy as np

from fedpeft.data.python_functions import Definition

STEMS = ("alpha", "batch", "cell", "delta", "entry", "field", "group", "handle", "item", "joint", "kind", "lower")
"""What new names are made of where others have none left, with a number behind."""

Span = tuple[int, int]
"""Line from 1, and column in characters."""

CALLS = (ast.Call, ast.Await, ast.Yield, ast.YieldFrom, ast.NamedExpr)


def clone(text: str, random: np.random.Generator, names: Sequence[str] = ()) -> str | None:
    """The function in `text` (ASCII) with its names changed and statements reordered; None: it is no function, or has
    no argument or variable to rename. The same generator gives the same clone.

    `names`: what things are called in the clone, as far as the text has no such names yet.
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
    """The names of the function in `text` that a clone changes, in alphabetical order; none: it is no function."""
    function = _parse_function(text)
    return [] if function is None else sorted(_find_changed_names(function))


def _find_changed_names(function: Definition) -> dict[str, list[Span]]:
    """The names that are changed, and where they stand."""
    kept = _find_kept_names(function) | {"self", "cls", "_"}
    return {name: found for name, found in _find_places(function).items() if name not in kept}


def rename_variables(text: str, function: Definition, random: np.random.Generator, names: Sequence[str]) -> str | None:
    """`text` with other names; None: its places can't be found."""
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
        if row[column : column + len(name)] != name:  # nowhere in a tree of this text
            return None
        lines[line - 1] = row[:column] + new[name] + row[column + len(name) :]
    return "\n".join(lines)


def _find_places(function: Definition) -> dict[str, list[Span]]:
    """Where the names of the function, of arguments, and of variables that are assigned stand."""
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
    """Names that stand where no tree says, or that others know: of strings, imports, exceptions, keywords, patterns."""
    kept: set[str] = set()
    for node in ast.walk(function):
        match node:
            case ast.JoinedStr():
                kept |= {inner.id for inner in ast.walk(node) if isinstance(inner, ast.Name)}
            case ast.Global(names=names) | ast.Nonlocal(names=names):
                kept.update(names)
            case ast.alias(name=name, asname=other):
                kept.add(other or name.partition(".")[0])
            case ast.ExceptHandler(name=str(name)) | ast.MatchAs(name=str(name)) | ast.MatchStar(name=str(name)):
                kept.add(name)
            case ast.MatchMapping(rest=str(name)):
                kept.add(name)
            case ast.FunctionDef(name=name) | ast.AsyncFunctionDef(name=name) | ast.ClassDef(name=name):
                kept |= {name} if node is not function else set()
    return kept


def reorder_assignments(text: str, random: np.random.Generator) -> str:
    """`text` with neighbouring assignments exchanged that do not depend on each other, each pair or not by a coin."""
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
    """The lists of statements, innermost last; exchanged lines stay within theirs."""
    parts = ("body", "orelse", "finalbody")
    return [
        body for node in ast.walk(function) for name in parts if isinstance(body := getattr(node, name, None), list)
    ]


def _is_alone(first: ast.stmt, second: ast.stmt, lines: list[str]) -> bool:
    """Whether nothing else stands on the lines of two statements that follow each other."""
    if first.end_lineno is None or second.end_lineno is None or second.lineno != first.end_lineno + 1:
        return False
    return all(
        not lines[s.lineno - 1][: s.col_offset].strip() and not lines[s.end_lineno - 1][s.end_col_offset :].strip()  # type: ignore[operator]
        for s in (first, second)
    )


def is_independent(first: ast.stmt, second: ast.stmt) -> bool:
    """Whether two statements are assignments to names that give the same in either order."""
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
    """Names that are written, and read."""
    names = [node for node in ast.walk(statement) if isinstance(node, ast.Name)]
    written = {node.id for node in names if isinstance(node.ctx, ast.Store)}
    return written, {node.id for node in names if isinstance(node.ctx, ast.Load)}

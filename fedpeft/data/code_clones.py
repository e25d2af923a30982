"""Clones of Python functions: renamed local names and reordered independent statements.

These are the second and third type of clones of Roy, Cordy and Koschke (Science of Computer Programming 74, 2009). The
text is edited in place and never printed from a syntax tree, so everything else stays as it was written.

Renamed are the function, its arguments and its local variables. Attributes, inner functions, imports, handled
exceptions and names inside format strings keep their names. A new name may come from another function, so that a model
that reads names alone mistakes the clone for that function.

Two consecutive assignments change places if neither reads or writes what the other writes and neither calls anything.
No code is run.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Sequence

import numpy as np

from fedpeft.data.python_functions import Definition

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

    These occur in format strings, imports, exception handlers, patterns or global statements, or name inner functions
    and classes.
    """
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

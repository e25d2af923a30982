"""Names of a module, read from its source without importing it: what a part declares, without torch.

A part is a dataclass, and its settings are expressions of constants. So a class of the same bases and fields, without
methods, has the same settings. Only what such an expression needs is run: constants, imports and other such classes.
"""

from __future__ import annotations

import ast
import builtins
import importlib
import sys
from collections.abc import Iterator, Mapping
from functools import cache
from importlib.util import find_spec, resolve_name
from pathlib import Path
from types import MappingProxyType
from typing import Any, Final

KEPT: Final = ("argument", "called_elsewhere", "settled_elsewhere")
"""Class variables that say how a text gives the settings."""

_OURS: Final = __name__.partition(".")[0]


class UnreadableError(Exception):
    """A name that nothing but an import of its module can tell."""


@cache
def read(module: str, name: str) -> Any:
    """Return what `name` means in a module: the module's own if it is imported, else what its source says.

    Raises:
        UnreadableError: it needs what only an import can tell, or is not there.
    """
    if _is_at_hand(module):
        try:
            return getattr(importlib.import_module(module), name)
        except AttributeError:
            raise UnreadableError(f"{module}.{name}") from None
    if module.partition(".")[0] != _OURS or (statement := _find_statements(module).get(name)) is None:
        raise UnreadableError(f"{module}.{name}")
    if isinstance(statement, ast.ImportFrom):
        alias = next(alias for alias in statement.names if (alias.asname or alias.name) == name)
        start = module.rpartition(".")[0]
        return read(resolve_name("." * statement.level + (statement.module or ""), start), alias.name)
    if isinstance(statement, ast.Import) and not all(_is_at_hand(alias.name) for alias in statement.names):
        raise UnreadableError(f"{module}.{name}")
    scope: dict[str, Any] = {"__name__": module}
    for other in _find_free_names(statement):
        scope[other] = read(module, other)
    exec(compile(ast.Module([statement], []), module, "exec", dont_inherit=True), scope)
    return scope[name]


def _is_at_hand(module: str) -> bool:
    """Return whether a module is imported, or costs next to nothing to import."""
    return module in sys.modules or module.partition(".")[0] in sys.stdlib_module_names


@cache
def _find_statements(module: str) -> Mapping[str, ast.stmt]:
    """Return the statements of a module's source that assign a name, by that name."""
    spec = find_spec(module)
    if spec is None or spec.origin is None:
        return {}
    found: dict[str, ast.stmt] = {}
    for statement in ast.parse(Path(spec.origin).read_text("utf-8")).body:
        if isinstance(statement, ast.ClassDef):
            found[statement.name] = _drop_methods(statement)
        elif isinstance(statement, ast.Import | ast.ImportFrom):
            found |= {alias.asname or alias.name: statement for alias in statement.names}
        elif isinstance(statement, ast.FunctionDef):
            found[statement.name] = _drop_annotations(statement)
        elif isinstance(statement, ast.Assign):
            found |= {name: statement for target in statement.targets for name in _find_names(target, ast.Store)}
        elif isinstance(statement, ast.AnnAssign) and isinstance(statement.target, ast.Name) and statement.value:
            plain = ast.Assign([statement.target], statement.value)
            found[statement.target.id] = ast.copy_location(ast.fix_missing_locations(plain), statement)
    return MappingProxyType(found)


def _drop_methods(statement: ast.ClassDef) -> ast.ClassDef:
    """Return a class with its bases, decorators, fields, and the members in `KEPT`."""
    body: list[ast.stmt] = []
    for line in statement.body:
        if not isinstance(line, ast.AnnAssign) or not isinstance(line.target, ast.Name):
            continue
        if line.target.id in KEPT or not ast.unparse(line.annotation).startswith("ClassVar"):
            body.append(line)
    copy = ast.ClassDef(
        statement.name, statement.bases, statement.keywords, body or [ast.Pass()], statement.decorator_list
    )
    return ast.fix_missing_locations(ast.copy_location(copy, statement))


def _drop_annotations(statement: ast.FunctionDef) -> ast.FunctionDef:
    """Return a function without annotations of arguments and result."""
    statement.returns = None
    for argument in (*statement.args.posonlyargs, *statement.args.args, *statement.args.kwonlyargs):
        argument.annotation = None
    return statement


def _find_names(tree: ast.AST, context: type[ast.expr_context]) -> Iterator[str]:
    """Return the names in a tree that are set (`ast.Store`) or read (`ast.Load`)."""
    return (node.id for node in ast.walk(tree) if isinstance(node, ast.Name) and isinstance(node.ctx, context))


def _find_free_names(statement: ast.stmt) -> set[str]:
    """Return the names that a statement reads from its module."""
    inner = [node for node in ast.walk(statement) if isinstance(node, ast.FunctionDef | ast.comprehension)]
    bound = {
        argument.arg
        for node in ast.walk(statement)
        if isinstance(node, ast.arguments)
        for argument in (*node.posonlyargs, *node.args, *node.kwonlyargs)
    }
    bound |= {name for node in inner for name in _find_names(node, ast.Store)}
    return {name for name in _find_names(statement, ast.Load) if name not in bound and not hasattr(builtins, name)}

"""Code of plugins, in files and installed packages: modules, digests, and the checks of their classes."""

from __future__ import annotations

import dataclasses
import hashlib
import importlib.metadata
import importlib.util
import json
import re
import sys
import traceback
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

from fedpeft.errors import ConfigError

MODULE = "fedpeft_plugin_"
"""Beginning of the name of a plugin's module; the rest is from its digest."""

LIBRARIES = ("__main__", "abc", "builtins", "fedpeft", "torch", "transformers", "typing")
"""Packages whose code is not a user's own; what is made in a notebook has no file to tell it by."""

Parts = Mapping[str, Mapping[str, importlib.metadata.EntryPoint]]
"""A package's entry points, by group and name."""


def hash_own_code(*kinds: type) -> dict[str, str]:
    """Return cache-key fields that identify a user's own classes.

    The field is the SHA-256 of the plugin or file that contains the classes or their bases. The mapping is empty if
    all of them are from `LIBRARIES`.
    """
    modules = {base.__module__ for kind in kinds for base in kind.__mro__}
    told = set()
    for name in modules:
        file = getattr(sys.modules.get(name), "__file__", None)
        if name.startswith(MODULE):
            told.add(name.partition(".")[0])
        elif name.partition(".")[0] not in LIBRARIES and file:
            told.add(f"{name} {compute_digest(Path(file))}")
    return {"code": ", ".join(sorted(told))} if told else {}


def import_file(name: str, file: Path, source: Path) -> ModuleType:
    """Return the module in a plugin's `file`, imported once under this name.

    Raises:
        ConfigError: it fails, in whatever way.
    """
    if name in sys.modules:
        return sys.modules[name]
    inside = [str(source)] if source.is_dir() else None
    spec = importlib.util.spec_from_file_location(name, file, submodule_search_locations=inside)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # dataclasses look there for what their annotations mean
    try:
        spec.loader.exec_module(module)
    except (Exception, SystemExit) as error:  # whatever a stranger's module raises
        del sys.modules[name]
        raise ConfigError(
            f"FP1249 the plugin {source} can't be loaded: {describe_error(error)}{_find_failing_line(error, source)}"
        ) from error
    return module


def _find_failing_line(error: BaseException, source: Path) -> str:
    """Where in a plugin it fails; empty where that is nowhere: what does not compile says its file and line itself."""
    if isinstance(error, SyntaxError):
        return ""
    own = [frame for frame in traceback.extract_tb(error.__traceback__) if Path(frame.filename).is_relative_to(source)]
    if not own:
        return ""
    file = "" if source.is_file() else f"{Path(own[-1].filename).relative_to(source)}, "
    return f" ({file}line {own[-1].lineno})"


def check(cls: Any, name: str, source: str) -> None:
    """ConfigError unless it is a frozen dataclass under a name that a text can hold."""
    short = name.partition(".")[2]
    if not short.isidentifier() or short.startswith("_"):
        raise ConfigError(f"FP1250 {name!r} of {source} is not a legal name of a part; use letters, digits and _")
    frozen = isinstance(cls, type) and dataclasses.is_dataclass(cls) and cls.__dataclass_params__.frozen  # type: ignore[attr-defined]
    if not frozen and any(base.__module__.startswith("flwr.") for base in getattr(cls, "__mro__", ())):
        shown = cls.__name__
        raise ConfigError(
            f"FP1251 {name} of {source} is a class of Flower's: write wrap_strategy({shown}) there, with `from "
            "fedpeft.flower.strategy import wrap_strategy`"
        )
    if not frozen:
        raise ConfigError(f"FP1252 {name} of {source} must be a class with @dataclass(frozen=True), got {cls!r:.100}")


def compute_digest(source: Path) -> str:
    """SHA-256 of a file; of a folder's Python files, with their places."""
    if source.is_file():
        return hashlib.sha256(source.read_bytes()).hexdigest()
    total = hashlib.sha256()
    for file in sorted(found for found in source.rglob("*.py") if found.is_file()):  # an editor's links lead nowhere
        total.update(f"{file.relative_to(source)}\0{hashlib.sha256(file.read_bytes()).hexdigest()}\n".encode())
    return total.hexdigest()


def shorten_version(version: str) -> str:
    """Return a version for a message: digests have twelve digits."""
    return re.sub(r"\b([0-9a-f]{12})[0-9a-f]{52}\b", r"\1", version)


def describe_error(error: BaseException) -> str:
    """Return an error in a few words, for a message."""
    if isinstance(error, SyntaxError):
        return str(error)
    return f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"


def find_packages(groups: Iterable[str]) -> Iterator[tuple[str, str, Parts]]:
    """Return name, version and parts of each package with parts in these groups, by name; nothing is imported.

    The version of one that is installed in place (`pip install -e`) ends with a digest of the modules of its parts.
    """
    made: dict[str, dict[str, dict[str, importlib.metadata.EntryPoint]]] = {}
    found: dict[str, importlib.metadata.Distribution] = {}
    entries = importlib.metadata.entry_points()  # of all packages at once: each call reads their files
    for group in groups:
        for entry in entries.select(group=f"fedpeft.{group}"):
            if entry.dist is not None:
                found[entry.dist.name] = entry.dist
                made.setdefault(entry.dist.name, {}).setdefault(group, {})[entry.name] = entry
    for name, parts in sorted(made.items()):
        yield name, _get_version(found[name], parts), parts


def _get_version(package: importlib.metadata.Distribution, parts: Parts) -> str:
    try:
        return f"{package.version} {_compute_source_digest(package, parts)}".strip()
    except (OSError, ValueError):  # what can't be read now fails where it is used, if it is
        return package.version


def _compute_source_digest(package: importlib.metadata.Distribution, parts: Parts) -> str:
    """Empty: it is not installed in place."""
    origin = json.loads(package.read_text("direct_url.json") or "{}")  # PEP 610
    if not origin.get("dir_info", {}).get("editable"):
        return ""
    modules = {entry.module.partition(".")[0] for named in parts.values() for entry in named.values()}
    specs = [spec for module in sorted(modules) if (spec := importlib.util.find_spec(module))]
    files = [place for spec in specs for place in spec.submodule_search_locations or filter(None, [spec.origin])]
    return hashlib.sha256("".join(compute_digest(Path(file)) for file in files).encode()).hexdigest()

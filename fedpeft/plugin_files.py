"""Files of plugins: their modules, their digests, and the checks of their classes."""

from __future__ import annotations

import dataclasses
import hashlib
import importlib.util
import re
import sys
import traceback
from pathlib import Path
from types import ModuleType
from typing import Any

from fedpeft.errors import ConfigError

MODULE = "fedpeft_plugin_"
"""Beginning of the name of a plugin's module; the rest is from its digest."""

LIBRARIES = ("__main__", "abc", "builtins", "fedpeft", "torch", "transformers", "typing")
"""Packages whose code is not a user's own; what is made in a notebook has no file to tell it by."""


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

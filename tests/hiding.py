"""Processes in which installed packages can't be imported, as on a machine that lacks them."""

from __future__ import annotations

import os
import sys
import tomllib
from collections.abc import Iterable
from importlib.metadata import PackageNotFoundError, packages_distributions, requires
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

PROJECT = tomllib.loads((Path(__file__).parent.parent / "pyproject.toml").read_text(encoding="utf-8"))["project"]
EXTRAS: dict[str, list[str]] = PROJECT["optional-dependencies"]
HIDE = '''
import os, sys
from importlib.machinery import PathFinder

class Hiding(PathFinder):
    """Finds nothing of the hidden packages."""

    @classmethod
    def find_spec(cls, name, path=None, target=None):
        if name.partition(".")[0] in os.environ["HIDDEN_PACKAGES"].split(","):
            return None
        return super().find_spec(name, path, target)

sys.meta_path[sys.meta_path.index(PathFinder)] = Hiding
'''


def hide(folder: Path, modules: Iterable[str], *paths: str) -> dict[str, str]:
    """Return variables of the environment of a Python that can't import `modules`.

    Args:
        folder: receives a file that each such Python runs at its start.
        modules: import names of packages.
        paths: further folders to import from.
    """
    folder.mkdir(exist_ok=True)
    (folder / "sitecustomize.py").write_text(HIDE)
    return {
        "HIDDEN_PACKAGES": ",".join(sorted(modules)),
        "PYTHONPATH": os.pathsep.join([str(folder), *filter(None, paths)]),
    }


def find_dependencies(requirements: Iterable[str]) -> set[str]:
    """Return the names of the installed packages that `requirements` bring, with all that these need."""
    found: set[str] = set()
    seen: set[tuple[str, frozenset[str]]] = set()
    waiting = [Requirement(text) for text in requirements]
    while waiting:
        requirement = waiting.pop()
        name, extras = canonicalize_name(requirement.name), frozenset(requirement.extras)
        if (name, extras) in seen:
            continue
        seen.add((name, extras))
        if name == PROJECT["name"]:  # an extra of its own
            waiting += [Requirement(text) for extra in extras for text in EXTRAS[extra]]
            continue
        try:
            needed = requires(name) or []
        except PackageNotFoundError:
            continue
        found.add(name)
        conditions = [{"extra": extra} for extra in ("", *extras)]
        for inner in map(Requirement, needed):
            if inner.marker is None or any(inner.marker.evaluate(c) for c in conditions):
                waiting.append(inner)
    return found


def list_other_modules(packages: set[str]) -> set[str]:
    """Return the import names of all installed packages but these; the standard library and fedpeft are left out."""
    modules = {
        module
        for module, owners in packages_distributions().items()
        if not packages.intersection(map(canonicalize_name, owners))
    }
    return modules - set(sys.stdlib_module_names) - {PROJECT["name"]}

"""Installed packages with parts: which they hold, by entry points, and what tells one from what it was before."""

from __future__ import annotations

import hashlib
import importlib.metadata
import importlib.util
import json
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

from fedpeft.plugin_files import compute_digest

Parts = Mapping[str, Mapping[str, importlib.metadata.EntryPoint]]
"""By group and name."""


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

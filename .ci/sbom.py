"""python .ci/sbom.py [FILE]: write a CycloneDX list of fedpeft and its installed dependencies.

It contains fedpeft and all direct and indirect dependencies of clients, simulations and servers in the environment of
this Python, with versions and licenses from the packages' own metadata. Other packages, such as development tools, are
left out. The same environment gives the same file (default: sbom.cdx.json).
"""

from __future__ import annotations

import json
import sys
from importlib.metadata import Distribution, PackageNotFoundError, distribution
from pathlib import Path
from typing import Any
from urllib.parse import quote

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = "fedpeft"
EXTRAS = ("simulate", "server")
"""Extras of `ROOT` that are listed if they are installed."""


def list_requirements(package: Distribution) -> list[str]:
    """Return the names of a package's requirements in this environment: without extras, but for `EXTRAS` of `ROOT`."""
    names = set()
    for requirement in map(Requirement, package.requires or ()):
        name = canonicalize_name(requirement.name)
        if requirement.marker is None or requirement.marker.evaluate({"extra": ""}):
            names.add(name)
        elif canonicalize_name(package.name) == ROOT != name and is_installed(name):
            names |= {name for extra in EXTRAS if requirement.marker.evaluate({"extra": extra})}
    return sorted(names)


def is_installed(name: str) -> bool:
    """Return whether there is a package of this name."""
    try:
        return bool(distribution(name))
    except PackageNotFoundError:
        return False


def find_dependencies(root: str) -> dict[str, Distribution]:
    """Return a package and its direct and indirect dependencies, by name.

    Raises:
        SystemExit: a dependency is not installed.
    """
    found: dict[str, Distribution] = {}
    open_names = [root]
    while open_names:
        name = open_names.pop()
        if name in found:
            continue
        try:
            found[name] = distribution(name)
        except PackageNotFoundError:
            raise SystemExit(f"{name} is not installed here; pip install fedpeft into this environment first") from None
        open_names += list_requirements(found[name])
    return dict(sorted(found.items()))


def format_package_url(name: str, package: Distribution) -> str:
    """Return the package URL."""
    return f"pkg:pypi/{name}@{quote(package.version)}"


def describe_component(name: str, package: Distribution) -> dict[str, Any]:
    """Return a package as a CycloneDX component."""
    metadata = package.metadata
    made: dict[str, Any] = {"type": "library", "name": name, "version": package.version}
    made |= {"purl": format_package_url(name, package), "bom-ref": format_package_url(name, package)}
    if expression := metadata.get("License-Expression"):
        made["licenses"] = [{"expression": expression}]
    elif classified := [
        c.split(" :: ")[-1] for c in metadata.get_all("Classifier") or () if c.startswith("License :: ")
    ]:
        made["licenses"] = [{"license": {"name": text}} for text in classified]
    elif (words := (metadata.get("License") or "").strip().splitlines()) and len(words[0]) < 80:
        made["licenses"] = [{"license": {"name": words[0]}}]
    return made


def build_bill(root: str) -> dict[str, Any]:
    """Return the whole list."""
    packages = find_dependencies(root)
    return {
        "bomFormat": "CycloneDX",
        "specVersion": "1.6",
        "version": 1,
        "metadata": {"component": describe_component(root, packages[root]) | {"type": "application"}},
        "components": [describe_component(name, package) for name, package in packages.items() if name != root],
        "dependencies": [
            {
                "ref": format_package_url(name, package),
                "dependsOn": [format_package_url(n, packages[n]) for n in list_requirements(package)],
            }
            for name, package in packages.items()
        ],
    }


if __name__ == "__main__":
    target = Path(sys.argv[1] if len(sys.argv) > 1 else "sbom.cdx.json")
    made = build_bill(ROOT)
    target.write_text(json.dumps(made, indent=1) + "\n", encoding="utf-8")
    print(f"{target}: {len(made['components'])} packages")

"""python .ci/sbom.py [FILE]: a CycloneDX list of what fedpeft runs on here, from the installed packages' own metadata.

It holds fedpeft and whatever its dependencies lead to in the environment of this Python, with versions and licences;
development tools beside them are left out. The same environment gives the same file (default: sbom.cdx.json).
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


def needs(package: Distribution) -> list[str]:
    """Names of what a package needs in this environment, without extras."""
    found = (Requirement(text) for text in package.requires or ())
    return sorted({canonicalize_name(r.name) for r in found if r.marker is None or r.marker.evaluate({"extra": ""})})


def installed(root: str) -> dict[str, Distribution]:
    """A package and what its dependencies lead to, by name.

    Raises:
        SystemExit: one of them is not installed.
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
        open_names += needs(found[name])
    return dict(sorted(found.items()))


def reference(name: str, package: Distribution) -> str:
    """The package URL."""
    return f"pkg:pypi/{name}@{quote(package.version)}"


def component(name: str, package: Distribution) -> dict[str, Any]:
    """A package as CycloneDX describes it."""
    told = package.metadata
    made: dict[str, Any] = {"type": "library", "name": name, "version": package.version}
    made |= {"purl": reference(name, package), "bom-ref": reference(name, package)}
    if expression := told.get("License-Expression"):
        made["licenses"] = [{"expression": expression}]
    elif classified := [c.split(" :: ")[-1] for c in told.get_all("Classifier") or () if c.startswith("License :: ")]:
        made["licenses"] = [{"license": {"name": text}} for text in classified]
    elif (words := (told.get("License") or "").strip().splitlines()) and len(words[0]) < 80:
        made["licenses"] = [{"license": {"name": words[0]}}]
    return made


def bill(root: str) -> dict[str, Any]:
    """The whole list."""
    packages = installed(root)
    return {
        "bomFormat": "CycloneDX",
        "specVersion": "1.6",
        "version": 1,
        "metadata": {"component": component(root, packages[root]) | {"type": "application"}},
        "components": [component(name, package) for name, package in packages.items() if name != root],
        "dependencies": [
            {"ref": reference(name, package), "dependsOn": [reference(n, packages[n]) for n in needs(package)]}
            for name, package in packages.items()
        ],
    }


if __name__ == "__main__":
    target = Path(sys.argv[1] if len(sys.argv) > 1 else "sbom.cdx.json")
    made = bill(ROOT)
    target.write_text(json.dumps(made, indent=1) + "\n", encoding="utf-8")
    print(f"{target}: {len(made['components'])} packages")

"""python .ci/settings.py: write tests/golden/settings.txt, which lists all settings with defaults and legal ranges."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from fedpeft.parts import Family, families

GOLDEN = Path(__file__).parent.parent / "tests" / "golden" / "settings.txt"


def find_families() -> list[Family[object]]:
    """Return all families of parts, in the order of their names."""
    found = {family.package: family for family in vars(families).values() if isinstance(family, Family)}
    return [family for _, family in sorted(found.items())]


def list_settings() -> Iterator[str]:
    """Yield one line for each setting."""
    for family in find_families():
        for name in family.own_names:
            part: Any = family.part(name)
            for field in dataclasses.fields(part):
                if "bounds" in field.metadata:
                    default = "required" if field.default is dataclasses.MISSING else repr(field.default)
                    yield f"{family.noun} {name}: {field.name} = {default}; {field.metadata['bounds']}"


if __name__ == "__main__":
    GOLDEN.write_text("\n".join(list_settings()) + "\n", encoding="utf-8")

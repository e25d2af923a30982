"""Conformance suite that every part must pass, ours and yours.

    pip install 'fedpeft[test]'
    fedpeft conformance my_rules.py

The command tests all parts of a plugin. In this repository, `python -m pytest` runs the same files on our own parts.
"""

from __future__ import annotations

import dataclasses
from typing import Any

from fedpeft.parts import Family, plugins


def list_tested_parts(family: Family[Any]) -> tuple[str, ...]:
    """Return the names of a group's parts to test: those of the selected plugins, or all of our own."""
    named = plugins.list_named()
    if not named:
        return family.own_names
    return tuple(name for name, plugin in family.find_outside_parts().items() if plugin in named)


def list_required_settings(cls: Any) -> list[str]:
    """Return the settings of a part without defaults; such a part can't be built for a test."""
    missing = dataclasses.MISSING
    return [f.name for f in dataclasses.fields(cls) if f.default is missing and f.default_factory is missing]

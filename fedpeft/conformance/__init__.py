"""The suite that every part must pass, ours and yours.

    pip install 'fedpeft[test]'
    python -m fedpeft.conformance my_rules.py

runs it on the parts of a plugin, whatever families they belong to; in this repository `python -m pytest` runs the same
files on our own.
"""

from __future__ import annotations

import dataclasses
from typing import Any

from fedpeft import plugins
from fedpeft.parts import Family


def list_tested_parts(family: Family[Any]) -> tuple[str, ...]:
    """The parts of a family that the suite is about: those of the plugins that are named, or all of our own."""
    named = plugins.list_named()
    if not named:
        return family.own_names
    return tuple(name for name, plugin in family.find_outside_parts().items() if plugin in named)


def list_required_settings(cls: Any) -> list[str]:
    """The settings of a part that have no defaults: without them nothing can be made to be tested."""
    missing = dataclasses.MISSING
    return [f.name for f in dataclasses.fields(cls) if f.default is missing and f.default_factory is missing]

"""The sections that hooks and measurements add to summary.json, as lines of the console, a report and a model card."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


def section_lines(sections: Mapping[str, Mapping[str, Any]] | None) -> dict[str, str]:
    """Return a line for each number, text or truth value of the sections; lists and mappings have none.

    Args:
        sections: values by label, by the name of the section.
    """
    return {
        f"{name}: {label.replace('_', ' ')}": format_value(value)
        for name, section in (sections or {}).items()
        for label, value in section.items()
        if not isinstance(value, Mapping | list)
    }


def format_value(value: Any) -> str:
    """Return a JSON value as a short text."""
    if value is None:
        return "unknown"
    if isinstance(value, bool):
        return "yes" if value else "no"
    return f"{value:.6g}" if isinstance(value, float) else str(value)

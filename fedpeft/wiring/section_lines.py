"""The sections that hooks and measurements add to summary.json, as lines of the console, a report and a model card."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, TypeVar

from rich.markup import escape

from fedpeft.machine.json_values import check_json
from fedpeft.parts.plugin_files import describe_error

T = TypeVar("T")


def guard(name: str, work: Callable[[], T], say: Callable[[str], None]) -> T | None:
    """Return what a user's hook or measurement gives after training; None: it has failed, and the user is told.

    A mistake in it must not cost the results of a finished run, which could not be resumed with another plugin.
    """
    try:
        return work()
    except Exception as error:  # whatever a user's code raises
        say(f"[bold]note[/]    {escape(f'the section of {name} is left out: {describe_error(error)}')}")
        return None


def compute_section(
    name: str, compute: Callable[[], Mapping[str, Any] | None], say: Callable[[str], None]
) -> Mapping[str, Any] | None:
    """Return the section of a user's hook or measurement; None: it has none, or it has failed."""

    def work() -> Mapping[str, Any] | None:
        section = compute()
        return None if section is None else check_json(section, "a section")

    return guard(name, work, say)


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
    if isinstance(value, float):
        return f"{value:.4g}" if abs(value) < 10_000 else f"{value:.0f}"
    return str(value)

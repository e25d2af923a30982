"""The page of `--help`: flags in groups, with their defaults, legal values and meaning, on two screens."""

from __future__ import annotations

import dataclasses
import textwrap
from collections.abc import Collection, Mapping, Sequence
from typing import Any

from fedpeft.wiring.config import GROUPS, RunConfig

WIDTH, COLUMN = 120, 36
"""Characters of a line, and the column in which meanings begin."""

ASKED = ("-h", "--help")


def is_help_requested(arguments: Sequence[str]) -> bool:
    """Return whether a command line asks for help."""
    return any(word in ASKED for word in arguments)


def format_page(
    usage: str, about: str, options: Mapping[str, str], hidden: Collection[str] = (), more: type | None = None
) -> str:
    """Return the text of the page.

    Args:
        usage: the command.
        about: its purpose.
        options: options of the command itself, with their meaning.
        hidden: settings of a run that have no effect here.
        more: a dataclass of further options.
    """
    lines = [f"usage: {usage}", "", about, ""]
    lines += _format_group("options", [*options.items(), ("-h, --help", "show this page")])
    if more is not None:
        lines += _format_group("server", [_format_row(field) for field in dataclasses.fields(more)])
    fields = {field.name: field for field in dataclasses.fields(RunConfig)}
    for name, members in GROUPS.items():
        lines += _format_group(name, [_format_row(fields[member]) for member in members if member not in hidden])
    lines += ["", "fedpeft describe NAME explains a flag, such as strategy, or a part, such as krum."]
    return "\n".join(lines)


def _format_row(field: dataclasses.Field[Any]) -> tuple[str, str]:
    """Return a flag with its default, and its meaning with the legal values."""
    choices, default = field.metadata["bounds"].choices, field.default
    flag = "--" + field.name.replace("_", "-")
    legal = f" ({', '.join(map(str, choices))})" if choices else ""
    if default is None or default == "" or default is False:
        return flag, field.metadata["help"] + legal
    return f"{flag} {default}", field.metadata["help"] + legal


def _format_group(name: str, rows: Sequence[tuple[str, str]]) -> list[str]:
    """Return a group's lines: its name, and a row for each flag, with its meaning beside it."""
    lines = [f"{name}:"] if rows else []
    for flag, meaning in rows:
        first, *others = textwrap.wrap(meaning, WIDTH - COLUMN)
        lines += [f"  {flag:<{COLUMN - 3}} {first}", *(" " * COLUMN + more for more in others)]
    return lines

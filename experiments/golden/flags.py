"""Settings of a case as words of a command line."""

from __future__ import annotations

from collections.abc import Mapping

Settings = Mapping[str, str | int | float | bool]
"""Flags without dashes (`local_work`) and their values."""


def format_words(settings: Settings) -> list[str]:
    """Return the settings as words of a command line."""
    words = []
    for name, value in settings.items():
        flag = "--" + name.replace("_", "-")
        words += [flag] if value is True else [flag, str(value)]
    return words

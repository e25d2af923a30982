"""Cases are written with the flags of commit 5a23b78; where a commit has other flags, they are translated here.

A commit whose command does not know some of them any more has all of `fedpeft.former_settings`, so one case runs on
both sides of the commit that renames them.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

from fedpeft import former_settings
from fedpeft.former_settings import with_settings as with_settings

Settings = Mapping[str, str | int | float | bool]
"""Flags without dashes (`local_steps`) and their values."""


AS_BEFORE: Settings = {"safeguard": "none", "keep": "last"}
"""Settings that older commits do not know, at the values that say what those commits do."""


def understood(help: str) -> frozenset[str]:
    """The flags that a command's `--help` lists."""
    return frozenset(flag.replace("-", "_") for flag in re.findall(r"^\W*--([a-z][a-z-]*)", help, re.MULTILINE))


def translated(settings: Settings, known: frozenset[str]) -> dict[str, str | int | float | bool]:
    """The settings in the flags of a command that knows these."""
    made = {name: value for name, value in AS_BEFORE.items() if name in known or former(name) in known} | dict(settings)
    gone = former_settings.FORMER.keys() & made.keys() - known
    return former_settings.translated(made) if gone else made


def former(name: str) -> str:
    """The flag that an older one is part of now; empty: it is none of those."""
    merge = former_settings.FORMER.get(name)
    return merge.new if merge else ""


def words(settings: Settings) -> list[str]:
    """The settings as words of a command."""
    found = []
    for name, value in settings.items():
        flag = "--" + name.replace("_", "-")
        found += [flag] if value is True else [flag, str(value)]
    return found

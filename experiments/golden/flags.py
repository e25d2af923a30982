"""Cases are written with the flags of commit 5a23b78; where a commit has other flags, they are translated here.

A line of `MERGES` applies to a commit whose command does not know its old flags any more, so one case runs on both
sides of the commit that renames them. Whoever lands that commit adjusts the texts to what it has made of the flags.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass

Settings = Mapping[str, str | int | float | bool]
"""Flags without dashes (`local_steps`) and their values."""


@dataclass(frozen=True)
class Merge:
    """Flags that have become a part of another one.

    Attributes:
        old: the flags that are gone.
        new: the flag that says it now.
        text: its value, from all of a case's settings.
    """

    old: tuple[str, ...]
    new: str
    text: Callable[[Settings], str]


def with_settings(part: object, **more: object) -> str:
    """The text of a part, `name` or `name(key=value)`, with more settings."""
    text = str(part)
    added = ", ".join(f"{name}={value}" for name, value in more.items())
    return f"{text[:-1]}, {added})" if text.endswith(")") else f"{text}({added})"


def _given(settings: Settings, *names: str) -> dict[str, object]:
    return {name: settings[name] for name in names if name in settings}


def _drift(settings: Settings) -> str:
    parts = [f"fedprox(mu={settings['proximal']})"] if settings.get("proximal") else []
    return " + ".join([*parts, *(["scaffold"] if settings.get("scaffold") else [])])


def _local_work(settings: Settings) -> str:
    if settings.get("local_steps"):
        return f"steps({settings['local_steps']})"
    return f"epochs({settings['local_epochs']})"


def _measure(settings: Settings) -> str:
    parts = [f"validation(every={settings['evaluate_every']})"] if "evaluate_every" in settings else []
    parts += ["pooled"] if settings.get("centralised") else []
    return " + ".join(
        [*parts, *([f"forgetting(dataset={settings['forgetting']})"] if "forgetting" in settings else [])]
    )


def _grid(settings: Settings) -> str:
    address = {"address": settings["ray_address"]} if "ray_address" in settings else {}
    return with_settings(settings.get("grid", "cohort"), **_given(settings, "workers", "executor"), **address)


MERGES = (
    Merge(("profiles",), "clients", lambda s: str(s["profiles"])),
    Merge(("weighting",), "strategy", lambda s: with_settings(s.get("strategy", "fedit"), weighting=s["weighting"])),
    Merge(("proximal", "scaffold"), "drift", _drift),
    Merge(("local_epochs", "local_steps"), "local_work", _local_work),
    Merge(
        ("head_rate", "schedule"),
        "optimizer",
        lambda s: with_settings(s.get("optimizer", "adamw(warmup=8)"), **_given(s, "head_rate", "schedule")),
    ),
    Merge(("stop_at_budget",), "privacy", lambda s: with_settings(s["privacy"], at_budget="sit_out")),
    Merge(("centralised", "forgetting", "evaluate_every"), "measure", _measure),
    Merge(("executor", "workers", "ray_address"), "grid", _grid),
)
"""What the plan for fewer flags makes of them."""


AS_BEFORE: Settings = {"safeguard": "none", "keep": "last"}
"""Settings that older commits do not know, at the values that say what those commits do."""


def understood(help: str) -> frozenset[str]:
    """The flags that a command's `--help` lists."""
    return frozenset(flag.replace("-", "_") for flag in re.findall(r"^\W*--([a-z][a-z-]*)", help, re.MULTILINE))


def translated(settings: Settings, known: frozenset[str]) -> dict[str, str | int | float | bool]:
    """The settings in the flags of a command that knows these."""
    made = {name: value for name, value in AS_BEFORE.items() if name in known} | dict(settings)
    for merge in MERGES:
        gone = [name for name in merge.old if name in made and name not in known]
        if gone:
            made[merge.new] = merge.text(made)
            for name in gone:
                del made[name]
    return made


def words(settings: Settings) -> list[str]:
    """The settings as words of a command."""
    found = []
    for name, value in settings.items():
        flag = "--" + name.replace("_", "-")
        found += [flag] if value is True else [flag, str(value)]
    return found

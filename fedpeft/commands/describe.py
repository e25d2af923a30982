"""fedpeft describe [NAME]: the parts that a run is put together from, and what each one does and takes."""

from __future__ import annotations

import dataclasses
import difflib
import inspect
import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import tyro
from rich.markup import escape
from rich.table import Table

from fedpeft.errors import ConfigError
from fedpeft.machine.terminal import Console
from fedpeft.parts import Bounds, name_of, plugins
from fedpeft.parts.families import (
    METHOD_ALIASES,
    METRICS,
    PEFT_METHODS,
    PRECISION_RULES,
    PRESETS,
    TASKS,
    strategies,
)
from fedpeft.reporting.command import run_tool, start_command
from fedpeft.wiring import catalogue
from fedpeft.wiring.config import RunConfig

FAMILIES = {**catalogue.FAMILIES, "task": (TASKS,), "metrics": (METRICS,)}
"""Which families a flag's parts are of: those of `simulate`, of `serve` and of `evaluate`."""

VERDICTS = Path(__file__).with_name("verdicts.json")
"""Verdicts of the registered study by flag and part; `python -m experiments.claims --write` writes the file."""

SETTINGS = {field.name: field for field in dataclasses.fields(RunConfig)}


@dataclass(frozen=True)
class Command:
    """List the parts of a run, or show what one of them does and which settings it takes."""

    name: Annotated[
        str,
        tyro.conf.Positional,
        tyro.conf.arg(metavar="[NAME]", help="a flag, such as strategy or rounds, a part, such as krum, or a preset"),
    ] = ""
    plugin: Annotated[
        tuple[str, ...],
        tyro.conf.UseAppendAction,
        tyro.conf.arg(metavar="FILE", help="parts of your own: a file, folder or installed package"),
    ] = ()


def find_parts(name: str) -> list[tuple[str, type]]:
    """Return all parts called `name`, each with the flag that takes it."""
    return [(flag, f.part(name)) for flag, families in FAMILIES.items() for f in families if name in f.names]


def create_unknown_error(name: str) -> ConfigError:
    """Return the error for an unknown name, with the closest known name."""
    for families in FAMILIES.values():
        for family in families:
            if name.lower() in family.elsewhere:
                return ConfigError(f"FP1153 there is no {family.noun} {name!r}: {family.elsewhere[name.lower()]}")
    known = [*FAMILIES, *PRESETS, *SETTINGS, *(n for families in FAMILIES.values() for f in families for n in f.names)]
    guess = "".join(f"did you mean {match!r}? " for match in difflib.get_close_matches(name.lower(), known, n=1))
    return ConfigError(f"FP1154 there is no part {name!r}; {guess}fedpeft describe lists them all")


def build_overview(flags: list[str]) -> Table:
    """Return a table with one row per part: its flag, its name and its first sentence."""
    sums = flags == ["strategy"]
    columns = ("flag", "part", *(["sum of clients"] if sums else []), "what it is")
    table = Table(*columns, box=None, padding=(0, 2, 0, 0))
    for flag in flags:
        words = [(n, (inspect.getdoc(f.part(n)) or "").split("\n")[0], f) for f in FAMILIES[flag] for n in f.names]
        rows = [(n, f"{text} Stands in front: {n} | small." if f is PRECISION_RULES else text) for n, text, f in words]
        if flag == "codec":
            rows += [(name, f"A preset: {text}.") for name, text in PRESETS.items()]
        for number, (name, text) in enumerate(rows or [("", "yours: name their file by --plugin")]):
            whether = [_sum_of_clients(strategies.part(name))] if sums else []
            table.add_row(f"--{flag}" if number == 0 else "", name, *whether, escape(text))
    return table


def _sum_of_clients(strategy: type) -> str:
    """Return whether the rule works with sums that hide single updates, in a word."""
    from fedpeft.aggregation.shared_sums import is_sum_of_clients

    return "yes" if is_sum_of_clients(strategy) else "no"


def show(flag: str, cls: type, console: Console) -> None:
    """Print a part's documentation and its settings."""
    module = sys.modules[cls.__module__]
    origin = plugins.find_origin(cls)
    text = (inspect.getdoc(module) if origin is None else None) or inspect.getdoc(cls) or ""
    console.print(f"[bold]--{flag} {name_of(cls)}[/]\n")
    console.print(text, markup=False, highlight=False, soft_wrap=True)
    if flag == "strategy":
        console.print(f"\nsum of clients (as --privacy secure_sum needs it): {_sum_of_clients(cls)}", highlight=False)
    if origin is not None:
        console.print(f"\nfrom {origin}", markup=False, highlight=False, soft_wrap=True)
    else:
        show_verdicts(flag, name_of(cls), console)
    show_settings([field for field in dataclasses.fields(cls) if "help" in field.metadata], console)


def show_verdicts(flag: str, name: str, console: Console) -> None:
    """Print what the registered study has found about a part; nothing if no claim about it has results."""
    notes = json.loads(VERDICTS.read_text(encoding="utf-8"))
    texts = [note["text"] for note in notes if (note["flag"], note["part"]) == (flag, name)]
    if texts:
        console.print("\nverdicts of the registered study (docs/claims.md):", highlight=False)
    for text in texts:
        console.print(f"- {text}", markup=False, highlight=False, soft_wrap=True)


def show_settings(fields: Sequence[dataclasses.Field[Any]], console: Console) -> None:
    """Print a table of settings, one per row."""
    settings = Table("setting", "default", "legal", "meaning", box=None, padding=(0, 2, 0, 0))
    for field in fields:
        default = "must be given" if field.default is dataclasses.MISSING else repr(field.default)
        settings.add_row(
            field.name, escape(default), escape(format_range(field.metadata["bounds"])), escape(field.metadata["help"])
        )
    if settings.row_count:
        console.print()
        console.print(settings)


def format_range(bounds: Bounds) -> str:
    """Return a setting's legal range in words; empty: every value of its type."""
    if bounds.choices:
        return ", ".join(map(str, bounds.choices))
    ends = (("at least", bounds.low), ("above", bounds.above), ("at most", bounds.high), ("below", bounds.below))
    return ", ".join(f"{word} {end:,}" for word, end in ends if end is not None)


def describe(name: str, console: Console) -> None:
    """Print everything that is called `name`: parts, a preset of --codec, a flag without parts.

    Raises:
        ConfigError: nothing is.
    """
    plain = name.replace("-", "_")
    parts = find_parts(name)
    if not (parts or name in PRESETS or plain in SETTINGS):
        method = PEFT_METHODS.complete_name(name)
        parts = find_parts(method) if method in PEFT_METHODS.names else []
        if parts:
            console.print(f"{name} stands for {METHOD_ALIASES.get(name, method)}.\n", markup=False, highlight=False)
    for flag, cls in parts:
        show(flag, cls, console)
    if name in PRESETS:
        console.print(f"[bold]--codec {name}[/]\n\nA preset: {PRESETS[name]}", highlight=False, soft_wrap=True)
    if plain in SETTINGS:
        console.print(f"[bold]--{plain.replace('_', '-')}[/]", highlight=False)
        show_settings([SETTINGS[plain]], console)
    if not (parts or name in PRESETS or plain in SETTINGS):
        raise create_unknown_error(name)


def main(arguments: list[str] | None = None) -> int:
    """Run the command; return its exit code: 0, or 2 for an unknown name."""
    return run_tool(Command, _run_describe, arguments)


def _run_describe(command: Command, console: Console) -> None:
    if not command.name or command.name in FAMILIES:
        console.print(build_overview([command.name] if command.name else list(FAMILIES)))
    if command.name and (command.name not in FAMILIES or find_parts(command.name)):
        describe(command.name, console)


if __name__ == "__main__":
    start_command("commands.describe")

"""python -m fedpeft.describe [NAME]: the parts that a run is put together from, and what each one does and takes."""

from __future__ import annotations

import dataclasses
import difflib
import inspect
import sys
from dataclasses import dataclass
from typing import Annotated, Any

import tyro
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from fedpeft.aggregation.head_start import HEADS
from fedpeft.aggregation.server_optimizer import SERVER_OPTIMIZERS
from fedpeft.aggregation.strategy import strategies
from fedpeft.clients.attack import ATTACKS
from fedpeft.communication.precision_rule import PRECISION_RULES
from fedpeft.communication.steps import codecs
from fedpeft.data.partition import PARTITIONS
from fedpeft.data.rows import DATASETS
from fedpeft.errors import ConfigError, FedpeftError
from fedpeft.models.base_model import MODELS
from fedpeft.parts import Bounds, Family
from fedpeft.peft.family import PEFT_METHODS
from fedpeft.privacy.mechanism import MECHANISMS

FAMILIES: dict[str, tuple[Family[Any], ...]] = {
    "dataset": (DATASETS,),
    "partition": (PARTITIONS,),
    "model": (MODELS,),
    "peft": (PEFT_METHODS,),
    "head": (HEADS,),
    "strategy": (strategies,),
    "server-optimizer": (SERVER_OPTIMIZERS,),
    "codec": (codecs, PRECISION_RULES),
    "privacy": (MECHANISMS,),
    "attack": (ATTACKS,),
}
"""The flags of `python -m fedpeft.simulate` whose values are parts."""


@dataclass(frozen=True)
class Command:
    """List the parts of a run, or show what one of them does and which settings it takes."""

    name: Annotated[
        str,
        tyro.conf.Positional,
        tyro.conf.arg(metavar="[NAME]", help="a flag, such as strategy, or a part, such as krum"),
    ] = ""


def parts_named(name: str) -> list[tuple[str, type]]:
    """All parts called `name`, with the flag that takes them.

    Raises:
        ConfigError: there is none.
    """
    found = [(flag, f.part(name)) for flag, families in FAMILIES.items() for f in families if name in f.names]
    if not found:
        known = [*FAMILIES, *(n for families in FAMILIES.values() for f in families for n in f.names)]
        guess = "".join(f"did you mean {match!r}? " for match in difflib.get_close_matches(name, known, n=1))
        raise ConfigError(f"there is no part {name!r}; {guess}python -m fedpeft.describe lists them all")
    return found


def overview(flags: list[str]) -> Table:
    """One row per part: the flag, its name, the first sentence about it."""
    table = Table("flag", "part", "what it is", box=None, padding=(0, 2, 0, 0))
    for flag in flags:
        for number, (name, cls) in enumerate((n, f.part(n)) for f in FAMILIES[flag] for n in f.names):
            table.add_row(f"--{flag}" if number == 0 else "", name, escape((inspect.getdoc(cls) or "").split("\n")[0]))
    return table


def show(flag: str, cls: type, console: Console) -> None:
    """A part: what its module says, and its settings."""
    text = inspect.getdoc(sys.modules[cls.__module__]) or inspect.getdoc(cls) or ""
    console.print(f"[bold]--{flag} {cls.__module__.rpartition('.')[2].lstrip('_')}[/]\n")
    console.print(text, markup=False, highlight=False, soft_wrap=True)
    settings = Table("setting", "default", "legal", "meaning", box=None, padding=(0, 2, 0, 0))
    for field in dataclasses.fields(cls):
        if "help" not in field.metadata:
            continue
        default = "must be given" if field.default is dataclasses.MISSING else repr(field.default)
        settings.add_row(
            field.name, escape(default), escape(legal(field.metadata["bounds"])), escape(field.metadata["help"])
        )
    if settings.row_count:
        console.print()
        console.print(settings)


def legal(bounds: Bounds) -> str:
    """A setting's range in words; empty: anything of its type."""
    if bounds.choices:
        return ", ".join(map(str, bounds.choices))
    ends = (("at least", bounds.low), ("above", bounds.above), ("at most", bounds.high), ("below", bounds.below))
    return ", ".join(f"{word} {end:,}" for word, end in ends if end is not None)


def main(arguments: list[str] | None = None) -> int:
    """The command; its exit code: 0, or 2 for a name that is unknown."""
    command = tyro.cli(Command, args=arguments, prog="python -m fedpeft.describe")
    console = Console()
    try:
        if not command.name or command.name in FAMILIES:
            console.print(overview([command.name] if command.name else list(FAMILIES)))
        else:
            for flag, cls in parts_named(command.name):
                show(flag, cls, console)
    except FedpeftError as error:
        Console(stderr=True).print(f"[bold red]error:[/] {escape(str(error))}", highlight=False, soft_wrap=True)
        return 2
    return 0


if __name__ == "__main__":
    from fedpeft.simulate import quiet_libraries

    quiet_libraries()
    sys.exit(main())

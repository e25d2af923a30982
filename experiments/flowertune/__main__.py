"""`python -m experiments.flowertune`: the FlowerTune template against fedpeft on equal work."""

from __future__ import annotations

import dataclasses
import json
import sys
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path

import numpy as np
import tyro
from rich.console import Console
from rich.table import Table

from experiments import exit_on_error
from experiments.flowertune.settings import Settings, SideResult
from experiments.flowertune.sides import run_side
from fedpeft.study.statistics import compute_half_width


@dataclasses.dataclass(frozen=True)
class Command:
    """A comparison of both sides."""

    settings: tyro.conf.OmitArgPrefixes[Settings] = dataclasses.field(default_factory=Settings)
    only: str = ""
    """template or ours; empty: both"""
    output: Path | None = None
    """a .jsonl file that a line per run is added to; runs that it holds already are not run again"""


SIDES = ("template", "ours")
"""Both sides; the first one is the reference."""


def build_table(found: list[SideResult]) -> Table:
    """Return the mean, least and most of each side over the seeds, and the paired difference."""
    sides = {side: {f.seed: f for f in found if f.side == side} for side in SIDES}
    sides = {side: seeds for side, seeds in sides.items() if seeds}
    both = sorted(set.intersection(*map(set, sides.values()))) if len(sides) == len(SIDES) else []
    shown = Table("", *sides, *(["ours - template (95 %, paired)"] if len(both) > 1 else []))
    for field in dataclasses.fields(SideResult)[2:]:
        values = {side: {seed: getattr(f, field.name) for seed, f in seeds.items()} for side, seeds in sides.items()}
        cells = [_format_cell(list(each.values())) for each in values.values()]
        if len(both) > 1:
            cells.append(_format_difference([values["ours"][seed] - values["template"][seed] for seed in both]))
        shown.add_row(field.name.replace("_", " "), *cells)
    return shown


def _format_difference(values: list[float]) -> str:
    mean, half = sum(values) / len(values), compute_half_width(np.array(values, np.float64), 0.95, 2)
    return f"{_format_number(mean, '+')} ({_format_number(mean - half, '+')} to {_format_number(mean + half, '+')})"


def _format_cell(values: list[float]) -> str:
    mean = _format_number(sum(values) / len(values))
    return mean if len(values) == 1 else f"{mean} ({_format_number(min(values))} to {_format_number(max(values))})"


def _format_number(value: float, sign: str = "") -> str:
    return format(value, f"{sign},.0f" if abs(value) >= 1000 else f"{sign},.3f")


def load_found(command: Command) -> dict[tuple[str, int], SideResult]:
    """Return the results in the file for these settings, by side and seed."""
    if command.output is None or not command.output.exists():
        return {}
    made = {}
    for line in map(json.loads, command.output.read_text(encoding="utf-8").splitlines()):
        if {**line.pop("of"), "seeds": 0} == {**dataclasses.asdict(command.settings), "seeds": 0}:
            made[line["side"], line["seed"]] = SideResult(**line)
    return made


def main(command: Command) -> int:
    """Run both sides, print the table, and write the results."""
    console, found, before = Console(), [], load_found(command)
    for seed in range(command.settings.seeds):
        for side in SIDES:
            if command.only not in ("", side):
                continue
            if (side, seed) in before:
                found.append(before[side, seed])
                continue
            with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as alone:
                found.append(alone.submit(run_side, side, command.settings, seed).result())
            line = json.dumps(dataclasses.asdict(found[-1]) | {"of": dataclasses.asdict(command.settings)})
            console.print(line, highlight=False, soft_wrap=True)
            if command.output is not None:
                with open(command.output, "a", encoding="utf-8") as file:
                    file.write(line + "\n")
    console.print(build_table(found))
    return 0


if __name__ == "__main__":
    with exit_on_error():
        sys.exit(main(tyro.cli(Command, description=__doc__)))

"""`python -m experiments.aggregation`: time and memory of the aggregation rules, and the errors of their SVDs."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch
import tyro

from experiments.aggregation.studies import STUDIES, Row


@dataclass
class Settings:
    """What to measure."""

    only: Literal["costs", "choices", "svd", "rules", "memory"] | None = None
    """one study; all by default"""
    repeats: int = 3
    """interleaved repeats, of which the median is taken"""
    output: Path | None = None
    """a .jsonl file that the rows are written to"""


def table(rows: list[Row]) -> str:
    """The rows as a Markdown table; the columns are the keys of all rows in order of appearance."""
    columns = list(dict.fromkeys(key for row in rows for key in row))
    lines = [columns, ["---"] * len(columns), *([_cell(row.get(c, "")) for c in columns] for row in rows)]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def _cell(value: str | float | int) -> str:
    return f"{value:.3g}" if isinstance(value, float) else str(value)


def main(settings: Settings) -> None:
    """Run the studies on one thread and print a table of each."""
    torch.set_num_threads(1)
    everything: list[Row] = []
    for name, study in STUDIES.items():
        if settings.only in (None, name):
            rows = list(study(settings.repeats))
            everything += [{"study": name, **row} for row in rows]
            print(f"\n{name}: {study.__doc__}\n\n{table(rows)}", flush=True)
    if settings.output is not None:
        settings.output.write_text("".join(json.dumps(row) + "\n" for row in everything))


if __name__ == "__main__":
    main(tyro.cli(Settings, description=__doc__))

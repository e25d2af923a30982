"""`python -m experiments.aggregation`: time and memory of the aggregation rules, and the errors of their SVDs."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch
import tyro

from experiments.aggregation.studies import STUDIES, Row

README = Path(__file__).parent / "README.md"


@dataclass
class Settings:
    """The measurements to run."""

    only: Literal["costs", "choices", "svd", "rules", "memory"] | None = None
    """one study; all by default"""
    repeats: int = 3
    """interleaved repeats, of which the median is taken"""
    output: Path | None = None
    """a .jsonl file: the rows of the studies that were run replace those that it holds"""
    readme: bool = False
    """measure nothing; write the tables of results.jsonl into the README"""


def main(settings: Settings) -> None:
    """Run the studies on one thread and print a table of each."""
    if settings.readme:
        README.write_text(insert_tables(README.read_text(), load(README.parent / "results.jsonl")))
        return
    torch.set_num_threads(1)
    for name, study in STUDIES.items():
        if settings.only in (None, name):
            rows = list(study(settings.repeats))
            print(f"\n{name}: {study.__doc__}\n\n{format_table(rows)}", flush=True)
            if settings.output is not None:
                save(settings.output, load(settings.output) | {name: rows})


def load(file: Path) -> dict[str, list[Row]]:
    """Return the rows by study; empty if the file does not exist."""
    results: dict[str, list[Row]] = {}
    for line in file.read_text().splitlines() if file.exists() else ():
        row = json.loads(line)
        results.setdefault(row.pop("study"), []).append(row)
    return results


def save(file: Path, results: dict[str, list[Row]]) -> None:
    """Write one JSON line per row."""
    lines = [json.dumps({"study": name, **row}) for name in STUDIES for row in results.get(name, [])]
    file.write_text("".join(line + "\n" for line in lines))


def insert_tables(text: str, results: dict[str, list[Row]]) -> str:
    """Return the README with a new table after each of its `<!-- study -->` marks, replacing the old ones."""
    blocks: list[str] = []
    for block in text.split("\n\n"):
        if not block.startswith("| "):
            blocks.append(block.rstrip())
        name = block.strip().removeprefix("<!-- ").removesuffix(" -->")
        if name in results:
            blocks.append(format_table(group_by_model(results[name]) if name == "rules" else results[name]))
    return "\n\n".join(blocks) + "\n"


def group_by_model(rows: list[Row]) -> list[Row]:
    """Return one row per strategy, with its seconds for each model in columns."""
    wide: dict[str, Row] = {}
    for row in rows:
        line = wide.setdefault(str(row["strategy"]), {"strategy": row["strategy"], "ranks": row["ranks"]})
        line[str(row["model"])] = row["seconds"]
    return list(wide.values())


def format_table(rows: list[Row]) -> str:
    """Return the rows as a Markdown table; its columns are the keys of all rows in order of appearance."""
    columns = list(dict.fromkeys(key for row in rows for key in row))
    lines = [columns, ["---"] * len(columns), *([_format_cell(row.get(c, "")) for c in columns] for row in rows)]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def _format_cell(value: str | float | int) -> str:
    return f"{value:.3g}" if isinstance(value, float) else str(value)


if __name__ == "__main__":
    main(tyro.cli(Settings, description=__doc__))

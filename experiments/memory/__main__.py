"""`python -m experiments.memory`: peak memory of the default run with 100, 1,000 and 10,000 clients."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import tyro
from rich.console import Console
from rich.table import Table

from experiments import write_between

README = Path(__file__).with_name("README.md")
BEGIN, END = "<!-- results: begin -->", "<!-- results: end -->"

TARGET_GB = 1.5


@dataclass(frozen=True)
class Settings:
    """The measurements to run."""

    clients: tuple[int, ...] = (100, 1_000, 10_000)
    """numbers of clients, one run each"""
    rounds: int = 3
    """rounds of each run"""
    cohort: int = 20
    """clients of a round"""
    dataset: str = "20newsgroups"
    """10,000 clients of it have about one row each"""
    partition: str = "iid"
    """how rows lie on clients; iid has no empty client even with one row each"""
    workers: int = 0
    """worker processes; 0: one per core"""
    output: Path | None = None
    """a .jsonl file that a line per run is added to"""
    write_readme: bool = False
    """put the table into the README of this experiment"""


def simulate(settings: Settings, clients: int) -> dict[str, Any]:
    """Run one simulation in its own process and return its summary with the peak memory (PSS of all processes).

    Raises:
        RuntimeError: the run failed.
    """
    with tempfile.TemporaryDirectory() as folder:
        flags = {
            "clients": clients,
            "rounds": settings.rounds,
            "cohort": settings.cohort,
            "dataset": settings.dataset,
            "partition": settings.partition,
            "workers": settings.workers,
            "peft": "lora(layers=2)",
            "output": Path(folder) / "run",
        }
        command = [sys.executable, "-m", "fedpeft.simulate", *(f"--{name}={value}" for name, value in flags.items())]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode:
            raise RuntimeError(f"{clients} clients: {done.stderr.strip() or done.stdout.strip()}")
        summary: dict[str, Any] = json.loads((Path(folder) / "run" / "summary.json").read_text())
    return summary


COLUMNS = ("clients", "peak memory (PSS, all processes), GB", "seconds per round", "seconds in all")


def format_cells(summary: dict[str, Any]) -> tuple[str, ...]:
    """Format a run as the cells of a row."""
    return (
        f"{summary['clients']:,}",
        f"{(summary['peak_memory_bytes'] or 0) / 1e9:.2f}",
        f"{summary['seconds_per_round']:.1f}",
        f"{summary['seconds']:.0f}",
    )


def format_verdict(summaries: list[dict[str, Any]]) -> str:
    """Return a sentence that compares the peaks with the target and with each other."""
    peaks = [(s["peak_memory_bytes"] or 0) / 1e9 for s in summaries]
    return (
        f"most: {max(peaks):.2f} GB (target: under {TARGET_GB} GB); "
        f"the last run takes {peaks[-1] / peaks[0]:.2f} times the memory of the first"
    )


def write_readme(summaries: list[dict[str, Any]]) -> None:
    """Put the table between the markers of the README."""
    hardware = summaries[0]["hardware"]
    rows = [COLUMNS, ("---:",) * len(COLUMNS), *map(format_cells, summaries)]
    text = "\n".join("| " + " | ".join(row) + " |" for row in rows)
    note = f"{hardware['cpu']}, {hardware['workers']} workers; {format_verdict(summaries)}."
    write_between(README, BEGIN, END, f"{text}\n\n{note}")


def main(settings: Settings) -> int:
    """Run all sizes and print a table; return 1 if a run failed."""
    console = Console()
    os.environ["COLUMNS"] = "120"
    shown = Table(*COLUMNS)
    summaries = []
    for clients in settings.clients:
        try:
            summary = simulate(settings, clients)
        except RuntimeError as error:
            print(error, file=sys.stderr)
            return 1
        summaries.append(summary)
        shown.add_row(*format_cells(summary))
        console.print(f"{clients:,} clients: {format_cells(summary)[1]} GB", highlight=False)
        if settings.output is not None:
            with open(settings.output, "a", encoding="utf-8") as file:
                file.write(json.dumps(summary) + "\n")
    console.print(shown)
    console.print(format_verdict(summaries), highlight=False)
    if settings.write_readme:
        write_readme(summaries)
    return 0


if __name__ == "__main__":
    sys.exit(main(tyro.cli(Settings, description=__doc__)))

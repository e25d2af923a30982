"""The cost of very many clients: `python -m experiments.population`, 1,000 to 1,000,000 clients, a cohort of 100.

Runs `fedpeft simulate` with the partition `resample`, once for each number of clients. Reads set-up time (all
phases before the first round), seconds per round, peak memory (PSS of all processes) and the bytes of the last
checkpoint from the run's records. Also measures the processor time of the server's process, which is meaningful on a
busy machine too. It excludes workers, whose parent process does not wait for them. Rounds should cost the same for
every number of clients.

    python -m experiments.population --clients 1000 1000000 --dataset tiny
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median
from typing import Any

import tyro

from experiments import exit_on_error, measure_child_seconds
from fedpeft.errors import ConfigError, RunError
from fedpeft.models.kernels import get_cpu_name

ROUNDS = "rounds"
"""The phase that ends the set-up."""


@dataclass(frozen=True)
class Settings:
    """The runs to make."""

    clients: tuple[int, ...] = (1_000, 10_000, 100_000, 1_000_000)
    """numbers of clients, one run each"""
    cohort: int = 100
    """clients of a round"""
    rows: int = 20
    """examples per client"""
    rounds: int = 5
    """rounds per run"""
    dataset: str = "20newsgroups"
    """whose rows are drawn"""
    tokens: int = 32
    """texts are cut to so many: less work in training, and the same beside it"""
    workers: int = 2
    """worker processes"""
    output: Path | None = None
    """a .jsonl file that a line per run is added to"""


@dataclass(frozen=True)
class Cost:
    """The cost of one run; `round_seconds` excludes the first round, which loads models into workers."""

    clients: int
    setup_seconds: float
    prepare_seconds: float
    round_seconds: float
    peak_memory_bytes: int
    checkpoint_bytes: int
    rounds: list[float]
    processor_seconds: float = 0.0

    @classmethod
    def read(cls, folder: Path, processor_seconds: float = 0.0) -> Cost:
        """Read the cost of a finished run."""
        summary: dict[str, Any] = json.loads((folder / "summary.json").read_text())
        lines = [json.loads(line) for line in (folder / "rounds.jsonl").read_text().splitlines()]
        phases = list(summary["phases"].items())
        before = [name for name, _ in phases].index(ROUNDS)
        seconds = [line["seconds"] for line in lines if line["round"] > 0]
        prepared = next((line["seconds"] for line in lines if line["round"] == 0), 0.0)
        return cls(
            clients=summary["clients"],
            setup_seconds=sum(spent for _, spent in phases[:before]),
            prepare_seconds=prepared or 0.0,
            round_seconds=median(seconds[1:] or seconds),
            peak_memory_bytes=summary["peak_memory_bytes"] or 0,
            checkpoint_bytes=sum(file.stat().st_size for file in (folder / "checkpoint").iterdir()),
            rounds=seconds,
            processor_seconds=processor_seconds,
        )


def measure_run(settings: Settings, clients: int) -> Cost:
    """Measure one run in its own processes.

    Raises:
        RunError: the run has failed.
    """
    with tempfile.TemporaryDirectory() as folder:
        flags = {
            "clients": clients,
            "cohort": settings.cohort,
            "partition": f"resample(rows={settings.rows})",
            "rounds": settings.rounds,
            "dataset": settings.dataset,
            "tokens": settings.tokens,
            "peft": "lora(layers=2)",
            "workers": settings.workers,
            "measure": f"validation(every={settings.rounds})",
            "output": Path(folder) / "run",
        }
        command = [sys.executable, "-m", "fedpeft.simulate", *(f"--{name}={value}" for name, value in flags.items())]
        before = measure_child_seconds()
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode:
            said = (done.stderr or done.stdout).strip().splitlines() or [f"exit code {done.returncode}"]
            raise RunError(f"the run of {clients:,} clients has failed: {said[-1]}")
        return Cost.read(Path(folder) / "run", measure_child_seconds() - before)


HEAD = (
    "clients",
    "set-up (s)",
    "of it, asking clients (s)",
    "a round (s)",
    "processor time of the server (s)",
    "memory (GB)",
    "checkpoint (kB)",
)


def format_row(cells: tuple[str, ...]) -> str:
    """Format a line of a Markdown table."""
    return "| " + " | ".join(cells) + " |"


def format_cells(cost: Cost) -> tuple[str, ...]:
    """Format a run as the cells of a row."""
    return (
        f"{cost.clients:,}",
        f"{cost.setup_seconds:.1f}",
        f"{cost.prepare_seconds:.1f}",
        f"{cost.round_seconds:.2f}",
        f"{cost.processor_seconds:.1f}",
        f"{cost.peak_memory_bytes / 1e9:.2f}",
        f"{cost.checkpoint_bytes / 1e3:.0f}",
    )


def main(settings: Settings) -> None:
    """Run all sizes and print the table.

    Raises:
        ConfigError, RunError: a setting is illegal; a run has failed.
    """
    if not settings.clients or min(settings.clients) < settings.cohort or settings.cohort < 1:
        raise ConfigError(
            f"clients={settings.clients}: each number must be at least that of the cohort, which must be 1"
        )
    print(format_row(HEAD), format_row(("---:",) * len(HEAD)), sep="\n")
    for clients in settings.clients:
        cost = measure_run(settings, clients)
        print(format_row(format_cells(cost)), flush=True)
        if settings.output is not None:
            load = round(os.getloadavg()[0], 1)
            with open(settings.output, "a", encoding="utf-8") as file:
                file.write(json.dumps({**asdict(cost), "dataset": settings.dataset, "load": load}) + "\n")
    print(f"\n{get_cpu_name()}, {settings.workers} workers, load average {os.getloadavg()[0]:.1f} at the end")


if __name__ == "__main__":
    with exit_on_error():
        main(tyro.cli(Settings, description=__doc__))

"""The growth of cost: `python -m experiments.growth`, over clients, the cohort and the adapter's parameters.

Runs `fedpeft simulate` with the partition `resample` at several sizes of each, while the other two keep their middle
size. Reads these costs from the run's records: set-up time (all phases before the first round), seconds per round,
peak memory (PSS of all processes), bytes per round in both directions, and the bytes of the last checkpoint. Also
measures the processor time of the server's process, which is meaningful on a busy machine too. It excludes workers,
whose parent process does not wait for them.

The second table fits cost = c * size^a for each cost and axis, by least squares on the logarithms of the medians, and
shows the exponent a, with the cost that the fit predicts at ten times the largest size.

    python -m experiments.growth
    python -m experiments.growth --clients 1000 1000000 --cohorts 100 --ranks 32 --repeats 1
"""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, astuple, dataclass, replace
from pathlib import Path
from statistics import linear_regression, median
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

    clients: tuple[int, ...] = (1_000, 30_000, 1_000_000)
    """numbers of clients, in ascending order"""
    cohorts: tuple[int, ...] = (10, 100, 1_000)
    """numbers of clients in a round, in ascending order"""
    ranks: tuple[int, ...] = (4, 32, 256)
    """ranks of LoRA, which set the number of parameters, in ascending order"""
    repeats: int = 3
    """runs of each size, interleaved"""
    rows: int = 20
    """examples per client"""
    rounds: int = 4
    """rounds per run"""
    dataset: str = "tiny"
    """whose rows are drawn"""
    tokens: int = 16
    """texts are cut to so many: less work in training, and the same beside it"""
    workers: int = 2
    """worker processes"""
    output: Path | None = None
    """a .jsonl file that a line per run is added to"""


@dataclass(frozen=True)
class Size:
    """The size of a run."""

    clients: int
    cohort: int
    rank: int


@dataclass(frozen=True)
class Cost:
    """The cost of one run; `round_seconds` excludes the first round, which loads models into workers."""

    parameters: int
    setup_seconds: float
    prepare_seconds: float
    round_seconds: float
    processor_seconds: float
    peak_memory_bytes: int
    round_bytes: int
    checkpoint_bytes: int

    @classmethod
    def read(cls, folder: Path, processor_seconds: float = 0.0) -> Cost:
        """Read the cost of a finished run."""
        summary: dict[str, Any] = json.loads((folder / "summary.json").read_text())
        lines = [json.loads(line) for line in (folder / "rounds.jsonl").read_text().splitlines()]
        phases = list(summary["phases"].items())
        before = [name for name, _ in phases].index(ROUNDS)
        rounds = [line for line in lines if line["round"] > 0]
        prepared = next((line["seconds"] for line in lines if line["round"] == 0), 0.0)
        return cls(
            parameters=summary["parameters"],
            setup_seconds=sum(spent for _, spent in phases[:before]),
            prepare_seconds=prepared or 0.0,
            round_seconds=median(line["seconds"] for line in rounds[1:] or rounds),
            processor_seconds=processor_seconds,
            peak_memory_bytes=summary["peak_memory_bytes"] or 0,
            round_bytes=int(median(line["uplink_bytes"] + line["downlink_bytes"] for line in rounds)),
            checkpoint_bytes=sum(file.stat().st_size for file in (folder / "checkpoint").iterdir()),
        )


SHOWN: Mapping[str, Callable[[Cost], float]] = {
    "set-up (s)": lambda cost: cost.setup_seconds,
    "of it, asking clients (s)": lambda cost: cost.prepare_seconds,
    "a round (s)": lambda cost: cost.round_seconds,
    "processor time of the server (s)": lambda cost: cost.processor_seconds,
    "memory (GB)": lambda cost: cost.peak_memory_bytes / 1e9,
    "a round's bytes (MB)": lambda cost: cost.round_bytes / 1e6,
    "checkpoint (MB)": lambda cost: cost.checkpoint_bytes / 1e6,
}
"""The columns of costs."""


def list_axes(settings: Settings) -> dict[str, list[Size]]:
    """Return the sizes of each axis; all axes share the middle size.

    Raises:
        ConfigError: an axis is empty or not ascending, or a cohort is larger than the population.
    """
    axes = {"clients": settings.clients, "cohorts": settings.cohorts, "ranks": settings.ranks}
    for name, sizes in axes.items():
        if not sizes or list(sizes) != sorted(set(sizes)) or sizes[0] < 1:
            raise ConfigError(f"{name}={sizes} must be numbers of at least 1, in ascending order")
    clients, cohorts, ranks = (sizes[len(sizes) // 2] for sizes in axes.values())
    middle = Size(clients, cohorts, ranks)
    made = {
        "clients": [replace(middle, clients=n) for n in settings.clients],
        "cohort": [replace(middle, cohort=n) for n in settings.cohorts],
        "parameters": [replace(middle, rank=n) for n in settings.ranks],
    }
    for size in list_distinct(made.values()):
        if size.cohort > size.clients:
            raise ConfigError(
                f"a cohort of {size.cohort:,} is larger than its population of {size.clients:,} clients; give more "
                "clients, or smaller cohorts"
            )
    return made


def list_distinct(axes: Iterable[Sequence[Size]]) -> list[Size]:
    """Return the sizes of all axes, each once."""
    return list(dict.fromkeys(size for sizes in axes for size in sizes))


def measure_run(settings: Settings, size: Size) -> Cost:
    """Measure one run in its own processes.

    Raises:
        RunError: the run has failed.
    """
    with tempfile.TemporaryDirectory() as folder:
        flags = {
            "clients": size.clients,
            "cohort": size.cohort,
            "partition": f"resample(rows={settings.rows})",
            "rounds": settings.rounds,
            "dataset": settings.dataset,
            "tokens": settings.tokens,
            "peft": f"lora(layers=2, rank={size.rank})",
            "workers": settings.workers,
            "codec": "fp32",
            "measure": f"validation(every={settings.rounds})",
            "output": Path(folder) / "run",
        }
        command = [sys.executable, "-m", "fedpeft.simulate", *(f"--{name}={value}" for name, value in flags.items())]
        before = measure_child_seconds()
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode:
            said = (done.stderr or done.stdout).strip().splitlines() or [f"exit code {done.returncode}"]
            raise RunError(f"the run of {size} has failed: {said[-1]}")
        return Cost.read(Path(folder) / "run", measure_child_seconds() - before)


@dataclass(frozen=True)
class Growth:
    """A fit of cost = factor * size^exponent."""

    exponent: float
    factor: float

    @classmethod
    def fit(cls, sizes: Sequence[float], costs: Sequence[float]) -> Growth:
        """Fit by least squares on logarithms; sizes and costs are above 0, and there are at least two sizes."""
        slope, intercept = linear_regression(list(map(math.log, sizes)), list(map(math.log, costs)))
        return cls(slope, math.exp(intercept))

    def predict(self, size: float) -> float:
        """Return the cost of a size."""
        return float(self.factor * size**self.exponent)


def format_row(cells: Iterable[str]) -> str:
    """Format a line of a Markdown table."""
    return "| " + " | ".join(cells) + " |"


def main(settings: Settings) -> None:
    """Run all sizes and print both tables.

    Raises:
        ConfigError, RunError: a setting is illegal; a run has failed.
    """
    axes = list_axes(settings)
    if settings.repeats < 1:
        raise ConfigError(f"repeats={settings.repeats} must be at least 1")
    found: dict[Size, list[Cost]] = {size: [] for size in list_distinct(axes.values())}
    for number in range(1, settings.repeats + 1):
        for size, costs in found.items():
            print(f"run {number} of {settings.repeats}: {size}", file=sys.stderr, flush=True)
            costs.append(measure_run(settings, size))
            if settings.output is not None:
                load = round(os.getloadavg()[0], 1)
                with open(settings.output, "a", encoding="utf-8") as file:
                    file.write(json.dumps({**asdict(size), **asdict(costs[-1]), "load": load}) + "\n")
    print_costs(found)
    print_growth(axes, found)
    print(f"\n{get_cpu_name()}, {settings.workers} workers, load average {os.getloadavg()[0]:.1f} at the end")


def print_costs(found: Mapping[Size, Sequence[Cost]]) -> None:
    """Print the median costs of each size."""
    head = ("clients", "cohort", "parameters", *SHOWN)
    print(format_row(head), format_row(["---:"] * len(head)), sep="\n")
    for size, costs in sorted(found.items(), key=lambda entry: astuple(entry[0])):
        shown = [f"{median(map(cost, costs)):.3g}" for cost in SHOWN.values()]
        print(format_row([f"{size.clients:,}", f"{size.cohort:,}", f"{costs[0].parameters:,}", *shown]))


def print_growth(axes: Mapping[str, Sequence[Size]], found: Mapping[Size, Sequence[Cost]]) -> None:
    """Print exponents, and the cost at ten times the largest size, for each axis with several sizes."""
    several = {name: sizes for name, sizes in axes.items() if len(sizes) > 1}
    if not several:
        return
    head = ["cost", *(cell for name in several for cell in (f"exponent over {name}", "at ten times the largest"))]
    print("", format_row(head), format_row(["---", *["---:"] * (len(head) - 1)]), sep="\n")
    for name, cost in SHOWN.items():
        cells = [name]
        for axis, sizes in several.items():
            lengths = [found[size][0].parameters if axis == "parameters" else getattr(size, axis) for size in sizes]
            growth = Growth.fit(lengths, [median(map(cost, found[size])) for size in sizes])
            cells += [f"{growth.exponent:.2f}", f"{growth.predict(10 * lengths[-1]):.3g}"]
        print(format_row(cells))


if __name__ == "__main__":
    with exit_on_error():
        main(tyro.cli(Settings, description=__doc__))

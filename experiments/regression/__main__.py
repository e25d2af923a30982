"""Is a commit slower? `python -m experiments.regression COMMIT_A COMMIT_B`.

Compares rounds of training, encoding and decoding, aggregation, transport and start-up. Each is measured by an existing
experiment, run from the source of either commit by the same interpreter, in the order A, B, B, A, A, B, ... A commit is
a name that git resolves, or a folder with a checkout. Prints the medians of both and the ratio B over A, taken within
each pair: median, least and most. With five pairs, least and most enclose the true median ratio with a probability of
94 % (6 pairs: 97 %).

    python -m experiments.regression 5a23b78 HEAD
    python -m experiments.regression 5a23b78 . --only "codecs|start-up" --pairs 9

Rounds need the default model and dataset, which are downloaded once.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Annotated

import tyro

from experiments import exit_on_error, measure_child_seconds
from experiments.checkouts import Checkout, check_out
from experiments.regression.measures import MEASURES, Costs, FinishedCommand, Measure
from fedpeft.errors import ConfigError, RunError
from fedpeft.models.kernels import get_cpu_name


@dataclass(frozen=True)
class Settings:
    """The measurements to run."""

    commits: Annotated[tuple[str, str], tyro.conf.Positional]
    """two commits, or folders with a checkout; the first is the reference"""
    pairs: int = 5
    """measurements of each commit"""
    only: str = ""
    """only the measures whose names this regular expression finds"""


def measure_costs(measure: Measure, checkout: Checkout, folder: Path) -> Costs:
    """Return the costs of one measure in one commit.

    Raises:
        RunError: the command ended with an error.
    """
    folder.mkdir()
    words = [str(folder / "output") if word == "OUTPUT" else word for word in measure.words]
    environment = os.environ | {
        "PYTHONPATH": str(checkout.source),
        "OMP_NUM_THREADS": "1",
        "FLWR_TELEMETRY_ENABLED": "0",
    }
    before = measure_child_seconds()
    done = subprocess.run([sys.executable, "-P", *words], cwd=folder, env=environment, capture_output=True, text=True)
    used = measure_child_seconds() - before
    if done.returncode:
        said = (done.stderr or done.stdout).strip().splitlines() or [f"exit code {done.returncode}"]
        raise RunError(f"in {checkout.name}, python {' '.join(measure.words[:2])} has failed: {said[-1]}")
    return measure.costs(FinishedCommand(folder / "output", done.stdout, used))


def format_line(name: str, first: Sequence[float], second: Sequence[float]) -> str:
    """Format a row of the table: medians, and the ratio within pairs."""
    ratios = [b / a for a, b in zip(first, second, strict=True)]
    return (
        f"{name:<64} {median(first):>9.3g} {median(second):>9.3g}   "
        f"{median(ratios):.3f} ({min(ratios):.3f}..{max(ratios):.3f})"
    )


def main(settings: Settings) -> None:
    """Run the measures and print the table.

    Raises:
        ConfigError, RunError: a setting is illegal; a command fails.
    """
    try:
        chosen = {name: measure for name, measure in MEASURES.items() if re.search(settings.only, name)}
    except re.error as error:
        raise ConfigError(f"only={settings.only!r} is not a regular expression: {error}") from None
    if not chosen:
        raise ConfigError(f"only={settings.only!r} is in no measure's name; there are: {', '.join(MEASURES)}")
    if settings.pairs < 1:
        raise ConfigError(f"pairs={settings.pairs} must be at least 1")
    with tempfile.TemporaryDirectory() as temporary:
        work = Path(temporary)
        commits = [check_out(name, work / f"source-{i}") for i, name in enumerate(settings.commits)]
        for commit in commits:  # otherwise the first run of either would compile
            subprocess.run([sys.executable, "-m", "compileall", "-q", commit.source], stdout=subprocess.DEVNULL)
        print(f"{'cost':<64} {settings.commits[0][:9]:>9} {settings.commits[1][:9]:>9}   second over first")
        for name, measure in chosen.items():
            found: tuple[list[Costs], list[Costs]] = ([], [])
            for pair in range(settings.pairs):
                for side in (0, 1) if pair % 2 == 0 else (1, 0):
                    found[side].append(measure_costs(measure, commits[side], work / f"{name} {pair} {side}"))
            for cost in found[0][0]:
                if all(cost in costs for costs in (*found[0], *found[1])):
                    print(format_line(cost, *([costs[cost] for costs in side] for side in found)), flush=True)
                else:
                    print(f"{cost:<64} not measured by both", flush=True)
    print(f"\n{settings.pairs} pairs, {get_cpu_name()}, load average {os.getloadavg()[0]:.1f} at the end")


if __name__ == "__main__":
    with exit_on_error():
        main(tyro.cli(Settings, description=__doc__))

"""python -m experiments.quick: what `--quick` gains over its start and the linear probe, seed by seed.

Prints the table of results.jsonl. `--seeds 0 1 2` first runs these seeds, one after the other, and adds their lines:

    fedpeft simulate --quick --seed SEED

The start does not depend on the seed. Its test accuracy is that of an adapter that has not moved (`START`).
CPU seconds are those of the command and its workers. A run needs at least half of them on two free cores.
"""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import psutil
import tyro

from experiments import exit_on_error
from fedpeft.errors import RunError

RESULTS = Path(__file__).parent / "results.jsonl"

START = (
    *("--rounds", "1", "--learning-rate", "1e-12", "--safeguard", "none"),
    *("--local-work", "steps(count=1, walk=False)", "--measure", "validation(keep=last)"),
)
"""Flags under which the last state is the start: no digit of the adapter changes."""


@dataclass(frozen=True)
class Command:
    """Preview runs and their table."""

    seeds: Annotated[tuple[int, ...], tyro.conf.arg(help="seeds to run; empty: only print the table")] = ()
    start: Annotated[bool, tyro.conf.FlagCreatePairsOff, tyro.conf.arg(help="also measure the start")] = False


def measure_run(flags: tuple[str, ...]) -> dict[str, Any]:
    """Run a preview with more `flags`; return its accuracies and its seconds.

    Raises:
        RunError: the run failed.
    """
    with tempfile.TemporaryDirectory() as folder:
        words = [sys.executable, "-m", "fedpeft.simulate", "--quick", *flags, "--output", f"{folder}/run"]
        with subprocess.Popen(words) as process:
            seconds = _measure_cpu_seconds(process)
        if process.returncode:
            raise RunError("a preview has failed, see above")
        summary = json.loads(Path(folder, "run", "summary.json").read_text())
        lines = [json.loads(line) for line in Path(folder, "run", "rounds.jsonl").read_text().splitlines()]
    return {
        "accuracy": summary["accuracy"],
        "probe": summary["baseline_accuracy"],
        "test_rows": summary["targets"]["rows"],
        "kept_round": summary["kept_round"],
        "validation_of_start": lines[0]["accuracy"],
        "validation": summary["validation_accuracy"],
        "cpu_seconds": round(seconds, 1),
        "seconds": round(summary["seconds"], 1),
        "load": round(os.getloadavg()[0], 1),
    }


def _measure_cpu_seconds(process: subprocess.Popen[bytes]) -> float:
    """Wait for the end of a process; return the CPU seconds of it and its descendants, sampled twice a second."""
    spent: dict[int, float] = {}
    root = psutil.Process(process.pid)
    while process.poll() is None:
        try:
            for one in (root, *root.children(recursive=True)):
                times = one.cpu_times()
                spent[one.pid] = times.user + times.system
        except psutil.NoSuchProcess:
            pass
        time.sleep(0.5)
    return sum(spent.values())


def format_table(runs: list[dict[str, Any]]) -> list[str]:
    """Return the lines of the table: a line for each seed, and the mean, least and largest gain.

    Args:
        runs: the lines of results.jsonl; the start's has the seed None.
    """
    start = next((run["accuracy"] for run in runs if run["seed"] is None), math.nan)
    lines = [
        "| seed | start (%) | linear probe (%) | adapter (%) | over the start | over the probe | kept round | CPU s |",
        "|---:|---:|---:|---:|---:|---:|---:|---:|",
    ]
    gains = []
    for run in sorted((run for run in runs if run["seed"] is not None), key=lambda run: run["seed"]):
        accuracy, probe = run["accuracy"], run["probe"]
        gains.append((accuracy - start, accuracy - probe))
        lines.append(
            f"| {run['seed']} | {100 * start:.2f} | {100 * probe:.2f} | {100 * accuracy:.2f} | "
            f"{100 * (accuracy - start):+.2f} | {100 * (accuracy - probe):+.2f} | {run['kept_round']} | "
            f"{run['cpu_seconds']:.0f} |"
        )
    for name, compute in (("mean", np.mean), ("least", np.min), ("largest", np.max)):
        over_start, over_probe = (100 * float(compute(column)) for column in zip(*gains, strict=True))
        lines.append(f"| {name} | | | | {over_start:+.2f} | {over_probe:+.2f} | | |")
    return lines


def main(command: Command) -> None:
    """Run what is asked for, and print the table.

    Raises:
        RunError: a run failed.
    """
    asked: list[tuple[int | None, tuple[str, ...]]] = [(seed, ("--seed", str(seed))) for seed in command.seeds]
    if command.start:
        asked.insert(0, (None, START))
    for seed, flags in asked:
        line = json.dumps({"seed": seed, **measure_run(flags)})
        with RESULTS.open("a") as file:
            file.write(f"{line}\n")
    print("\n".join(format_table([json.loads(line) for line in RESULTS.read_text().splitlines()])))


if __name__ == "__main__":
    with exit_on_error():
        main(tyro.cli(Command, description=__doc__))

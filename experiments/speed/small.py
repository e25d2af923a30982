"""python -m experiments.speed.small: seconds of small commands, interleaved, beside the bare import.

Each command runs once to fill the caches, and then `repeats` times in turns. A line has medians. The bare import loads
torch, transformers and peft, and nothing of fedpeft. CPU seconds include worker processes. On a machine that others
use, wall seconds are only an upper bound.
"""

from __future__ import annotations

import ctypes
import itertools
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Annotated

import tyro

from experiments import exit_on_error, measure_child_seconds
from fedpeft.errors import RunError

EXAMPLES = Path(__file__).parent.parent.parent / "examples"
ROWS = 300
"""Examples of the run of MiniLM, with those for validation and test."""

IMPORT = ("-c", "import torch, transformers, peft")
SUBREAPER = 36
"""Linux's option of `prctl` by which orphaned descendants become children of this process, which waits for them."""


@dataclass(frozen=True)
class Case:
    """A measured command.

    Attributes:
        name: name in the table.
        words: the command line behind `python`.
        goal: wall seconds on two free cores.
        over_import: whether the goal is seconds over the bare import.
        code: the legal exit code.
    """

    name: str
    words: tuple[str, ...]
    goal: float
    over_import: bool = False
    code: int = 0


@dataclass(frozen=True)
class Sample:
    """Wall seconds and CPU seconds of one execution."""

    wall: float
    cpu: float


@dataclass(frozen=True)
class Command:
    """Measure the small commands."""

    repeats: Annotated[int, tyro.conf.arg(help="executions of each command")] = 5
    only: Annotated[str, tyro.conf.arg(help="only the commands whose name contains this text")] = ""


def create_cases(folder: Path) -> tuple[Case, ...]:
    """Return the commands; their files are in `folder`."""
    data, run = str(folder / "300.csv"), str(folder / "predicted")
    workload = ("--dataset", f"file:{data}", "--partition", "natural", "--clients", "0", "--model", "minilm")
    simulate = ("-m", "fedpeft.simulate")
    return (
        Case("simulate --help", (*simulate, "--help"), 1),
        Case("a rejected flag", (*simulate, "--peft", "lora(rank=0)"), 2, code=2),
        Case("check", ("-m", "fedpeft.commands.check", data, "--model", "minilm"), 1.5, over_import=True, code=1),
        Case("predict one text", ("-m", "fedpeft.commands.predict", run, "sorts the rows"), 1.5, over_import=True),
        Case(
            "tiny, 2 rounds",
            (*simulate, "--dataset", "tiny", "--clients", "4", "--rounds", "2", "--output", f"{folder}/tiny"),
            12,
        ),
        Case(
            "MiniLM, 300 examples, 2 rounds", (*simulate, *workload, "--rounds", "2", "--output", f"{folder}/run"), 25
        ),
    )


def execute(case: Case, folder: Path) -> Sample:
    """Execute a command with its descendants.

    Raises:
        RunError: its exit code differs from the legal one.
    """
    for name in ("tiny", "run"):
        shutil.rmtree(folder / name, ignore_errors=True)
    spent, started = measure_child_seconds(), time.perf_counter()
    done = subprocess.run([sys.executable, *case.words], capture_output=True, text=True)
    wall = time.perf_counter() - started
    if done.returncode != case.code:
        raise RunError(f"{case.name} ended with code {done.returncode}: {(done.stderr or done.stdout)[-500:]}")
    _wait_for_descendants()
    return Sample(wall, measure_child_seconds() - spent)


def _wait_for_descendants() -> None:
    try:
        while True:
            os.wait()
    except ChildProcessError:  # none is left
        return


def format_table(samples: Mapping[Case, Sequence[Sample]], bare: Sequence[Sample]) -> list[str]:
    """Return the lines of the table of medians."""
    imported = median(sample.wall for sample in bare)
    lines = ["| command | goal (s) | wall (s) | bare import (s) | CPU (s) |", "|---|---:|---:|---:|---:|"]
    for case, taken in samples.items():
        goal = f"import + {case.goal:g}" if case.over_import else f"{case.goal:g}"
        wall, cpu = (median(values) for values in zip(*((s.wall, s.cpu) for s in taken), strict=True))
        lines.append(f"| {case.name} | {goal} | {wall:.2f} | {imported:.2f} | {cpu:.2f} |")
    lines.append(f"| the bare import | | {imported:.2f} | | {median(sample.cpu for sample in bare):.2f} |")
    return lines


def main(command: Command) -> None:
    """Measure and print.

    Raises:
        RunError: a command failed.
    """
    ctypes.CDLL(None).prctl(SUBREAPER, 1, 0, 0, 0)
    bare = Case("the bare import", IMPORT, 0)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        with (EXAMPLES / "functions.csv").open(encoding="utf-8") as file:
            (folder / "300.csv").write_text("".join(itertools.islice(file, ROWS + 1)), encoding="utf-8")
        cases = create_cases(folder)
        execute(cases[-1], folder)
        shutil.copytree(folder / "run", folder / "predicted")
        cases = tuple(case for case in cases if command.only in case.name)
        before = os.getloadavg()[0]
        for case in (bare, *cases):
            execute(case, folder)
        taken: dict[Case, list[Sample]] = {case: [] for case in cases}
        imports = []
        for _ in range(command.repeats):
            imports.append(execute(bare, folder))
            for case in cases:
                taken[case].append(execute(case, folder))
    print("\n".join(format_table(taken, imports)))
    print(f"{os.cpu_count()} cores, load {before:.1f} before and {os.getloadavg()[0]:.1f} after")


if __name__ == "__main__":
    with exit_on_error():
        main(tyro.cli(Command, description=__doc__))

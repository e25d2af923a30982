"""python -m experiments.own_kinds RUN: accuracy by task type of the questions, after `evaluate --alone`.

RUN is a finished run on `office` whose clients are its task types, with RUN/evaluation/answers.jsonl from `
fedpeft evaluate RUN --alone all`. Prints one line per task type, in percent: the base, the global model, the client
with this task type trained alone, and the mean of the other clients alone.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import Annotated, Any

import numpy as np
import tyro
from rich.console import Console
from rich.table import Table

from experiments import exit_on_error
from fedpeft.data.rows import load_dataset
from fedpeft.errors import RunError
from fedpeft.evaluate.contestants import BASE, GLOBAL
from fedpeft.models.answers.metrics.exact_match import ExactMatch
from fedpeft.reporting.finished_run import FinishedRun


@dataclass(frozen=True)
class Command:
    """The options of the command."""

    run: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="RUN", help="a finished run on office")]


def compute_lines(answers: Sequence[dict[str, Any]], kinds: Sequence[str]) -> list[tuple[str, list[float]]]:
    """Return the shares (%) of exact matches by task type: base, global, own client alone, others alone.

    Args:
        answers: lines of answers.jsonl, one for each test example.
        kinds: task types of the test examples, in the same order; client k has the k-th one by name.

    Raises:
        RunError: the questions differ, or not all clients were trained alone.
    """
    names = sorted(set(kinds))
    alone = [f"client {k} alone" for k in range(len(names))]
    if len(answers) != len(kinds) or any(not {BASE, GLOBAL, *alone} <= line["said"].keys() for line in answers):
        raise RunError("the answers are not of all test rows and of all clients alone; evaluate RUN --alone all")
    made = []
    for own, kind in enumerate(names):
        asked = [line for line, its in zip(answers, kinds, strict=True) if its == kind]
        right = {
            name: 100 * fmean(ExactMatch().score(line["said"][name], line["right"]) for line in asked)
            for name in (BASE, GLOBAL, *alone)
        }
        others = fmean(right[name] for name in alone if name != alone[own])
        made.append((kind, [right[BASE], right[GLOBAL], right[alone[own]], others]))
    return made


def build_table(folder: Path) -> Table:
    """Build the table of a finished run, with its mean.

    Raises:
        RunError: the run's clients are not its task types, or it has no answers.
    """
    run = FinishedRun.read(folder)
    if run.config.partition != "natural":
        raise RunError(f"the clients of {folder} are not its rows' kinds: {run.config.partition!r}, not natural")
    kinds = load_dataset(run.config.dataset).test.owners
    file = folder / "evaluation" / "answers.jsonl"
    if kinds is None or not file.is_file():
        raise RunError(f"{file} is missing, or the run's rows have no kinds; fedpeft evaluate RUN --alone all")
    answers = [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]
    table = Table(title="right, letter by letter (%)")
    for heading in ("kind", "base", "federated", "its client alone", "others alone"):
        table.add_column(heading)
    found = compute_lines(answers, kinds.tolist())
    means = np.mean([shares for _, shares in found], axis=0)
    for kind, shares in [*found, ("mean", means)]:
        table.add_row(kind, *(f"{share:.1f}" for share in shares))
    return table


def main() -> None:
    """Run the command."""
    command = tyro.cli(Command, prog="python -m experiments.own_kinds")
    with exit_on_error():
        Console(width=100).print(build_table(command.run))


if __name__ == "__main__":
    main()

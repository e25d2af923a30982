"""python -m experiments.private_plan: training under a privacy budget against the private probe, paired by seed.

Reads `results.jsonl` of the study beside it, or of the folder of a `--preset`. Numbers are points of test accuracy, and
the difference has a 95 % interval over seeds (Student's t). The open probe uses no noise, and all examples in one
place.
"""

from __future__ import annotations

from collections import defaultdict
from pathlib import Path

import numpy as np

from experiments import exit_on_error
from experiments.recorded import read_recorded
from fedpeft.study.results import Result
from fedpeft.study.statistics import LEVEL, compute_half_width


def format_line(task: str, budget: str, runs: list[Result]) -> str:
    """Format a row of the table."""
    found = [run.summary or {} for run in runs]
    accuracy, private, probe = (
        100 * np.array([summary[name] for summary in found])
        for name in ("accuracy", "private_probe_accuracy", "baseline_accuracy")
    )
    difference = accuracy - private
    if len(runs) > 1:
        width = compute_half_width(difference, LEVEL, 2)
        interval = f" ({difference.mean() - width:+.1f} to {difference.mean() + width:+.1f})"
    else:
        interval = ""
    rounds = max(round_number["round"] for run in runs for round_number in run.rounds)
    return (
        f"| {task} | {budget} | {len(runs)} | {rounds} | {accuracy.mean():.1f} | {private.mean():.1f} | "
        f"{difference.mean():+.1f}{interval} | {probe.mean():.1f} |"
    )


def main() -> None:
    """Print the table."""
    cells: dict[tuple[str, str], list[Result]] = defaultdict(list)
    for result in read_recorded(Path(__file__).parent, __doc__):
        if (result.summary or {}).get("private_probe_accuracy") is not None:
            cells[result.point["task"], result.point["budget"]].append(result)
    print("| task | epsilon | seeds | rounds | run (%) | private probe (%) | difference (95 %) | open probe (%) |")
    print("|---|---:|---:|---:|---:|---:|---:|---:|")
    tasks = list(dict.fromkeys(task for task, _ in cells))
    for task, budget in sorted(cells, key=lambda cell: (tasks.index(cell[0]), cell[1][1:], -float(cell[1][0]))):
        print(format_line(task, budget, cells[task, budget]))


if __name__ == "__main__":
    with exit_on_error():
        main()

"""python -m experiments.harm: what the defaults make of their start, run by run, paired by test row.

Reads `results.jsonl` of the study beside it, or of the folder of a `--preset`. The standard error of the difference is
that over test rows, with one run on either side.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from experiments import one_sentence
from experiments.recorded import recorded
from fedpeft.studies.results import Result


def line(run: Result, start: Result) -> str:
    """A row of the table."""
    assert run.scored is not None
    assert start.scored is not None
    before, after = start.scored.correct.astype(float), run.scored.correct.astype(float)
    difference = after - before
    error = difference.std(ddof=1) / np.sqrt(len(difference))
    return (
        f"| {run.point['task']} | {run.point['partition']} | {run.seed} | {100 * before.mean():.2f} | "
        f"{100 * after.mean():.2f} | {int((difference > 0).sum())} / {int((difference < 0).sum())} | "
        f"{100 * difference.mean():+.2f} | {difference.mean() / error if error else 0.0:+.1f} |"
    )


def main() -> None:
    """Print the table."""
    runs = {
        (run.point["task"], run.point["partition"], run.seed, run.point["state"]): run
        for run in recorded(Path(__file__).parent, __doc__)
    }
    print("| task | partition | seed | start (%) | default (%) | rows gained / lost | points | standard errors |")
    print("|---|---|---:|---:|---:|---:|---:|---:|")
    for (task, partition, seed, state), run in runs.items():
        start = runs.get((task, partition, seed, "start"))
        if state == "default" and start is not None:
            print(line(run, start))


if __name__ == "__main__":
    with one_sentence():
        main()

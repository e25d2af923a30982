"""python -m experiments.rules_2026: each method against fedit and against the best older rule, paired by seed.

Prints the recorded runs of the study, or of its preset with `--preset`. The older rule is the one with the highest mean
accuracy of those that `OLDER` lists. Intervals are at 95 % over seeds and test examples, not corrected for the number
of comparisons. If clients have models of their own, accuracies are those on the clients' held-out examples, and
intervals are over seeds. Minutes are those of the rounds of one run on one worker, without start and final score.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping
from pathlib import Path
from statistics import fmean, stdev

import numpy as np
from rich.table import Table

from experiments import exit_on_error
from experiments.decide.verdicts import get_own_accuracy
from experiments.recorded import read_recorded
from fedpeft.machine.terminal import Console
from fedpeft.study.measures import MEGABYTE, get_round_seconds, get_total_bytes
from fedpeft.study.results import Result, select_latest
from fedpeft.study.statistics import LEVEL, POINTS, compare, compute_half_width

FOLDER = Path(__file__).parent

OLDER = ("fedrot_lora", "flexlora", "flexlora, mixed ranks", "hetlora, mixed ranks", "ditto", "fedsa_lora")
"""Rules that are older than the compared ones, besides the baseline."""

BASELINES = ("fedit", "global, fedit")
"""The baseline, by its names in the presets."""

Runs = Mapping[int, Result]
"""Runs of one method by seed."""


def group_runs(results: list[Result]) -> dict[str, dict[int, Result]]:
    """Return the runs of each method, by seed; of a repeated run, the last one."""
    found: dict[str, dict[int, Result]] = defaultdict(dict)
    for result in select_latest(results):
        found[result.point["method"]][result.seed] = result
    return dict(found)


def get_accuracies(runs: Runs, *, own: bool) -> dict[int, float]:
    """Return the accuracy of each run in percent, by seed.

    Args:
        runs: runs of one method.
        own: whether to take the accuracy on the clients' own held-out examples, which seeds redraw, instead of that on
            the test examples.
    """
    score = get_own_accuracy if own else lambda run: float((run.summary or {})["accuracy"])
    return {seed: POINTS * score(run) for seed, run in runs.items()}


def format_difference(runs: Runs, baseline: Runs | None, *, own: bool) -> str:
    """Return the difference in points with its 95 % interval; empty if the runs can't be paired."""
    if baseline is None or runs is baseline:
        return ""
    if own:
        mine, theirs = (get_accuracies(of, own=True) for of in (runs, baseline))
        each = np.array([mine[seed] - theirs[seed] for seed in mine.keys() & theirs.keys()])
        width = compute_half_width(each, LEVEL, 2)
        return f"{each.mean():+.2f} [{each.mean() - width:+.2f}, {each.mean() + width:+.2f}]" if len(each) > 1 else ""
    counted = [{seed: c for seed, run in of.items() if (c := run.test_counts) is not None} for of in (runs, baseline)]
    found = compare(*counted)
    if found is None:
        return ""
    low, high = found.difference - found.half_width, found.difference + found.half_width
    return f"{found.difference:+.2f} [{low:+.2f}, {high:+.2f}]"


def build_table(methods: Mapping[str, Runs]) -> Table:
    """Return the table of all methods, in the order of the study."""
    own = any(run.own_rows for runs in methods.values() for run in runs.values())
    older = {name: fmean(get_accuracies(methods[name], own=own).values()) for name in OLDER if name in methods}
    best = max(older, key=lambda name: older[name]) if older else ""
    baseline = next((name for name in BASELINES if name in methods), "")
    score = "accuracy on own examples (%)" if own else "test accuracy (%)"
    headings = ("method", "seeds", score, f"against {baseline or 'a baseline'}", f"against {best or 'an older rule'}")
    table = Table(*headings, "up + down (MB)", "minutes a run")
    for name, runs in methods.items():
        each = list(get_accuracies(runs, own=own).values())
        spread = f" ± {stdev(each):.2f}" if len(each) > 1 else ""
        sent = [b for run in runs.values() if (b := get_total_bytes(run)) is not None]
        seconds = [s for run in runs.values() if (s := get_round_seconds(run)) is not None]
        table.add_row(
            name,
            str(len(each)),
            f"{fmean(each):.2f}{spread}",
            format_difference(runs, methods.get(baseline), own=own),
            format_difference(runs, methods.get(best), own=own),
            f"{fmean(sent) / MEGABYTE:.2f}" if sent else "",
            f"{fmean(seconds) / 60:.1f}" if seconds else "",
        )
    return table


def main() -> None:
    """Print the table."""
    results = read_recorded(FOLDER, __doc__)
    Console().print("Exploratory: few rates, rounds and seeds, one dataset, one small base model.")
    Console().print(build_table(group_runs(results)))


if __name__ == "__main__":
    with exit_on_error():
        main()

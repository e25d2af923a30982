"""python -m experiments.peft_or_full: adapters against full fine-tuning, one line for each registered comparison.

Before them stands what each method of `few` reaches. Each line subtracts full fine-tuning from a method, paired by
seed, with Student's 95 % interval and p. The verdicts use Holm's step-down at 5 % over all 23 comparisons; those that
have not been run count with p = 1. A study without all of its runs gives no lines. The README says what each value is.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean, stdev

import numpy as np
from rich.table import Table
from scipy import stats  # type: ignore[import-untyped, unused-ignore]

from experiments import exit_on_error
from experiments.claims.verdicts import correct_holm
from fedpeft.errors import RunError
from fedpeft.machine.terminal import Console
from fedpeft.study.measures import build_curve
from fedpeft.study.results import Result, ResultsFile, resolve_config, select_latest
from fedpeft.study.statistics import LEVEL, POINTS, compute_half_width
from fedpeft.study.study_file import read_study

FOLDER = Path(__file__).parent

FULL = "full"
ADAPTERS, LANGUAGE_ADAPTERS = ("lora", "ia3", "bitfit"), ("lora", "ia3")
FEWEST, MOST = "60", "3000"
PRIVATE = ", epsilon 8"

COMPARISONS = 4 * len(ADAPTERS) + len(ADAPTERS) + 2 * 2 * len(LANGUAGE_ADAPTERS)
"""All registered comparisons, over which Holm's step-down corrects."""

Cell = tuple[str, ...]
"""The labels of a point of a study's grid, in the order of its axes."""

Runs = Mapping[Cell, Mapping[int, Result]]
"""Runs by cell and seed."""

Values = Mapping[int, float]
"""A number of each seed."""


@dataclass(frozen=True)
class Line:
    """A comparison of a method with full fine-tuning.

    Attributes:
        question: the compared value, with its unit.
        method: label of the method.
        difference: mean over seeds, method minus full fine-tuning; for the spread the ratio of deviations.
        half_width: half width of the 95 % interval; NaN: none is given.
        p: two-sided p-value.
    """

    question: str
    method: str
    difference: float
    half_width: float
    p: float


def group_runs(results: Sequence[Result], axes: Sequence[str]) -> Runs:
    """Return the finished runs by the labels of the axes and by seed; of a repeated run, the last one."""
    found: dict[Cell, dict[int, Result]] = {}
    for result in select_latest([r for r in results if r.is_finished]):
        found.setdefault(tuple(result.point[axis] for axis in axes), {})[result.seed] = result
    return found


def read_runs(name: str) -> Runs:
    """Return all runs of a study's default preset; empty if one is missing, or was made with other settings."""
    study = read_study(FOLDER / name / "study.toml")
    file = study.folder / "results.jsonl"
    planned = [run.config for run in study.plan_runs()]
    found = ResultsFile(file).read() if file.exists() else []
    configs = {resolve_config(result.config): result for result in found if result.is_finished}
    return group_runs([configs[c] for c in planned], tuple(study.axes)) if configs.keys() >= set(planned) else {}


def compare_values(question: str, method: str, values: Values, baseline: Values) -> Line:
    """Compare two numbers of each seed by a paired t-test."""
    pairs = np.array([values[seed] - baseline[seed] for seed in sorted(values)])
    if (pairs == pairs[0]).all():  # no spread to compare with: the p of a sign test
        p = 1.0 if pairs[0] == 0 else 2.0 ** (1 - len(pairs))
    else:
        p = float(stats.ttest_1samp(pairs, 0.0).pvalue)
    return Line(question, method, float(pairs.mean()), compute_half_width(pairs, LEVEL, 2), p)


def compare_spreads(question: str, method: str, values: Sequence[Values], baseline: Sequence[Values]) -> Line:
    """Compare deviations over seeds, pooled over cells, by the test of Pitman and Morgan for paired values.

    Two paired variables have equal variances if their sum and their difference are not correlated. Each cell is scaled
    to the same spread of both methods together. Otherwise the cell that scatters most decides, with the degrees of
    freedom of all.
    """
    seeds = sorted(values[0])
    ours, theirs = (np.array([[each[seed] for seed in seeds] for each in cells]) for cells in (values, baseline))
    ours, theirs = (each - each.mean(1, keepdims=True) for each in (ours, theirs))
    scale = np.sqrt((ours**2 + theirs**2).sum(1, keepdims=True))
    ours, theirs = (each / np.where(scale > 0, scale, 1.0) for each in (ours, theirs))
    freedom = ours.shape[0] * (ours.shape[1] - 1) - 1
    total, apart = (ours + theirs).ravel(), (ours - theirs).ravel()
    size = math.sqrt(float((total**2).sum() * (apart**2).sum()))
    correlation = float((total * apart).sum()) / size if size else 0.0
    left = 1 - correlation**2
    p = 2 * float(stats.t.sf(abs(correlation) * math.sqrt(freedom / left), freedom)) if left > 0 else 0.0
    spread, other = float((ours**2).sum()), float((theirs**2).sum())
    ratio = math.sqrt(spread / other) if other else math.inf if spread else 1.0
    return Line(question, method, ratio, math.nan, p)


def get_accuracy(run: Result) -> float:
    """Return the test accuracy in percent."""
    return POINTS * float((run.summary or {})["accuracy"])


def get_loss(run: Result) -> float:
    """Return the test loss in nats per token."""
    return float((run.summary or {})["loss"])


def get_lost(run: Result) -> float:
    """Return what the second task lost: a share of right answers, or nats per token."""
    return float((run.summary or {})["forgetting"]["lost"])


def read_values(runs: Runs, cell: Cell, read: Callable[[Result], float]) -> dict[int, float]:
    """Return a number of each seed of a cell."""
    return {seed: read(run) for seed, run in runs[cell].items()}


def count_rounds(runs: Runs, method: str, rows: str) -> dict[int, float] | None:
    """Return the rounds until half of full fine-tuning's mean gain in validation accuracy; None if it gains nothing.

    A run that never gets there counts with one round more than it has.
    """
    gains = [(curve := build_curve(run))[-1].accuracy - curve[0].accuracy for run in runs[FULL, rows].values()]
    half = fmean(gains) / 2
    if half <= 0:
        return None
    found = {}
    for seed, run in runs[method, rows].items():
        curve = build_curve(run)
        reached = (point.round for point in curve if point.accuracy - curve[0].accuracy >= half)
        found[seed] = float(next(reached, curve[-1].round + 1))
    return found


def average(values: Sequence[Values]) -> dict[int, float]:
    """Return the mean of several numbers of each seed."""
    return {seed: fmean(each[seed] for each in values) for seed in values[0]}


def compare_few(runs: Runs) -> Iterator[Line]:
    """Yield the comparisons of the study `few`: examples, rounds, spread, forgetting."""
    numbers = [rows for method, rows in runs if method == FULL]
    accuracy = {cell: read_values(runs, cell, get_accuracy) for cell in runs}
    rounds = {rows: count_rounds(runs, FULL, rows) for rows in numbers}
    judged = [rows for rows in numbers if rounds[rows] is not None]
    for name in ADAPTERS:
        few, many = (
            {seed: accuracy[m, FEWEST][seed] - a for seed, a in accuracy[m, MOST].items()} for m in (name, FULL)
        )
        yield compare_values(f"accuracy at {FEWEST} minus at {MOST} examples (points)", name, few, many)
    for name in ADAPTERS:
        both = [[found for rows in judged if (found := count_rounds(runs, m, rows))] for m in (name, FULL)]
        if judged:
            yield compare_values("rounds to half of full's gain", name, *map(average, both))
    for name in ADAPTERS:
        cells = [[accuracy[m, rows] for rows in numbers] for m in (name, FULL)]
        yield compare_spreads("deviation over seeds (ratio)", name, *cells)
    for name in ADAPTERS:
        lost = [read_values(runs, (m, MOST), lambda run: POINTS * get_lost(run)) for m in (name, FULL)]
        yield compare_values("forgotten (points of probe accuracy)", name, *lost)


def compare_private(runs: Runs) -> Iterator[Line]:
    """Yield the comparisons of the study `private`: what epsilon costs."""

    def read_costs(name: str) -> Values:
        protected = read_values(runs, (name + PRIVATE,), get_accuracy)
        return {seed: a - protected[seed] for seed, a in read_values(runs, (name,), get_accuracy).items()}

    for name in ADAPTERS:
        yield compare_values("cost of epsilon 8 (points)", name, read_costs(name), read_costs(FULL))


def compare_language(runs: Runs) -> Iterator[Line]:
    """Yield the comparisons of the study `language`: loss on each synthetic task, and forgetting."""
    for task in dict.fromkeys(task for _, task in runs):
        values = (("test loss (nats per token)", get_loss), ("forgotten (nats per token)", get_lost))
        for question, read in values:
            for name in LANGUAGE_ADAPTERS:
                pair = [read_values(runs, (m, task), read) for m in (name, FULL)]
                yield compare_values(f"synthetic {task}: {question}", name, *pair)


def build_values_table(runs: Runs) -> Table:
    """Return what each method of the study `few` reaches: means ± standard deviations over seeds."""
    numbers = list(dict.fromkeys(rows for _, rows in runs))
    table = Table("method", *(f"accuracy at {rows} examples (%)" for rows in numbers), f"forgotten at {MOST} (points)")
    for method in dict.fromkeys(method for method, _ in runs):
        reached = [list(read_values(runs, (method, rows), get_accuracy).values()) for rows in numbers]
        lost = POINTS * fmean(read_values(runs, (method, MOST), get_lost).values())
        table.add_row(method, *(f"{fmean(each):.1f} ± {stdev(each):.1f}" for each in reached), f"{lost:.1f}")
    return table


def choose_verdicts(lines: Sequence[Line], comparisons: int = COMPARISONS) -> list[str]:
    """Return higher, lower or undecided for each line, by Holm's step-down at 5 % over all comparisons."""
    corrected = correct_holm([*(line.p for line in lines), *[1.0] * (comparisons - len(lines))])
    verdicts = []
    for line, p in zip(lines, corrected, strict=False):
        nothing = 1.0 if math.isnan(line.half_width) else 0.0  # of a ratio, or of a difference
        verdicts.append("undecided" if p >= 1 - LEVEL else "higher" if line.difference > nothing else "lower")
    return verdicts


def main() -> None:
    """Print the values of `few`, and all comparisons.

    Raises:
        RunError: no study has all of its runs.
    """
    argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter).parse_args()
    compared = {"few": compare_few, "private": compare_private, "language": compare_language}
    studies = {name: runs for name in compared if (runs := read_runs(name))}
    lines = [line for name, runs in studies.items() for line in compared[name](runs)]
    if not lines:
        raise RunError("no study of experiments/peft_or_full has all of its runs; its README has the commands")
    table = Table("value, method minus full", "method", "difference", "95 %", "p", "against full")
    for line, verdict in zip(lines, choose_verdicts(lines), strict=True):
        low, high = line.difference - line.half_width, line.difference + line.half_width
        interval = "" if math.isnan(line.half_width) else f"[{low:+.3f}, {high:+.3f}]"
        table.add_row(line.question, line.method, f"{line.difference:+.3f}", interval, f"{line.p:.4f}", verdict)
    console = Console()
    if "few" in studies:
        console.print(build_values_table(studies["few"]))
    console.print(table)


if __name__ == "__main__":
    with exit_on_error():
        main()

"""Print the design of the registered study, or the hours that its runs take; nothing is trained.

python -m experiments.decide              print DESIGN.md with the numbers of the committed results
python -m experiments.decide --dry-run    print the hours per task and in total
python -m experiments.decide --write      write the tables of DESIGN.md
"""

from __future__ import annotations

import argparse
import math
import sys
from collections.abc import Sequence
from statistics import fmean

from scipy import stats  # type: ignore[import-untyped, unused-ignore]

from experiments import exit_on_error
from experiments.claims.decisions import ALPHA, compute_power
from experiments.decide.registry import (
    HERE,
    NATS,
    RegisteredClaim,
    Task,
    compute_evidence,
    compute_hours,
    compute_rung,
    read_registry,
)
from fedpeft.study.statistics import POINTS

PAGE = HERE / "DESIGN.md"

BEGIN, END = "<!-- made by: python -m experiments.decide --write -->\n", "<!-- end -->\n"

CORES, MOST_HOURS = 2, 24.0
"""The budget: hours of so many cores."""

MOST_MARGIN = 3.0
"""Largest margin in points."""


def make_table(headings: Sequence[str], rows: Sequence[Sequence[str]], numbers: int) -> str:
    """Return a Markdown table; its last `numbers` columns are aligned to the right."""
    marks = ["---"] * (len(headings) - numbers) + ["---:"] * numbers
    return "\n".join("| " + " | ".join(cells) + " |" for cells in (headings, marks, *rows)) + "\n"


def compute_limit(task: Task) -> float | None:
    """Return the largest margin that a task may have, in points: a fifth of its gain, and never above 3."""
    if not task.ladder:
        return None
    gain = compute_rung(task.ladder, "pooled adapter") - compute_rung(task.ladder, "probe")
    return min(MOST_MARGIN, POINTS * gain / 5)


def compute_resolution(task: Task) -> float:
    """Return the smallest margin that the test examples of a task resolve with any number of seeds.

    Equivalence then has a power of 80 % at d = 0, under the hardest correction. The standard error of the test examples
    is the mean over the pilots of the task's claims.
    """
    claims = read_registry()[0]
    errors = [
        math.sqrt(compute_evidence(claim.pilot, task.measure).of_rows) for claim in claims if claim.study == task.name
    ]
    return (float(stats.norm.isf(ALPHA / len(claims))) + float(stats.norm.ppf(0.9))) * fmean(errors)


def make_tasks() -> str:
    """Return the table of tasks: gain, margin and seeds."""
    rows = []
    for task in read_registry()[1].values():
        limit = compute_limit(task)
        digits = 3 if task.measure == NATS else 2
        shown = ["-"] * 3
        if limit is not None:
            probe, pooled = (compute_rung(task.ladder, rung) for rung in ("probe", "pooled adapter"))
            shown = [f"{POINTS * probe:.1f}", f"{POINTS * pooled:.1f}", f"{limit:.2f}"]
        margin = "not tested" if task.margin is None else f"**{task.margin:g}**"
        seeds = task.study.seeds
        shown += [f"{compute_resolution(task):.{digits}f}", margin, f"{seeds[0]} to {seeds[-1]} ({len(seeds)})"]
        rows.append([task.name, task.measure, task.judged_on, *shown])
    headings = ("task", "measure", "judged on", "probe (%)", "pooled adapter (%)", "margin at most")
    return make_table((*headings, "test set resolves", "margin", "seeds"), rows, 6)


def make_claims() -> str:
    """Return the table of claims: arms and the paper's direction."""
    rows = [
        [
            str(c.number),
            c.topic,
            f"{c.says} ({c.paper}, arXiv {c.arxiv})",
            c.study,
            f"`{c.method}` against `{c.baseline}`",
            c.direction,
        ]
        for c in read_registry()[0]
    ]
    return make_table(("#", "topic", "claim (paper)", "task", "arms", "paper says"), rows, 0)


def make_power() -> str:
    """Return the table of power: scatter of the pilot, and what the planned seeds can show."""
    claims, tasks = read_registry()
    return make_table(
        (
            "#",
            "pilot",
            "pair",
            "SD over seeds",
            "SE of test examples",
            "SE planned",
            "found at 80 %",
            "equivalence at 0",
        ),
        [make_power_row(claim, tasks[claim.study], len(claims)) for claim in claims],
        5,
    )


def make_power_row(claim: RegisteredClaim, task: Task, count: int) -> list[str]:
    """Return the cells of a claim."""
    evidence = compute_evidence(claim.pilot, task.measure)
    planned = evidence.extrapolate_to_seeds(len(task.study.seeds))
    least, equivalence = compute_power(planned, count, task.margin)
    digits = 3 if task.measure == NATS else 2
    values = (float(evidence.by_seed.std(ddof=1)), math.sqrt(evidence.of_rows), math.sqrt(planned.seen[-1][0]), least)
    shown = "not tested" if math.isnan(equivalence) else f"{100 * equivalence:.0f} %"
    cells = [f"{value:.{digits}f}" for value in values]
    return [str(claim.number), claim.pilot.study, claim.pilot.nearness, *cells, shown]


def make_hours() -> str:
    """Return the table of hours."""
    rows, total = [], [0.0, 0.0]
    for task in read_registry()[1].values():
        runs, tuning = compute_hours(task, CORES)
        total = [total[0] + runs, total[1] + tuning]
        counts = f"{len(task.study.plan_runs())} + {len(task.tuning.plan_runs())}"
        rows.append([task.name, counts, f"{runs:.1f}", f"{tuning:.1f}", f"{runs + tuning:.1f}"])
    rows.append(["total", "", f"{total[0]:.1f}", f"{total[1]:.1f}", f"{sum(total):.1f}"])
    return make_table(("task", "runs: deciding + tuning", "deciding (h)", "tuning (h)", "together (h)"), rows, 4)


def make_page(before: str) -> str:
    """Return the page with its tables made anew."""
    claims = read_registry()[0]
    tables = (
        f"## The tasks\n\n{make_tasks()}\n## The {len(claims)} claims\n\n{make_claims()}\n"
        f"## The power of each claim\n\n"
        f"The hardest correction is assumed: {ALPHA:.2f} / {len(claims)} for each claim.\n"
        f"\n{make_power()}\n## The hours of {CORES} cores\n\n{make_hours()}\n"
    )
    return before[: before.index(BEGIN)] + f"{BEGIN}\n{tables}" + before[before.index(END) :]


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; return 1 if the hours exceed the budget."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dry-run", action="store_true", help="print the hours per task and in total")
    parser.add_argument("--write", action="store_true", help="write the tables of DESIGN.md")
    options = parser.parse_args(arguments)
    if options.dry_run:
        print(make_hours(), end="")
        hours = sum(sum(compute_hours(task, CORES)) for task in read_registry()[1].values())
        return int(hours > MOST_HOURS)
    page = make_page(PAGE.read_text(encoding="utf-8"))
    if options.write:
        PAGE.write_text(page, encoding="utf-8")
    print(page, end="")
    return 0


if __name__ == "__main__":
    with exit_on_error():
        sys.exit(main())

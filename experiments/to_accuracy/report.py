"""The table of the comparison, and the figure: validation accuracy over seconds and over bytes."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from statistics import median
from typing import Any

from experiments import write_between
from experiments.to_accuracy.rules import Curve, find_crossing
from experiments.to_accuracy.settings import SIDES
from fedpeft.errors import RunError

BEGIN, END = "<!-- results: begin -->", "<!-- results: end -->"
FIGURE = "curves.svg"

COLORS = {"flower": "#c0392b", "plain": "#7f8c8d", "default": "#2c3e50", "earlier": "#e08e0b"}

Levels = Mapping[str, Mapping[str, float]]
"""Levels of each task, by name."""

Runs = Mapping[str, Mapping[int, Curve]]
"""Curves of a task, by side and seed."""

MEASURES: Mapping[str, Callable[[Curve, int], float]] = {
    "seconds": lambda curve, at: curve.seconds[at],
    "megabytes": lambda curve, at: curve.bytes[at] / 1e6,
    "rounds": lambda curve, at: curve.rounds[at],
}
"""What a side has needed at an evaluation."""


def write(folder: Path, levels: Levels, lines: Sequence[Mapping[str, Any]]) -> None:
    """Write the table into the folder's README.md, and the figure beside it.

    Raises:
        RunError: no run of the comparison is recorded, or the README lacks its marks.
    """
    compared = [line for line in lines if line["stage"] == "compare"]
    if not compared:
        raise RunError("no run of the comparison is recorded; run it with: python -m experiments.to_accuracy compare")
    tasks = {task: select_runs(compared, task) for task in levels}
    tasks = {task: runs for task, runs in tasks.items() if runs}
    tables = [format_environment(compared), *(format_table(task, levels[task], runs) for task, runs in tasks.items())]
    write_between(folder / "README.md", BEGIN, END, "\n\n".join([*tables, f"![curves]({FIGURE})"]))
    draw(folder / FIGURE, levels, tasks)


def select_runs(lines: Sequence[Mapping[str, Any]], task: str) -> dict[str, dict[int, Curve]]:
    """Return the curves of a task by side, in the order of the sides, and by seed."""
    runs: dict[str, dict[int, Curve]] = {}
    for side in SIDES:
        own = {line["seed"]: Curve.read(line) for line in lines if (line["task"], line["side"]) == (task, side)}
        if own:
            runs[side] = own
    return runs


def format_environment(lines: Sequence[Mapping[str, Any]]) -> str:
    """Return a line about the machine and its load."""
    cpus = ", ".join(sorted({f"{line['cpu']}, {line['workers']} workers" for line in lines}))
    loads = [line["load"][0] for line in lines]
    commits = ", ".join(sorted({str(line["commit"]) for line in lines if line["side"] != "earlier"}))
    when = sorted(line["time"] for line in lines)
    return (
        f"{cpus}; load average before a run {min(loads):.1f} to {max(loads):.1f}, median {median(loads):.1f}; "
        f"commit {commits}; {when[0]} to {when[-1]} UTC"
    )


def measure(curve: Curve, level: float, name: str) -> float:
    """Return what a run needed until a level, in the unit of the measure `name`; infinity: it never reached it."""
    at = find_crossing(curve, level)
    return math.inf if at is None else float(MEASURES[name](curve, at))


def compute_ratios(runs: Runs, side: str, level: float, name: str) -> list[float]:
    """Return how many times as much Flower needed as a side, for each seed that both have.

    It is infinite if only the side reached the level, and 0 if only Flower did. Seeds in which neither reached it, or
    neither needed anything, are left out.
    """
    ratios = []
    for seed in sorted(set(runs.get("flower", {})) & set(runs[side])):
        theirs, own = (measure(runs[of][seed], level, name) for of in ("flower", side))
        if theirs == own and (math.isinf(own) or own == 0):
            continue
        ratios.append(math.inf if own == 0 or math.isinf(theirs) else theirs / own)
    return ratios


def format_table(task: str, levels: Mapping[str, float], runs: Runs) -> str:
    """Return the table of a task: medians with least and most over seeds, and ratios within seeds."""
    rows = [
        f"**{task}**",
        "",
        "| level | side | reached | seconds | megabytes | rounds | Flower's seconds / its | Flower's bytes / its |",
        "|---|---|---:|---:|---:|---:|---:|---:|",
    ]
    for share, level in levels.items():
        for side, own in runs.items():
            found = {name: [measure(curve, level, name) for curve in own.values()] for name in MEASURES}
            reached = sum(map(math.isfinite, found["seconds"]))
            if side == "plain":
                found |= {"megabytes": [], "rounds": []}  # it has neither
            compared = [] if side == "flower" else [name for name in ("seconds", "megabytes") if found[name]]
            ratios = {name: compute_ratios(runs, side, level, name) for name in compared}
            cells = [f"{share}: {level:.4f}", SIDES[side], f"{reached} of {len(own)}"]
            cells += [format_spread(values, digits) for values, digits in zip(found.values(), (0, 2, 0), strict=True)]
            cells += [format_spread(ratios.get(name, []), 2) for name in ("seconds", "megabytes")]
            rows.append(f"| {' | '.join(cells)} |")
    return "\n".join(rows)


def format_spread(values: Sequence[float], digits: int) -> str:
    """Return median, least and most; infinity is "never", and nothing is an empty cell."""
    if not values:
        return ""
    ordered = sorted(values)  # the lower middle of an even number, since half of infinity means nothing
    shown = [ordered[(len(ordered) - 1) // 2], ordered[0], ordered[-1]]
    middle, least, most = ("never" if math.isinf(value) else f"{value:.{digits}f}" for value in shown)
    return f"{middle} ({least} to {most})"


def draw(file: Path, levels: Levels, tasks: Mapping[str, Runs]) -> None:
    """Draw each task's curves over seconds and over bytes: a line per seed, and the levels."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot
    from matplotlib.lines import Line2D

    with pyplot.rc_context({"svg.hashsalt": "fedpeft", "font.size": 9}):
        figure, axes = pyplot.subplots(
            len(tasks), 2, figsize=(10, 3 * len(tasks) + 0.6), squeeze=False, sharey="row", layout="constrained"
        )
        for (left, right), (task, runs) in zip(axes, tasks.items(), strict=True):
            for side, own in runs.items():
                for curve in own.values():
                    style: dict[str, Any] = {"color": COLORS[side], "linewidth": 0.9, "alpha": 0.7}
                    left.plot(curve.seconds, curve.accuracy, **style)
                    if side != "plain" and curve.bytes[-1]:
                        spent = [(n / 1e6, at) for n, at in zip(curve.bytes, curve.accuracy, strict=True) if n]
                        right.plot(*zip(*spent, strict=True), **style)
            for axis in (left, right):
                for place, (share, level) in enumerate(levels[task].items()):
                    axis.axhline(level, color="#999999", linewidth=0.7, linestyle=":")
                    if axis is right:
                        shift = (3, 1 if place == len(levels[task]) - 1 else -6)  # the highest two are close
                        axis.annotate(share, (1, level), shift, ("axes fraction", "data"), textcoords="offset points")
                axis.grid(color="#eeeeee")
                axis.set_axisbelow(True)
            left.set_ylabel(f"{task}\nvalidation accuracy")
            left.set_xlim(left=0)
            right.set_xscale("log")
        axes[-1][0].set_xlabel("seconds since the start, without evaluations")
        axes[-1][1].set_xlabel("megabytes, both directions")
        present = [side for side in SIDES if any(side in runs for runs in tasks.values())]
        handles = [Line2D([], [], color=COLORS[side], label=SIDES[side]) for side in present]
        figure.legend(handles=handles, loc="outside upper center", ncols=len(handles), frameon=False)
        figure.savefig(file, metadata={"Date": None} if file.suffix == ".svg" else None)
        pyplot.close(figure)

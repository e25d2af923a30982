"""python -m experiments.harm: do the defaults improve on their start? Run by run, paired by test example.

Reads `results.jsonl` of the study beside it, or of the folder of a `--preset`. The first table lists the runs. The
standard error of a difference is that over test examples, with one run on either side. The second table contains means
over seeds, with 95 % intervals (Student's t). The third compares the default with plain losses on the shared seeds:
points over the start, of the result and of the last state, as means over seeds. With a preset, a last table compares
its defaults with those of the small preset: points over them, on the shared seeds.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from experiments import exit_on_error
from experiments.recorded import read_recorded
from fedpeft.study.results import Result, ResultsFile
from fedpeft.study.statistics import compute_half_width

HERE = Path(__file__).parent

Key = tuple[str, str, int, str]
"""Task, partition, seed, state."""


def get_key(run: Result) -> Key:
    """Return the key of a run."""
    return run.point["task"], run.point["partition"], run.seed, run.point["state"]


def format_line(run: Result, start: Result) -> str:
    """Format a row of the first table."""
    assert run.test_counts is not None
    assert start.test_counts is not None
    before, after = start.test_counts.correct.astype(float), run.test_counts.correct.astype(float)
    difference = after - before
    error = difference.std(ddof=1) / np.sqrt(len(difference))
    return (
        f"| {run.point['task']} | {run.point['partition']} | {run.seed} | {100 * before.mean():.2f} | "
        f"{100 * after.mean():.2f} | {int((difference > 0).sum())} / {int((difference < 0).sum())} | "
        f"{100 * difference.mean():+.2f} | {difference.mean() / error if error else 0.0:+.1f} |"
    )


def get_accuracies(run: Result) -> tuple[float, float]:
    """Test accuracy of a run's result and of its last state, in percent."""
    assert run.summary is not None
    return 100 * run.summary["accuracy"], 100 * run.summary["last_accuracy"]


PLAIN = "default, losses as they are"
PARTITIONS = ("dirichlet(alpha=0.5)", "dirichlet(alpha=0.1)", "dirichlet(alpha=0.05)")


def compare_with_plain(runs: Mapping[Key, Result]) -> Iterator[str]:
    """Yield the rows of the table that compares default with plain losses."""
    groups: dict[tuple[str, str], list[tuple[float, ...]]] = {}
    for (task, partition, seed, state), run in runs.items():
        start, plain = (runs.get((task, partition, seed, other)) for other in ("start", PLAIN))
        if state == "default" and start is not None and plain is not None:
            (result, last), (plain_result, plain_last), (before, _) = map(get_accuracies, (run, plain, start))
            points = (result - before, plain_result - before, last - before, plain_last - before)
            groups.setdefault((task, partition), []).append(points)
    for (task, partition), found in groups.items():
        means = " | ".join(f"{number:+.2f}" for number in np.mean(found, axis=0))
        yield f"| {task} | {partition} | {len(found)} | {means} |"


def format_means(pairs: Iterable[tuple[Result, Result]]) -> Iterator[str]:
    """Yield the rows of the table of means over seeds, of defaults and their starts."""
    found: dict[str, dict[str, list[tuple[float, float]]]] = {}
    for run, start in pairs:
        (after, _), (before, _) = get_accuracies(run), get_accuracies(start)
        found.setdefault(run.point["task"], {}).setdefault(run.point["partition"], []).append((before, after - before))
    for task, partitions in found.items():
        cells = [f"{np.mean([before for of in partitions.values() for before, _ in of]):.1f}"]
        for partition in PARTITIONS:
            points = np.array([gained for _, gained in partitions.get(partition, [])])
            cells.append(f"{points.mean():+.2f}{_format_interval(points)} [{len(points)}]" if len(points) else "")
        yield f"| {task} | {' | '.join(cells)} |"


def compare_with_small(runs: Mapping[Key, Result], small: Mapping[Key, Result]) -> Iterator[str]:
    """Yield the rows of the table that compares a preset's runs with those of the small preset."""
    groups: dict[tuple[str, str], list[tuple[float, float]]] = {}
    for where, run in runs.items():
        if where[-1] == "default" and where in small:
            groups.setdefault(where[:2], []).append((get_accuracies(run)[0], get_accuracies(small[where])[0]))
    for (task, partition), found in groups.items():
        own, others = np.array(found).T
        points = own - others
        yield (
            f"| {task} | {partition} | {own.mean():.1f} ({own.min():.1f} to {own.max():.1f}) | {others.mean():.1f} | "
            f"{points.mean():+.2f}{_format_interval(points)} [{len(points)}] |"
        )


def _format_interval(points: NDArray[np.float64]) -> str:
    if len(points) < 2:
        return ""
    half = compute_half_width(points, 0.95, 2)
    return f" ({points.mean() - half:+.2f} to {points.mean() + half:+.2f})"


def main() -> None:
    """Print the tables."""
    found = read_recorded(HERE, __doc__)
    runs = {get_key(run): run for run in found}
    pairs = [
        (run, start)
        for (task, partition, seed, state), run in runs.items()
        if state == "default" and (start := runs.get((task, partition, seed, "start"))) is not None
    ]
    print("| task | partition | seed | start (%) | default (%) | rows gained / lost | points | standard errors |")
    print("|---|---|---:|---:|---:|---:|---:|---:|")
    for run, start in pairs:
        print(format_line(run, start))
    print(f"\n| | start (%) | {' | '.join(PARTITIONS)} |")
    print("|---|---:|---:|---:|---:|")
    print("\n".join(format_means(pairs)))
    if rows := list(compare_with_plain(runs)):
        print("\n| task | partition | seeds | default | losses as they are | last state, default | as they are |")
        print("|---|---|---:|---:|---:|---:|---:|")
        print("\n".join(rows))
    if found[0].preset != "small":
        small = {get_key(run): run for run in ResultsFile(HERE / "results.jsonl").read() if run.is_finished}
        print("\n| task | partition | default (%) | of small (%) | points over it |")
        print("|---|---|---:|---:|---:|")
        print("\n".join(compare_with_small(runs, small)))


if __name__ == "__main__":
    with exit_on_error():
        main()

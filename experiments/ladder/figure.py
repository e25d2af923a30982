"""python -m experiments.ladder.figure [FILE.svg]: the baselines of the README's task beside its federated adapter.

A dot is the mean accuracy on the test examples of `reviews`, from results.jsonl. A line is the 95 % interval of the
mean over seeds (Student's t). For single clients, it spans the least and the most accurate client.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean, stdev

import matplotlib
from scipy.stats import t

from experiments import exit_on_error
from experiments.ladder.__main__ import FOLDER, Line, read

matplotlib.use("Agg")

BARS = (
    ("alone", "", "each client alone (8 clients)"),
    ("words", "", "linear model on words, pooled"),
    ("probe", "", "frozen probe, pooled"),
    ("federated", "4 blocks, 2e-3", "federated adapter"),
    ("pooled adapter", "4 blocks, 1e-3", "pooled adapter"),
)
"""Rung and label in results.jsonl, and the name in the figure."""


@dataclass(frozen=True)
class Bar:
    """Accuracy in percent with its interval; `low` and `high` equal `mean` for a single run."""

    name: str
    mean: float
    low: float
    high: float


def create_bar(name: str, accuracies: list[float], is_range: bool) -> Bar:
    """Return the mean of accuracies (0 to 1) in percent, with their range or the interval of the mean."""
    percent = [100 * accuracy for accuracy in accuracies]
    mean = fmean(percent)
    if is_range:
        return Bar(name, mean, min(percent), max(percent))
    half = t.ppf(0.975, len(percent) - 1) * stdev(percent) / len(percent) ** 0.5 if len(percent) > 1 else 0.0
    return Bar(name, mean, mean - half, mean + half)


def create_bars(lines: list[Line]) -> list[Bar]:
    """Return the bars of `reviews`, from the weakest to the strongest."""
    bars = []
    for rung, label, name in BARS:
        chosen = [
            line
            for line in lines
            if line["task"] == "reviews" and line["rung"] == rung and (rung == "alone" or line["label"] == label)
        ]
        bars.append(create_bar(name, [line["accuracy"] for line in chosen], rung == "alone"))
    return bars


def draw(bars: list[Bar], file: Path) -> None:
    """Draw the bars as dots with intervals."""
    from matplotlib import pyplot

    with pyplot.rc_context({"svg.hashsalt": "fedpeft", "font.size": 10}):
        figure, axis = pyplot.subplots(figsize=(7, 2.4), layout="constrained")
        for place, bar in enumerate(bars):
            color = "#c0392b" if bar.name == "federated adapter" else "#2c3e50"
            axis.plot([bar.low, bar.high], [place, place], color=color, linewidth=2)
            axis.plot(bar.mean, place, "o", color=color)
            axis.annotate(f"{bar.mean:.1f}", (max(bar.high, bar.mean), place), (6, -4), textcoords="offset points")
        axis.set_yticks(range(len(bars)), [bar.name for bar in bars])
        axis.set_xlim(55, 90)
        axis.set_ylim(-0.6, len(bars) - 0.4)
        axis.set_xlabel("test accuracy (%) on reviews")
        axis.grid(axis="x", color="#dddddd")
        axis.set_axisbelow(True)
        for side in ("top", "right", "left"):
            axis.spines[side].set_visible(False)
        figure.savefig(file, metadata={"Date": None})
        pyplot.close(figure)


def main() -> None:
    """Draw the figure."""
    file = Path(sys.argv[1]) if len(sys.argv) > 1 else FOLDER.parents[1] / "docs" / "baselines.svg"
    draw(create_bars(read(FOLDER / "results.jsonl")), file)
    print(file)


if __name__ == "__main__":
    with exit_on_error():
        main()

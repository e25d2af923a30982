"""The picture of one run: accuracy and loss per round."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fedpeft.machine import files

if TYPE_CHECKING:
    from matplotlib.axes import Axes

FEDERATED: dict[str, Any] = {"color": "#0072B2", "marker": "o", "markersize": 3.5}
CLIENTS: dict[str, Any] = {"color": "#CC79A7", "marker": "s", "markersize": 3.5, "linestyle": "--"}

REFERENCES = (
    ("accuracy", "federated, test rows", "#0072B2", "-."),
    ("baseline_accuracy", "frozen linear probe, test rows", "#D55E00", "--"),
    ("centralised_accuracy", "pooled data, test rows", "#009E73", ":"),
)
"""Keys of the summary, and how their lines are called and drawn."""


def plot_rounds(path: Path, rounds: list[dict[str, Any]], summary: dict[str, Any]) -> None:
    """Draw `figure_of` the rounds to `path` (SVG or PNG), whatever was there.

    Raises:
        OSError: it can't be written.
    """
    picture, kind = BytesIO(), path.suffix[1:]
    figure_of(rounds, summary).savefig(picture, format=kind, metadata={"Date": None} if kind == "svg" else None)
    files.replace(path, picture.getvalue())


def figure_of(rounds: list[dict[str, Any]], summary: dict[str, Any]) -> Any:
    """The validation curve and the losses of `rounds`, with the reference lines, as a figure of matplotlib.

    `rounds` are the lines of rounds.jsonl; references come from the summary where they are known.
    """
    from matplotlib import rc_context
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator

    measured = [r for r in rounds if r["loss"] is not None]
    with rc_context({"font.size": 10, "axes.spines.top": False, "axes.spines.right": False}):
        figure = Figure(figsize=(9, 3.4), layout="constrained")
        left, right = figure.subplots(1, 2)
        if summary["metric"] == "accuracy":
            _accuracies(left, measured, summary)
        else:
            left.plot([r["round"] for r in measured], [math.exp(r["loss"]) for r in measured], **FEDERATED)
            left.set_ylabel("perplexity, validation rows")
        _losses(right, measured, [r for r in rounds if r["train_loss"] is not None])
        for axis in (left, right):
            axis.set_xlabel("round")
            axis.xaxis.set_major_locator(MaxNLocator(integer=True))
            axis.grid(alpha=0.25, linewidth=0.6)
    return figure


def _accuracies(axis: Axes, measured: Sequence[Mapping[str, Any]], summary: Mapping[str, Any]) -> None:
    numbers, accuracies = [r["round"] for r in measured], [100 * r["accuracy"] for r in measured]
    axis.plot(numbers, accuracies, label="federated, validation rows", **FEDERATED)
    for key, label, color, style in REFERENCES:
        if summary.get(key) is not None:
            axis.axhline(100 * summary[key], color=color, linestyle=style, linewidth=1.2, label=label)
    axis.set_ylabel("accuracy (%)")
    axis.legend(frameon=False, fontsize=8)


def _losses(axis: Axes, measured: Sequence[Mapping[str, Any]], trained: Sequence[Mapping[str, Any]]) -> None:
    axis.plot([r["round"] for r in measured], [r["loss"] for r in measured], label="validation rows", **FEDERATED)
    numbers, losses = [r["round"] for r in trained], [r["train_loss"] for r in trained]
    axis.plot(numbers, losses, label="clients, during training", **CLIENTS)
    axis.set_ylabel("cross-entropy (nats)")
    axis.legend(frameon=False, fontsize=8)

"""A plot of a dataset before a run: the lengths of its examples, and the distribution of its classes over clients."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from fedpeft.data.partition import Shards
from fedpeft.data.rows import Rows
from fedpeft.errors import require_extra

if TYPE_CHECKING:
    from matplotlib.axes import Axes

COLOURS = ("#0072B2", "#E69F00", "#009E73", "#CC79A7", "#56B4E9", "#D55E00", "#F0E442")
"""Colors of the most frequent classes, by Okabe and Ito: distinguishable with color blindness."""

OTHERS = "#999999"
SHOWN = 60
"""The most clients in the plot, taken evenly from all, sorted by number of examples."""


def draw(
    path: Path,
    partition: Shards,
    rows: Rows,
    names: tuple[str, ...] | None,
    lengths: np.ndarray | None,
    tokens: int,
    unit: str = "tokens",
) -> None:
    """Draw lengths (rows,) in `unit`, if they are known, and the partition of `rows` to `path` (SVG, PNG or PDF)."""
    require_extra("matplotlib", "simulate", "a figure")
    from matplotlib import rc_context
    from matplotlib.figure import Figure

    with rc_context({"font.size": 10, "axes.spines.top": False, "axes.spines.right": False, "svg.hashsalt": "fedpeft"}):
        figure = Figure(figsize=(9, 3.4), layout="constrained")
        *left, right = figure.subplots(1, 1 if lengths is None else 2, squeeze=False)[0]
        if lengths is not None:
            _plot_lengths(left[0], lengths, tokens, unit)
        _plot_clients(right, partition, rows, names)
        figure.savefig(path, metadata={"Date": None} if path.suffix == ".svg" else None)


def compute_bin_edges(lengths: np.ndarray, reach: int) -> np.ndarray:
    """Return edges (at most 42) of bins with equally many whole numbers each, as wide as is visible up to `reach`."""
    low, high = int(lengths.min()), int(lengths.max())
    width = -(-(max(high, reach) - low + 1) // 40)
    return np.arange(low, high + width + 1, width) - 0.5


def _plot_lengths(axis: Axes, lengths: np.ndarray, tokens: int, unit: str) -> None:
    axis.hist(lengths, bins=compute_bin_edges(lengths, tokens if unit == "tokens" else 0).tolist(), color=COLOURS[0])
    if unit == "tokens":
        axis.axvline(tokens, color=COLOURS[5], linestyle="--", linewidth=1.2, label=f"--tokens {tokens}")
        axis.legend(frameon=False, fontsize=8, loc="upper right")
    axis.set_xlabel(f"length of a row ({unit})")
    axis.set_ylabel("rows")


def _plot_clients(axis: Axes, partition: Shards, rows: Rows, names: tuple[str, ...] | None) -> None:
    from matplotlib.ticker import MaxNLocator

    order = np.argsort(-partition.sizes, kind="stable")
    if len(order) > SHOWN:
        order = order[np.linspace(0, len(order) - 1, SHOWN).astype(int)]
    place, bottom = np.arange(len(order)), np.zeros(len(order))
    if rows.targets == "numbers" and rows.classes is not None:
        names = tuple(f"{quantile + 1}. tenth of the numbers" for quantile in range(int(rows.classes.max()) + 1))
    if rows.classes is None or names is None:
        axis.bar(place, partition.sizes[order], color=COLOURS[0], width=0.9)
    else:
        labels = rows.classes
        counts = np.stack([np.bincount(labels[partition.shard(k)], minlength=len(names)) for k in order.tolist()])
        frequent = np.argsort(-np.bincount(labels, minlength=len(names)), kind="stable")
        for number, colour in zip(frequent[: len(COLOURS)], COLOURS, strict=False):
            axis.bar(place, counts[:, number], bottom=bottom, color=colour, width=0.9, label=names[number][:24])
            bottom += counts[:, number]
        if len(names) > len(COLOURS):
            rest = counts[:, frequent[len(COLOURS) :]].sum(1)
            axis.bar(place, rest, bottom=bottom, color=OTHERS, width=0.9, label=f"{len(names) - len(COLOURS)} others")
        axis.legend(frameon=False, fontsize=8, ncols=2, loc="upper right")  # where the clients have fewest rows
    shown = f"{len(order)} of {len(partition)}" if len(order) < len(partition) else f"{len(order)}"
    axis.set_xlabel(f"clients, by their rows ({shown})")
    axis.set_ylabel("rows")
    axis.xaxis.set_major_locator(MaxNLocator(integer=True))
    axis.margins(x=0.01)
    axis.set_ylim(0, 1.15 * max(1, int(partition.sizes[order].max())))  # room for the legend; bars of 0 leave none

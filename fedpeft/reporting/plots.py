"""The plots of one run: accuracy and loss per round, and accuracy per task."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fedpeft.errors import require_extra
from fedpeft.machine import files
from fedpeft.reporting.observer import compute_perplexity
from fedpeft.reporting.summary import TEST_ROWS, VALIDATION_ROWS

if TYPE_CHECKING:
    from matplotlib.axes import Axes

FEDERATED: dict[str, Any] = {"color": "#0072B2", "marker": "o", "markersize": 3.5, "clip_on": False}
CLIENTS: dict[str, Any] = {"color": "#CC79A7", "marker": "s", "markersize": 3.5, "linestyle": "--", "clip_on": False}

REFERENCES = (
    ("accuracy", "federated, test rows", "#0072B2", "-."),
    ("baseline_accuracy", "frozen linear probe, test rows", "#D55E00", "--"),
    ("centralised_accuracy", "pooled data, test rows", "#009E73", ":"),
)
"""Keys of the summary, with the label, color and style of their lines."""


def plot_rounds(path: Path, rounds: list[dict[str, Any]], summary: dict[str, Any]) -> None:
    """Draw `plot_run` of the rounds to `path` (SVG or PNG), and replace an existing file.

    Raises:
        OSError: the file can't be written.
    """
    _write(path, plot_run(rounds, summary))


def plot_tasks(path: Path, tasks: Mapping[str, Any]) -> None:
    """Draw `plot_task_curves` to `path` (SVG or PNG), and replace an existing file.

    Raises:
        OSError: the file can't be written.
    """
    _write(path, plot_task_curves(tasks))


def _write(path: Path, figure: Any) -> None:
    picture, kind = BytesIO(), path.suffix[1:]
    figure.savefig(picture, format=kind, metadata={"Date": None} if kind == "svg" else None)
    files.replace(path, picture.getvalue())


TASK_PANELS = (("accuracy", "all classes compete"), ("accuracy_known_task", "task known"))
"""Matrices of `fedpeft.reporting.task_measures`, with their titles."""

LONGEST_NAME = 18
"""The most characters of a task's name in a plot."""


def plot_task_curves(tasks: Mapping[str, Any]) -> Any:
    """Plot tasks against time: the accuracy (%) on each task's validation examples, at the start and after each task.

    Args:
        tasks: the section `tasks` of summary.json.
    """
    from matplotlib import rc_context
    from matplotlib.figure import Figure

    panels = [(key, title) for key, title in TASK_PANELS if key in tasks]
    names = [name if len(name) <= LONGEST_NAME else name[: LONGEST_NAME - 1] + "…" for name in tasks["names"]]
    times = ["start", *(f"round {round_number}" for round_number in tasks["rounds"])]
    with rc_context({"font.size": 9}):
        width, height = 1.6 + (0.6 * len(times) + 1.2) * len(panels), 1.3 + 0.4 * len(names)
        figure = Figure(figsize=(width, height), layout="constrained")
        axes = figure.subplots(1, len(panels), squeeze=False)[0]
        for axis, (key, title) in zip(axes, panels, strict=True):
            rows = [tasks[key]["start"], *tasks[key]["matrix"]]
            axis.imshow([[row[i] for row in rows] for i in range(len(names))], cmap="cividis", vmin=0, vmax=1)
            for time, row in enumerate(rows):
                for task, value in enumerate(row):
                    ink = "black" if value > 0.6 else "white"
                    axis.text(time, task, f"{100 * value:.0f}", ha="center", va="center", color=ink)
            axis.set_title(title, fontsize=9)
            axis.set_xticks(range(len(times)), times, rotation=45, ha="right")
            axis.set_yticks(range(len(names)), names if axis is axes[0] else [""] * len(names))
    return figure


def plot_run(rounds: list[dict[str, Any]], summary: dict[str, Any]) -> Any:
    """Plot the validation curve and the losses, with the reference lines, as a figure of matplotlib.

    Args:
        rounds: the lines of rounds.jsonl.
        summary: the content of summary.json, from which known references come.

    Raises:
        AssetError: matplotlib is not installed.
    """
    require_extra("matplotlib", "simulate", "a figure")
    from matplotlib import rc_context
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator

    class Shown(Figure):
        """A figure that notebooks show; otherwise they show only figures of pyplot."""

        def _repr_png_(self) -> bytes:
            drawn = BytesIO()
            self.savefig(drawn, format="png")
            return drawn.getvalue()

    measured = [r for r in rounds if r["loss"] is not None]
    limits: Any = {"axes.autolimit_mode": "round_numbers", "axes.xmargin": 0, "axes.ymargin": 0}
    with rc_context({"font.size": 10, "axes.spines.top": False, "axes.spines.right": False, **limits}):
        figure = Shown(figsize=(9, 3.4), layout="constrained")
        left, right = figure.subplots(1, 2)
        if summary["metric"] != "perplexity":
            _plot_accuracies(left, measured, summary)
        else:
            left.plot([r["round"] for r in measured], [compute_perplexity(r["loss"]) for r in measured], **FEDERATED)
            left.set_ylabel("perplexity, validation rows")
        unit = "squared error (deviations of the labels)" if summary["metric"] == "skill" else "cross-entropy (nats)"
        _plot_losses(right, measured, [r for r in rounds if r["train_loss"] is not None], unit)
        for axis in (left, right):
            axis.set_xlabel("round")
            axis.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
            axis.grid(alpha=0.25, linewidth=0.6)
            axis.get_ylim()  # sets the limits now; outside this context they would not be round
    return figure


def _plot_accuracies(axis: Axes, measured: Sequence[Mapping[str, Any]], summary: Mapping[str, Any]) -> None:
    numbers, accuracies = [r["round"] for r in measured], [100 * r["accuracy"] for r in measured]
    of = summary.get("accuracy_of") or TEST_ROWS
    curve = "validation rows" if of in (TEST_ROWS, VALIDATION_ROWS) else of
    axis.plot(numbers, accuracies, label=f"federated, {curve}", **FEDERATED)
    for key, label, color, style in REFERENCES:
        if key == "accuracy" and of != TEST_ROWS:
            label = f"result, {of}"
        if summary.get(key) is not None:
            axis.axhline(100 * summary[key], color=color, linestyle=style, linewidth=1.2, label=label)
    axis.set_ylim(top=min(100.0, axis.get_ylim()[1]))
    axis.set_ylabel(f"{summary['metric'].replace('_', ' ')} (%)")
    _draw_legend_above(axis)


def _draw_legend_above(axis: Axes) -> None:
    """Draw the legend above the axis, where it covers no data."""
    axis.legend(frameon=False, fontsize=8.5, ncols=2, loc="lower center", bbox_to_anchor=(0.5, 1.0))


def _plot_losses(
    axis: Axes, measured: Sequence[Mapping[str, Any]], trained: Sequence[Mapping[str, Any]], unit: str
) -> None:
    axis.plot([r["round"] for r in measured], [r["loss"] for r in measured], label="validation rows", **FEDERATED)
    numbers, losses = [r["round"] for r in trained], [r["train_loss"] for r in trained]
    if losses:  # private runs have none, and an empty curve would leave the layout no width
        axis.plot(numbers, losses, label="clients, during training", **CLIENTS)
    axis.set_ylabel(unit)
    _draw_legend_above(axis)

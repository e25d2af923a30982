"""The figures of a report, as SVG text."""

from __future__ import annotations

import io
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from fedpeft.models.calibration import BINS
from fedpeft.reporting.plots import plot_rounds
from fedpeft.study import task_figures, trust_figures
from fedpeft.study.curve_figures import BANDS, draw_curves, draw_curves_apart
from fedpeft.study.dot_plots import draw_score_against, draw_time_and_memory
from fedpeft.study.drawing import (
    COLORS,
    GREY,
    OTHERS,
    PAPER,
    MethodStyle,
    choose_columns,
    choose_looks,
    draw_legend_below,
    draw_panels,
    group_by_context,
    wrap_title,
)
from fedpeft.study.measures import format_heading
from fedpeft.study.results import QUANTILES, Result
from fedpeft.study.sections import Method, Section


@dataclass(frozen=True)
class Figure:
    """An SVG figure with its title and a note on how to read it."""

    name: str
    title: str
    note: str
    svg: str


def draw_course(section: Section, run: Result) -> str:
    """Draw accuracy and loss of one run, as in the run's own folder."""
    import matplotlib

    style: Any = {"svg.hashsalt": f"{section.title}/course", "text.parse_math": False}
    with tempfile.TemporaryDirectory() as folder, matplotlib.rc_context(style):
        path = Path(folder) / "course.svg"
        plot_rounds(path, [dict(line) for line in run.rounds], dict(run.summary or {}))
        text = path.read_text(encoding="utf-8")
    return text[text.index("<svg") :]


# ------------------------------------------------------------------------------------------------------- clients, bins


def draw_client_spread(section: Section) -> str | None:
    """Draw quantiles of accuracy over clients, worst clients first, as the mean over seeds.

    Returns None if no run has accuracies of clients.
    """
    contexts = group_by_context([m for m in section.shown if any(run.client_accuracy for run in m.runs.values())])
    if not contexts:
        return None
    out = io.StringIO()
    style = choose_looks(section)
    columns = choose_columns(len(contexts), 3)
    with draw_panels(len(contexts), columns, out, f"{section.title}/clients", share=True) as (figure, axes):
        for axis, (context, methods) in zip(axes, contexts.items(), strict=True):
            axis.set_title(wrap_title(context, columns))
            for method in methods:
                look = style[method.name]
                quantiles = [run.client_accuracy["quantiles"] for run in method.runs.values() if run.client_accuracy]
                axis.plot(
                    [100 * q for q in QUANTILES],
                    100 * np.mean(quantiles, axis=0),
                    color=look.color,
                    marker=look.marker,
                    linestyle=look.line,
                    markersize=4.5,
                    linewidth=1.4 if look.named else 0.9,
                    label=method.name if look.named else OTHERS,
                    zorder=look.order,
                    clip_on=False,
                )
            axis.set_xlabel("clients, worst first (%)")
        for axis in axes[::columns]:
            axis.set_ylabel("accuracy on its mix of classes (%)")
        draw_legend_below(figure, axes)
    return out.getvalue()


def draw_reliability(section: Section) -> str | None:
    """Draw accuracy against confidence in bins, over the examples of all seeds together.

    A marker's area is the share of the examples. Returns None if no run has a calibration.
    """
    style = choose_looks(section)
    methods = [m for m in section.shown if style[m.name].named and any(run.calibration for run in m.runs.values())]
    if not methods:
        return None
    out = io.StringIO()
    columns = max(2, choose_columns(len(methods), 4))
    with draw_panels(len(methods), columns, out, f"{section.title}/reliability") as (_, axes):
        for axis, method in zip(axes, methods, strict=True):
            _draw_reliability(axis, method, style[method.name])
            error = f"calibration error {method.compute_mean('calibration_error'):.1f} %"
            axis.set_title(
                error if section.single_run is not None else f"{wrap_title(method.label, columns)}\n{error}", fontsize=9
            )
            axis.set_xlabel("confidence (%)")
        for axis in axes[::columns]:
            axis.set_ylabel("accuracy, test examples (%)")
    return out.getvalue()


def _draw_reliability(axis: Any, method: Method, look: MethodStyle) -> None:
    calibrations = [run.calibration for run in method.runs.values() if run.calibration]
    seed_counts = np.array([c["rows"] for c in calibrations], dtype=float)
    counts = seed_counts.sum(0)
    kept = counts > 0
    divisor = np.maximum(counts, 1)
    confidence = 100 * ((np.array([c["confidence"] for c in calibrations]) * seed_counts).sum(0) / divisor)[kept]
    accuracy = 100 * ((np.array([c["accuracy"] for c in calibrations]) * seed_counts).sum(0) / divisor)[kept]
    axis.plot([0, 100], [0, 100], color=GREY, linewidth=1, linestyle="--")
    axis.vlines(confidence, confidence, accuracy, color=look.color, alpha=0.45)
    axis.plot(confidence, accuracy, color=look.color, linewidth=0.9, alpha=0.7)
    axis.scatter(
        confidence,
        accuracy,
        s=8 + 250 * counts[kept] / counts.sum(),
        color=look.color,
        marker=look.marker,
        edgecolor=PAPER,
        linewidth=0.5,
        zorder=3,
        clip_on=False,
    )
    axis.set(xlim=(0, 100), ylim=(0, 100))


# ---------------------------------------------------------------------------------------------------------- all of them

GREYS = "The least important of many methods are gray; the tables contain their numbers."

AGAINST = (
    "Left: each seed (a stroke), the mean, and its 95 % interval over the seeds (Student's t; from three seeds on; an "
    "arrow marks an interval that continues beyond the axis). "
    "Right: the means again; find a point without a label by its value on the left. "
)

APART = (
    "Validation examples after each round: the mean over seeds with a band of one standard deviation. Gray: the "
    "means of all methods."
)

CLIENTS = "The final global model on test examples with each client's mix of classes; the left end is the worst client."

RELIABILITY = (
    f"Reliability diagram of the test examples, {BINS} bins of confidence. On the dashed line, confidence equals "
    "accuracy. A marker's area is the share of the examples."
)


def draw_figures(section: Section) -> list[Figure]:
    """Return all figures that have content; for a single run, leave out comparisons."""
    if section.single_run is not None:
        return _draw_run_figures(section, section.single_run)
    score = section.main_measure.heading.replace(" (%)", "").capitalize()
    name = section.main_measure.key.capitalize()
    greys = (GREYS if len(section.names) > len(COLORS) else "") + section.own_rows_note
    figures = (
        (
            "accuracy_bytes",
            f"{name} and bytes",
            f"{score} and all bytes of the run, up and down. {AGAINST}Filled points are on the Pareto front (dashed "
            f"steps), which is computed per dataset. {greys}",
            draw_score_against(section, "total_bytes", "bytes of the run, up + down (MB)", True),
        ),
        (
            "accuracy_epsilon",
            f"{name} and privacy",
            f"{score} and the spent epsilon. {AGAINST}{greys}",
            draw_score_against(section, "epsilon", "epsilon (at the run's delta)", False),
        ),
        (
            "curves",
            f"{name} over rounds, bytes and time",
            f"Validation examples, the global model after each round. With at most {BANDS} methods, a band is one "
            f"standard deviation over seeds. Round 0: after the preparation. Time is that of the rounds. {greys}",
            draw_curves(section),
        ),
        ("apart", "One method at a time", f"{APART} {greys}", draw_curves_apart(section)),
        (
            "time_memory",
            "Time and memory",
            "Mean over seeds; bars are one standard deviation.",
            draw_time_and_memory(section),
        ),
        ("clients", "Accuracy over clients", f"{CLIENTS} {greys}", draw_client_spread(section)),
        (
            "reliability",
            "Calibration",
            f"{RELIABILITY} All seeds together; the error is their mean. Gray methods are left out.",
            draw_reliability(section),
        ),
    )
    drawn = (*figures, *task_figures.draw_task_figures(section), *trust_figures.draw_trust_figures(section))
    return [_create_figure(section, name, title, note.strip(), svg) for name, title, note, svg in drawn if svg]


def _create_figure(section: Section, name: str, title: str, note: str, svg: str) -> Figure:
    """Create a figure whose title and note name the metric of its runs."""
    return Figure(name, format_heading(title, section.results), format_heading(note, section.results), svg)


def _draw_run_figures(section: Section, run: Result) -> list[Figure]:
    figures = (
        (
            "course",
            f"{section.main_measure.key.capitalize()} and loss",
            f"The global model on the validation examples after each round.{section.own_rows_note}",
            draw_course(section, run),
        ),
        (
            "curves",
            f"{section.main_measure.key.capitalize()} over bytes and time",
            f"Bytes up and down; time of the rounds.{section.own_rows_note}",
            draw_curves(section),
        ),
        ("clients", "Accuracy over clients", CLIENTS, draw_client_spread(section)),
        ("reliability", "Calibration", RELIABILITY, draw_reliability(section)),
    )
    drawn = (*figures, *task_figures.draw_task_figures(section), *trust_figures.draw_trust_figures(section))
    return [_create_figure(section, name, title, note, svg) for name, title, note, svg in drawn if svg]

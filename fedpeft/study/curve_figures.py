"""Accuracy or perplexity over rounds, bytes and time: the mean over seeds, and a band around it."""

from __future__ import annotations

import io
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from fedpeft.reporting.observer import compute_perplexity
from fedpeft.study.drawing import (
    GREY,
    OTHERS,
    MethodStyle,
    choose_columns,
    choose_looks,
    draw_legend_below,
    draw_panels,
    group_by_context,
    round_limits,
    set_log_scale_if_wide,
    wrap_name,
)
from fedpeft.study.measures import build_curve, format_heading
from fedpeft.study.sections import Method, Section

BANDS = 4
"""Most bands per panel. With more methods, bands hide each other, so each method also gets its own panel."""

COLUMNS = 4
"""Most panels side by side, if each shows one method."""


@dataclass(frozen=True)
class MeanPoint:
    """Means over seeds after a round: the validation score, its standard deviation, and what was spent so far."""

    round: int
    megabytes: float
    seconds: float
    score: float
    deviation: float


def compute_mean_curve(method: Method) -> list[MeanPoint]:
    """Return a point for each round that all seeds have: accuracy in percent, or perplexity for runs with that metric.

    The deviation of a single seed is 0.
    """
    curves = [{p.round: p for p in build_curve(run)} for run in method.runs.values()]
    shared = sorted(set.intersection(*(set(c) for c in curves))) if curves else []
    has_perplexity = any(run.metric == "perplexity" for run in method.runs.values())
    curve = []
    for round_number in shared:
        points = [c[round_number] for c in curves]
        scores = [compute_perplexity(p.loss) if has_perplexity else p.accuracy for p in points]
        megabytes, seconds = (float(np.mean([getattr(p, name) for p in points])) for name in ("megabytes", "seconds"))
        deviation = float(np.std(scores, ddof=1)) if len(scores) > 1 else 0.0
        curve.append(MeanPoint(round_number, megabytes, seconds, float(np.mean(scores)), deviation))
    return curve


def _format_score(section: Section) -> str:
    """Return the label of the score's axis."""
    has_perplexity = section.main_measure.key == "perplexity"
    return "validation perplexity" if has_perplexity else format_heading("validation accuracy (%)", section.results)


def draw_curves(section: Section) -> str | None:
    """Draw the validation score over rounds, bytes and seconds: the mean and one standard deviation over seeds.

    Returns SVG text, or None if no method has a curve.
    """
    contexts = group_by_context([m for m in section.shown if compute_mean_curve(m)])
    if not contexts:
        return None
    out = io.StringIO()
    style = choose_looks(section)
    xs = {"round": "round", "megabytes": "bytes so far, up + down (MB)", "seconds": "time so far (s)"}
    if section.single_run is not None:
        del xs["round"]  # `draw_course` shows it
    if not any(math.isfinite(compute_mean_curve(m)[-1].seconds) for methods in contexts.values() for m in methods):
        del xs["seconds"]  # private runs do not publish it
    with draw_panels(len(xs) * len(contexts), len(xs), out, f"{section.title}/curves", share=True) as (figure, axes):
        for i, (context, methods) in enumerate(contexts.items()):
            row = axes[len(xs) * i : len(xs) * (i + 1)]
            row[0].set_title(context)
            row[0].set_ylabel(_format_score(section))
            for axis, (key, label) in zip(row, xs.items(), strict=True):
                for method in methods:
                    _draw_curve(axis, method, style[method.name], key, len(methods) <= BANDS)
                axis.set_xlabel(label)
                if key == "megabytes":
                    set_log_scale_if_wide(axis)
                elif key == "round":
                    _use_whole_numbers(axis)
        draw_legend_below(figure, axes)
    return out.getvalue()


def _draw_curve(axis: Any, method: Method, look: MethodStyle, key: str, band: bool) -> None:
    points = compute_mean_curve(method)
    xs = [getattr(p, key) for p in points]
    ys, deviations = (np.array([getattr(p, name) for p in points]) for name in ("score", "deviation"))
    axis.plot(
        xs,
        ys,
        color=look.color,
        marker=look.marker,
        linestyle=look.line,
        markersize=4,
        linewidth=1.4 if look.named else 0.9,
        markevery=max(1, len(xs) // 12),
        label=method.name if look.named else OTHERS,
        zorder=look.order,
        clip_on=False,
    )
    if band:
        axis.fill_between(xs, ys - deviations, ys + deviations, color=look.color, alpha=0.13, linewidth=0)


def _use_whole_numbers(axis: Any) -> None:
    from matplotlib.ticker import MaxNLocator

    axis.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))


def draw_curves_apart(section: Section) -> str | None:
    """Draw one panel per important method if the methods are too many for bands in one panel.

    A panel shows the method's mean score over the rounds with a band of one standard deviation over the seeds, in
    front of the other methods' curves. Returns None if every context has at most `BANDS` methods.
    """
    style = choose_looks(section)
    contexts = group_by_context([m for m in section.shown if len(compute_mean_curve(m)) > 1])
    shown = [(m, methods) for methods in contexts.values() if len(methods) > BANDS for m in methods]
    shown = [(m, methods) for m, methods in shown if style[m.name].named]
    if not shown:
        return None
    out = io.StringIO()
    columns = choose_columns(len(shown), COLUMNS)
    low, high = _compute_limits([m for m, _ in shown], section.main_measure.most)
    with draw_panels(len(shown), columns, out, f"{section.title}/apart", HEIGHT) as (_, axes):
        for i, (axis, (method, methods)) in enumerate(zip(axes, shown, strict=True)):
            axis.set_title(wrap_name(method.label, LETTERS), fontsize=9)
            _draw_apart(axis, method, methods, style[method.name])
            axis.set_ylim(low, high)
            axis.set_xlabel("round" if i >= len(shown) - columns else "")
            _use_whole_numbers(axis)
        for axis in axes[::columns]:
            axis.set_ylabel(_format_score(section))
    return out.getvalue()


HEIGHT = 2.3
"""Height of a panel with one method, in inches."""

LETTERS = 34
"""Longest line of the title above such a panel, in characters."""


def _draw_apart(axis: Any, method: Method, methods: Sequence[Method], look: MethodStyle) -> None:
    for other in methods:
        points = compute_mean_curve(other)
        axis.plot([p.round for p in points], [p.score for p in points], color=GREY, linewidth=0.6, alpha=0.45)
    _draw_curve(axis, method, look, "round", True)


def _compute_limits(methods: Sequence[Method], most: float) -> tuple[float, float]:
    """Return the y limits of all panels, from the shown bands alone.

    A failed method that is not shown would otherwise flatten the curves.
    """
    ends = [p.score + sign * p.deviation for m in methods for p in compute_mean_curve(m) for sign in (-1, 1)]
    return round_limits([min(most, end) for end in ends], most)

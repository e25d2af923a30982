"""Figures with one row per method: accuracy beside its cost, and time and memory."""

from __future__ import annotations

import io
from collections.abc import Sequence
from typing import Any

import numpy as np

from fedpeft.study.drawing import (
    GREY,
    INK,
    PAPER,
    MethodStyle,
    NamedPoint,
    choose_looks,
    compute_row_height,
    draw_panels,
    group_by_context,
    label_rows,
    name_points,
    round_limits,
    set_log_scale_if_wide,
)
from fedpeft.study.measures import Measure, format_heading
from fedpeft.study.sections import Method, Section
from fedpeft.study.statistics import LEVEL, compute_half_width

SEEDS_FOR_AN_INTERVAL = 3
"""Fewest seeds for which an interval is drawn. With two, it spans nine standard deviations on each side."""

REFERENCES = (
    ("baseline_accuracy", "frozen probe", (3, 2)),
    ("private_probe_accuracy", "private probe", (1, 2)),
    ("alone_accuracy", "each client alone", (6, 1.5, 1, 1.5)),
)
"""Measures drawn as lines across a method's row: key, name and dash pattern.

The names stand above the first row that has the measure, ordered from left to right by value.
"""


def draw_score_against(section: Section, key: str, x: str, front: bool) -> str | None:
    """Draw the main measure per method, and beside it the main measure against another one; two panels per context.

    `key` names the measure on the x axis, `x` is the axis label, and `front` marks the Pareto front. Returns SVG text,
    or None if no method has both measures.
    """
    main = section.main_measure
    contexts = group_by_context(
        [m for m in section.shown if m.compute_mean(key) is not None and m.compute_mean(main.key) is not None]
    )
    if not contexts:
        return None
    out = io.StringIO()
    style = choose_looks(section)
    height = max(compute_row_height([m.name for m in methods]) for methods in contexts.values())
    with draw_panels(2 * len(contexts), 2, out, f"{section.title}/{key}", height) as (_, axes):
        for i, (context, methods) in enumerate(contexts.items()):
            rows, plane = axes[2 * i : 2 * i + 2]
            rows.set_title(context, pad=14)
            draw_score_rows(rows, methods, style, main)
            draw_score_plane(plane, methods, style, (key, main), section.pareto if front else {})
            rows.set_xlabel(format_heading(main.heading, section.results))
            plane.set_xlabel(x)
            plane.set_ylabel(format_heading(main.heading, section.results))
            set_log_scale_if_wide(plane)
        for i, methods in enumerate(contexts.values()):
            plane = axes[2 * i + 1]
            name_points(plane, _sort_by_importance(section, methods, style, key))
    return out.getvalue()


def draw_score_rows(axis: Any, methods: Sequence[Method], style: dict[str, MethodStyle], main: Measure) -> None:
    """Draw one row per method: each seed, and the mean with its 95 % interval over the seeds.

    The `REFERENCES` of accuracies are drawn as lines across the rows.
    """
    for row, method in enumerate(methods):
        look = style[method.name]
        values = np.array(method.get_values(main.key))
        axis.plot(values, [row] * len(values), "|", color=look.color, markersize=6, alpha=0.6)
        width = compute_half_width(values, LEVEL, 2) if len(values) >= SEEDS_FOR_AN_INTERVAL else None
        axis.errorbar(
            values.mean(),
            row,
            xerr=width,
            color=look.color,
            marker=look.marker if look.named else "o",
            markersize=6,
            elinewidth=1.4,
            zorder=3,
        )
    lines = draw_reference_lines(axis, methods) if main.key == "accuracy" else []
    label_rows(axis, [m.name for m in methods])
    seen = [value for method in methods for value in method.get_values(main.key)] + lines
    axis.set_xlim(round_limits(seen, main.most))
    _cut_intervals(axis, methods, style, main)


def draw_reference_lines(axis: Any, methods: Sequence[Method]) -> list[float]:
    """Draw the `REFERENCES` across the rows that have them, and return their x positions."""
    positions: list[float] = []
    first: list[tuple[float, str]] = []
    for key, name, dashes in REFERENCES:
        drawn = [(row, value) for row, method in enumerate(methods) if (value := method.compute_mean(key)) is not None]
        for row, value in drawn:
            axis.vlines(value, row - 0.5, row + 0.5, color=INK, linestyle=(0, dashes), linewidth=1.1)
        positions += [value for _, value in drawn]
        first += [(drawn[0][1], name)] if drawn else []
    for place, (value, name) in enumerate(sorted(first)):
        align = "right" if place < len(first) - 1 else "left"
        if len(first) == 1:
            align = "center"
        axis.annotate(name, (value, -0.6), (0, 1), textcoords="offset points", fontsize=8, ha=align)
    return positions


def _cut_intervals(axis: Any, methods: Sequence[Method], style: dict[str, MethodStyle], main: Measure) -> None:
    """Draw an arrow where an interval continues beyond the axis.

    With few seeds, an interval may be as wide as all accuracies together.
    """
    low, high = axis.get_xlim()
    for row, method in enumerate(methods):
        values = np.array(method.get_values(main.key))
        if len(values) < SEEDS_FOR_AN_INTERVAL:
            continue
        width, color = compute_half_width(values, LEVEL, 2), style[method.name].color
        inside = 0.01 * (high - low)  # of the axis, so that the name of the row stays readable
        for edge, beyond, marker in (
            (low + inside, values.mean() - width < low, "<"),
            (high - inside, values.mean() + width > high, ">"),
        ):
            if beyond:
                axis.plot(edge, row, marker, color=color, markersize=5, zorder=4)


def draw_score_plane(
    axis: Any,
    methods: Sequence[Method],
    style: dict[str, MethodStyle],
    measures: tuple[str, Measure],
    pareto: dict[str, bool],
) -> None:
    """Draw the means over the seeds as points, and the Pareto front as steps; points on it are filled.

    `measures` are the key of the x axis and the main measure.
    """
    key, main = measures
    for method in methods:
        look = style[method.name]
        axis.plot(
            method.compute_mean(key),
            method.compute_mean(main.key),
            color=look.color,
            marker=look.marker if look.named else "o",
            markersize=7,
            clip_on=False,
            markerfacecolor=PAPER if pareto and not pareto.get(method.label) else look.color,
            markeredgewidth=1.5,
            linestyle="none",
            zorder=look.order,
        )
    for judged in dict.fromkeys(
        m.comparison_key for m in methods
    ):  # one front per comparison key: other keys are not comparable
        on_front = [m for m in methods if pareto.get(m.label) and m.comparison_key == judged]
        points = sorted((m.compute_mean(key) or 0.0, m.compute_mean(main.key) or 0.0) for m in on_front)
        if len(points) > 1:
            xs, ys = zip(*points, strict=True)
            axis.step(xs, ys, where="post", color=GREY, linewidth=1.1, linestyle="--", zorder=1)
    axis.margins(0.14, 0.1, tight=False)
    axis.autoscale_view()
    axis.set_xlim(left=max(0.0, axis.get_xlim()[0]))
    axis.set_ylim(top=min(main.most, axis.get_ylim()[1]))


def _sort_by_importance(
    section: Section, methods: Sequence[Method], style: dict[str, MethodStyle], key: str
) -> list[NamedPoint]:
    """Return the methods as points to label: first those on the Pareto front, then those with a color."""
    pareto, main = section.pareto, section.main_measure.key
    ordered = sorted(methods, key=lambda m: (not pareto.get(m.label), not style[m.name].named))
    return [NamedPoint(m.compute_mean(key) or 0.0, m.compute_mean(main) or 0.0, m.name, style[m.name]) for m in ordered]


def draw_time_and_memory(section: Section) -> str | None:
    """Draw the time of the rounds and the peak memory of every method; return None if no run has either."""
    keys = [k for k in ("round_seconds", "peak_memory_bytes") if any(m.get_values(k) for m in section.shown)]
    if not keys:
        return None
    headings = {"round_seconds": "time of the rounds (s)", "peak_memory_bytes": "peak memory, all processes (MB)"}
    out = io.StringIO()
    style = choose_looks(section)
    contexts = group_by_context(section.shown)
    height = max(compute_row_height([m.name for m in methods]) for methods in contexts.values())
    with draw_panels(len(keys) * len(contexts), len(keys), out, f"{section.title}/time", height) as (_, axes):
        for i, (context, methods) in enumerate(contexts.items()):
            row = axes[len(keys) * i : len(keys) * (i + 1)]
            row[0].set_title(context)
            for axis, key in zip(row, keys, strict=True):
                _draw_cost_rows(axis, methods, style, key)
                label_rows(axis, [m.name for m in methods] if axis is row[0] else [""] * len(methods))
                axis.set_xlabel(headings[key])
    return out.getvalue()


def _draw_cost_rows(axis: Any, methods: Sequence[Method], style: dict[str, MethodStyle], key: str) -> None:
    ends = [0.0]
    for row, method in enumerate(methods):
        look = style[method.name]
        mean, deviation = method.compute_mean(key), method.compute_deviation(key)
        if mean is not None:
            ends.append(mean + deviation)
            axis.errorbar(
                mean,
                row,
                xerr=deviation,
                color=look.color,
                marker=look.marker if look.named else "o",
                markersize=6,
                linestyle="none",
            )
    axis.set_xlim(0, round_limits(ends)[1])

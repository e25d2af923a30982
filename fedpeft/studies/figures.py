"""The figures of a report, as SVG texts."""

from __future__ import annotations

import io
from dataclasses import dataclass
from typing import Any

import numpy as np

from fedpeft.models.calibration import BINS
from fedpeft.studies.drawing import FRONT, Look, logarithmic_if_wide, looks, nothing, panels, per_context
from fedpeft.studies.measures import CurvePoint, curve
from fedpeft.studies.results import QUANTILES
from fedpeft.studies.sections import Method, Section


@dataclass(frozen=True)
class Figure:
    """An SVG with its title and what it shows."""

    name: str
    title: str
    note: str
    svg: str


def scatter(section: Section, key: str, name: str, x: str, front: bool) -> str | None:
    """Test accuracy against a measure: the mean with a bar of one standard deviation; the Pareto front as steps."""
    pareto = section.pareto

    def draw(axis: Any, method: Method, look: Look) -> bool:
        cost, value = method.mean(key), method.mean("accuracy")
        if cost is None or value is None:
            return False
        on_front = front and pareto.get(method.label, False)
        axis.errorbar(
            cost,
            value,
            xerr=method.deviation(key),
            yerr=method.deviation("accuracy"),
            color=look.color,
            marker=look.marker,
            markersize=8,
            markerfacecolor=look.color if on_front or not front else "white",
            markeredgewidth=1.6,
            linestyle="none",
            elinewidth=1.2,
            capsize=2.5,
            label=method.name,
            zorder=3,
        )
        return True

    def finish(axis: Any) -> None:
        logarithmic_if_wide(axis)
        if front:
            title = axis.get_title() if len(section.contexts) > 1 else ""
            inside = [m for m in section.shown if pareto.get(m.label) and (not title or m.context == title)]
            points = sorted((m.mean(key) or 0.0, m.mean("accuracy") or 0.0) for m in inside)
            if len(points) > 1:
                xs, ys = zip(*points, strict=True)
                axis.step(xs, ys, where="post", color="#555555", linewidth=1.1, linestyle="--", label=FRONT)

    return per_context(section, name, draw, x, "test accuracy (%)", finish)


def mean_curve(method: Method) -> list[tuple[CurvePoint, float]]:
    """Mean over the seeds of each round that all have, with the standard deviation of the accuracy."""
    curves = [{p.round: p for p in curve(run)} for run in method.runs.values()]
    shared = sorted(set.intersection(*(set(c) for c in curves))) if curves else []
    found = []
    for round in shared:
        points = [c[round] for c in curves]
        accuracies = [p.accuracy for p in points]
        mean = CurvePoint(round, *(float(np.mean([getattr(p, n) for p in points])) for n in _AVERAGED))
        found.append((mean, float(np.std(accuracies, ddof=1)) if len(points) > 1 else 0.0))
    return found


_AVERAGED = ("accuracy", "loss", "megabytes", "seconds")


def curves(section: Section, key: str, name: str, x: str) -> str | None:
    """Validation accuracy over rounds, bytes or seconds: mean, and a band of one standard deviation over seeds."""

    def draw(axis: Any, method: Method, look: Look) -> bool:
        points = mean_curve(method)
        if not points:
            return False
        xs = [getattr(p, key) for p, _ in points]
        ys = np.array([p.accuracy for p, _ in points])
        deviations = np.array([d for _, d in points])
        axis.plot(
            xs,
            ys,
            color=look.color,
            marker=look.marker,
            linestyle=look.line,
            markersize=4,
            linewidth=1.4,
            markevery=max(1, len(xs) // 12),
            label=method.name,
        )
        axis.fill_between(xs, ys - deviations, ys + deviations, color=look.color, alpha=0.13, linewidth=0)
        return True

    def finish(axis: Any) -> None:
        if key == "round":
            from matplotlib.ticker import MaxNLocator

            axis.xaxis.set_major_locator(MaxNLocator(integer=True))
        if key == "megabytes":
            logarithmic_if_wide(axis)

    return per_context(section, name, draw, x, "validation accuracy (%)", finish)


def spread_of_clients(section: Section) -> str | None:
    """Accuracy of the share of clients served worst: quantiles over clients, mean over seeds."""

    def draw(axis: Any, method: Method, look: Look) -> bool:
        spreads = [run.client_accuracy["quantiles"] for run in method.runs.values() if run.client_accuracy]
        if not spreads:
            return False
        axis.plot(
            [100 * q for q in QUANTILES],
            100 * np.mean(spreads, axis=0),
            color=look.color,
            marker=look.marker,
            linestyle=look.line,
            markersize=4.5,
            linewidth=1.4,
            label=method.name,
        )
        return True

    return per_context(
        section, "clients", draw, "clients, worst first (%)", "accuracy on its mix of classes (%)", nothing
    )


def bars(section: Section) -> str | None:
    """Time of the rounds, and peak memory, of every method."""
    keys = [k for k in ("round_seconds", "peak_memory_bytes") if any(m.values(k) for m in section.shown)]
    if not keys:
        return None
    headings = {"round_seconds": "time of the rounds (s)", "peak_memory_bytes": "peak memory, all processes (MB)"}
    out = io.StringIO()
    style = looks(section)
    methods = list(reversed(section.shown))
    height = 0.9 + 0.3 * len(methods)
    with panels(len(keys), out, f"{section.title}/time", height) as (_, axes):
        for axis, key in zip(axes, keys, strict=True):
            for position, method in enumerate(methods):
                look = style[method.name]
                mean = method.mean(key)
                if mean is None:
                    continue
                axis.errorbar(
                    mean,
                    position,
                    xerr=method.deviation(key),
                    color=look.color,
                    marker=look.marker,
                    markersize=7,
                    capsize=2.5,
                    linestyle="none",
                )
            axis.set_yticks(range(len(methods)), [m.label for m in methods] if axis is axes[0] else [""] * len(methods))
            axis.set_ylim(-0.6, len(methods) - 0.4)
            axis.set_xlim(0, 1.1 * axis.get_xlim()[1])
            axis.locator_params(axis="x", nbins=5)
            axis.set_xlabel(headings[key])
    return out.getvalue()


def reliability(section: Section) -> str | None:
    """Accuracy against confidence, in bins; the rows of all seeds together. Area of a marker: share of the rows."""
    methods = [m for m in section.shown if any(run.calibration for run in m.runs.values())]
    if not methods:
        return None
    out = io.StringIO()
    style = looks(section)
    with panels(len(methods), out, f"{section.title}/reliability") as (_, axes):
        for axis, method in zip(axes, methods, strict=True):
            found = [run.calibration for run in method.runs.values() if run.calibration]
            rows_SB = np.array([c["rows"] for c in found], dtype=float)
            rows_B = rows_SB.sum(0)
            kept = rows_B > 0
            divisor = np.maximum(rows_B, 1)
            confidence = (np.array([c["confidence"] for c in found]) * rows_SB).sum(0) / divisor
            accuracy = (np.array([c["accuracy"] for c in found]) * rows_SB).sum(0) / divisor
            look = style[method.name]
            axis.plot([0, 100], [0, 100], color="#777777", linewidth=1, linestyle="--")
            axis.vlines(
                100 * confidence[kept], 100 * confidence[kept], 100 * accuracy[kept], color=look.color, alpha=0.45
            )
            axis.plot(100 * confidence[kept], 100 * accuracy[kept], color=look.color, linewidth=0.9, alpha=0.7)
            axis.scatter(
                100 * confidence[kept],
                100 * accuracy[kept],
                s=8 + 400 * rows_B[kept] / rows_B.sum(),
                color=look.color,
                marker=look.marker,
                edgecolor="white",
                linewidth=0.5,
                zorder=3,
            )
            error = method.mean("calibration_error")
            axis.text(3, 97, f"calibration error {error:.1f} %", va="top", fontsize=8.5)
            axis.set(xlim=(0, 100), ylim=(0, 102), xlabel="confidence (%)", ylabel="accuracy, test rows (%)")
            axis.set_title(method.label if len(methods) > 1 else "")
    return out.getvalue()


def figures(section: Section) -> list[Figure]:
    """All figures that have something to show."""
    deviation = "mean over seeds; bars are one standard deviation"
    made = (
        (
            "accuracy_bytes",
            "Accuracy against bytes",
            f"Test accuracy and all bytes of the run, up and down: {deviation}. Filled: on the Pareto front.",
            scatter(section, "total_bytes", "bytes", "bytes of the run, up + down (MB)", True),
        ),
        (
            "accuracy_epsilon",
            "Accuracy against privacy",
            f"Test accuracy and the epsilon that was spent: {deviation}.",
            scatter(section, "epsilon", "epsilon", "epsilon (at the run's delta)", False),
        ),
        (
            "accuracy_rounds",
            "Accuracy per round",
            "Validation rows, the global model after each round; band: one standard deviation over seeds. Round 0: "
            "after the preparation.",
            curves(section, "round", "rounds", "round"),
        ),
        (
            "accuracy_spent_bytes",
            "Accuracy per byte",
            "The same, over the bytes sent until then, up and down.",
            curves(section, "megabytes", "spent", "bytes so far, up + down (MB)"),
        ),
        (
            "accuracy_seconds",
            "Accuracy over time",
            "The same, over the time of the rounds until then.",
            curves(section, "seconds", "seconds", "time so far (s)"),
        ),
        ("time_memory", "Time and memory", f"{deviation.capitalize()}.", bars(section)),
        (
            "clients",
            "Clients",
            "The final global model on test rows with each client's mix of classes; the left end is the worst client.",
            spread_of_clients(section),
        ),
        (
            "reliability",
            "Calibration",
            f"Reliability diagram of the test rows, {BINS} bins of confidence, all seeds together; on the dashed line "
            "predictions are as sure as they are right. Area of a marker: share of the rows. Expected calibration "
            "error: mean over seeds.",
            reliability(section),
        ),
    )
    return [Figure(name, title, note, svg) for name, title, note, svg in made if svg]

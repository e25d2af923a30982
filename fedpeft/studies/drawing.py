"""How figures are drawn: Okabe-Ito colours, and a marker per method besides, for print in grey; panels; legends."""

from __future__ import annotations

import io
import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from fedpeft.studies.sections import Method, Section

COLORS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
"""Okabe and Ito's, without the yellow that white paper swallows."""

MARKERS = "osD^vPX*<>"

LINES = ("-", "--", "-.", ":")

PANEL_WIDTH, PANEL_HEIGHT = 3.9, 3.1
"""Inches."""

PANELS_PER_ROW = 3

FRONT = "Pareto front"

LETTERS_PER_PANEL = 62
"""Of a legend."""

LEGEND_LINE = 0.18
"""Inches that a line of the legend takes."""

WIDE = 10
"""An axis whose values span a larger factor is logarithmic."""

STYLE = {
    "font.size": 9.5,
    "font.family": "sans-serif",
    "font.sans-serif": ["DejaVu Sans"],
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.titlesize": 10,
    "axes.grid": True,
    "grid.alpha": 0.25,
    "grid.linewidth": 0.6,
    "legend.frameon": False,
    "svg.fonttype": "path",
}


@dataclass(frozen=True)
class Look:
    """How a method is drawn, in all figures."""

    color: str
    marker: str
    line: str


def looks(section: Section) -> dict[str, Look]:
    """By name of the method."""
    return {
        name: Look(COLORS[i % len(COLORS)], MARKERS[i % len(MARKERS)], LINES[i % len(LINES)])
        for i, name in enumerate(section.names)
    }


@contextmanager
def panels(count: int, out: io.StringIO, salt: str, height: float = PANEL_HEIGHT) -> Iterator[tuple[Any, list[Any]]]:
    """A figure with `count` panels, written to `out` as SVG without a header; equal content gives equal text."""
    import matplotlib

    matplotlib.use("agg")
    from matplotlib import pyplot as plt

    columns = min(count, PANELS_PER_ROW)
    rows = math.ceil(count / columns)
    width = PANEL_WIDTH * columns + (1.5 if count == 1 else 0)
    style: Any = {**STYLE, "svg.hashsalt": salt}
    with plt.rc_context(style):
        figure, axes = plt.subplots(rows, columns, figsize=(width, height * rows), layout="constrained", squeeze=False)
        engine: Any = figure.get_layout_engine()
        engine.set(w_pad=0.1, h_pad=0.1)
        flat = list(axes.flat)
        for unused in flat[count:]:
            unused.set_visible(False)
        try:
            yield figure, flat[:count]
            text = io.StringIO()
            figure.savefig(text, format="svg", metadata={"Date": None}, bbox_inches="tight", pad_inches=0.08)
            out.write(text.getvalue()[text.getvalue().index("<svg") :])
        finally:
            plt.close(figure)


def legend_below(figure: Any, axes: Sequence[Any]) -> None:
    """One legend for all panels, under them."""
    entries: dict[str, Any] = {}
    for axis in axes:
        for handle, label in zip(*axis.get_legend_handles_labels(), strict=True):
            entries.setdefault(label, handle)
    if FRONT in entries:
        entries[FRONT] = entries.pop(FRONT)  # last
    if len(entries) > 1:
        letters = max(len(label) for label in entries) + 8
        columns = max(1, min(len(entries), int(LETTERS_PER_PANEL * min(len(axes), PANELS_PER_ROW) / letters)))
        figure.legend(entries.values(), entries.keys(), loc="outside lower center", ncols=columns, fontsize=8.5)
        figure.set_figheight(figure.get_figheight() + LEGEND_LINE * math.ceil(len(entries) / columns))


def title_of(axis: Any, section: Section, context: str) -> None:
    """The context, where there are several."""
    if len(section.contexts) > 1:
        axis.set_title(context)


Draw = Callable[[Any, Method, Look], bool]


def per_context(section: Section, name: str, draw: Draw, x: str, y: str, finish: Callable[[Any], None]) -> str | None:
    """One panel per context, with every method drawn; None if no method had anything to draw."""
    out = io.StringIO()
    style = looks(section)
    drawn = False
    with panels(len(section.contexts), out, f"{section.title}/{name}") as (figure, axes):
        for axis, context in zip(axes, section.contexts, strict=True):
            for method in section.shown:
                if method.context == context:
                    drawn |= draw(axis, method, style[method.name])
            axis.set_xlabel(x)
            axis.set_ylabel(y)
            title_of(axis, section, context)
            finish(axis)
        legend_below(figure, axes)
    return out.getvalue() if drawn else None


def logarithmic_if_wide(axis: Any) -> None:
    """A logarithmic x axis with plain numbers, where the values differ so much that the small ones would coincide."""
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

    low, high = axis.dataLim.intervalx
    if low > 0 and high > WIDE * low:
        axis.set_xscale("log")
        named = (1.0, 2.0, 5.0) if high < 1000 * low else (1.0,)  # more would not stand side by side
        axis.xaxis.set_major_locator(LogLocator(subs=named))
        axis.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,g}"))
        axis.xaxis.set_minor_formatter(NullFormatter())


def nothing(axis: Any) -> None:
    """No finish."""

"""How figures are drawn: panels of the page's width, a colour and a marker per method, names beside what they name.

The colours are Okabe's and Ito's. No eye tells twenty of them apart, nor twenty markers: where a section has more
methods than there are colours, those that matter most have one, and the others are grey.
"""

from __future__ import annotations

import io
import math
import textwrap
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from fedpeft.studies.sections import Method, Section

INK, PAPER, GREY, BLUE = "#1b1b1b", "#ffffff", "#8a8a8a", "#0072b2"
"""Of text and axes, of the ground, of what stands back, and of the first method; in the dark the page has its own."""

COLORS = (BLUE, "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", INK)
"""Okabe's and Ito's, without the yellow that white paper swallows."""

MARKERS = "osD^vPX"

LINES = ("-", "--", "-.", ":")

OTHERS = "others"
"""What a legend calls the methods without a colour."""

WIDTH, PANEL_HEIGHT = 11.6, 3.1
"""Inches: of a figure, as wide as the page, and of a panel that is not made of rows."""

ROW, LINE_OF_NAME, AROUND_ROWS = 0.2, 0.13, 1.0
"""Inches: of a row, of each further line of the longest name, and of title, axis and margins of a panel of rows."""

LETTERS = 44
"""Of a line of a name beside a row."""

LETTERS_OF_TITLES = 96
"""That stand side by side above the panels of a row, with room between them."""

LETTERS_OF_LEGEND, LEGEND_LINE = 186, 0.18
"""Letters that stand side by side in a legend, and the inches that a line of it takes."""

WIDE = 10
"""An axis whose values span a larger factor is logarithmic."""

STYLE = {
    "font.size": 9.5,
    "font.family": "sans-serif",
    "font.sans-serif": ["DejaVu Sans"],
    "text.color": INK,
    "axes.labelcolor": INK,
    "axes.edgecolor": INK,
    "xtick.color": INK,
    "ytick.color": INK,
    "axes.facecolor": PAPER,
    "figure.facecolor": PAPER,
    "savefig.facecolor": PAPER,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.titlesize": 10,
    "axes.titlelocation": "left",
    "axes.grid": True,
    "grid.color": GREY,
    "grid.alpha": 0.3,
    "grid.linewidth": 0.6,
    "legend.frameon": False,
    "svg.fonttype": "path",
    "text.parse_math": False,  # names come from users, and a dollar sign in one is no formula
}


@dataclass(frozen=True)
class MethodStyle:
    """How a method is drawn, in all figures of its section; `named` in legends, otherwise it is one of the others."""

    color: str
    marker: str
    line: str
    named: bool = True

    @property
    def order(self) -> int:
        """Of drawing: what has a colour lies above what is grey."""
        return 3 if self.named else 2


def choose_looks(section: Section) -> dict[str, MethodStyle]:
    """By name of the method."""
    important = _choose_important(section)
    colored = [name for name in section.names if name in important]
    found = dict.fromkeys(section.names, MethodStyle(GREY, ".", "-", named=False))
    return found | {name: MethodStyle(COLORS[i], MARKERS[i], LINES[i % len(LINES)]) for i, name in enumerate(colored)}


def _choose_important(section: Section) -> list[str]:
    """As many names as there are colours: the baseline, what is on the Pareto front, then the most accurate."""
    baseline = {m.name for m in section.shown if section.find_reference(m) is m}
    pareto = section.pareto
    fronts = Counter(m.name for m in section.shown if pareto.get(m.label))
    best = {
        name: max(m.compute_mean("accuracy") or 0.0 for m in section.shown if m.name == name) for name in section.names
    }
    ordered = sorted(section.names, key=lambda name: (name not in baseline, -fronts[name], -best[name]))
    return ordered[: len(COLORS)]


def group_by_context(methods: Sequence[Method]) -> dict[str, list[Method]]:
    """In order; the context is empty where there is only one."""
    found: dict[str, list[Method]] = {}
    for method in methods:
        found.setdefault(method.context, []).append(method)
    return found


@contextmanager
def draw_panels(
    count: int,
    columns: int,
    out: io.StringIO,
    salt: str,
    height: float = PANEL_HEIGHT,
    widths: Sequence[float] | None = None,
    share: bool = False,
) -> Iterator[tuple[Any, list[Any]]]:
    """A figure with `count` panels, written to `out` as SVG without a header; equal content gives equal text.

    `height` is a panel's, in inches; `widths` are the columns' relative to each other; with `share` the panels of a row
    have one y axis. `salt` keeps the names inside two figures of a page apart.
    """
    import matplotlib

    matplotlib.use("agg")
    from matplotlib import pyplot as plt

    rows = math.ceil(count / columns)
    style: Any = {**STYLE, "svg.hashsalt": salt}
    with plt.rc_context(style):
        figure, axes = plt.subplots(
            rows,
            columns,
            figsize=(WIDTH, height * rows),
            layout="constrained",
            squeeze=False,
            sharey="row" if share else False,
            width_ratios=widths,
        )
        engine: Any = figure.get_layout_engine()
        engine.set(w_pad=0.1, h_pad=0.1)
        flat = list(axes.flat)
        for unused in flat[count:]:
            unused.set_visible(False)
        try:
            yield figure, flat[:count]
            text = io.StringIO()
            figure.savefig(text, format="svg", metadata={"Date": None})
            out.write(text.getvalue()[text.getvalue().index("<svg") :])
        finally:
            plt.close(figure)


def choose_columns(count: int, most: int) -> int:
    """Columns for `count` panels, at most `most`, so that the last row is as full as can be."""
    return math.ceil(count / math.ceil(count / most))


def compute_row_height(names: Sequence[str]) -> float:
    """Inches of a panel with a row for each of `names`."""
    further = max(wrap_name(name).count("\n") for name in names)
    return max(PANEL_HEIGHT, AROUND_ROWS + (ROW + LINE_OF_NAME * further) * len(names))


def wrap_name(name: str, letters: int = LETTERS) -> str:
    """A name, in as many lines of so many letters as it needs."""
    return "\n".join(textwrap.wrap(name, letters, break_long_words=False)) or name


def wrap_title(name: str, columns: int) -> str:
    """A panel's title in as many lines as it needs where so many panels stand side by side."""
    return "\n".join(textwrap.wrap(name, LETTERS_OF_TITLES // columns)) or name


def label_rows(axis: Any, names: Sequence[str]) -> None:
    """The y axis has a row for each of `names`, the first one above."""
    axis.set_yticks(range(len(names)), [wrap_name(name) for name in names], fontsize=8)
    axis.set_ylim(len(names) - 0.4, -0.6)
    axis.grid(visible=False, axis="y")
    axis.tick_params(axis="y", length=0)


def draw_legend_below(figure: Any, axes: Sequence[Any]) -> None:
    """One legend for all panels, under them; the others come last."""
    entries: dict[str, Any] = {}
    for axis in axes:
        for handle, label in zip(*axis.get_legend_handles_labels(), strict=True):
            entries.setdefault(label, handle)
    if OTHERS in entries:
        entries[OTHERS] = entries.pop(OTHERS)
    if len(entries) > 1:
        letters = max(len(label) for label in entries) + 8
        columns = choose_columns(len(entries), max(1, LETTERS_OF_LEGEND // letters))
        figure.legend(entries.values(), entries.keys(), loc="outside lower center", ncols=columns, fontsize=8.5)
        figure.set_figheight(figure.get_figheight() + LEGEND_LINE * math.ceil(len(entries) / columns))


@dataclass(frozen=True)
class NamedPoint:
    """A point, in the axes' units, and the name that belongs beside it."""

    x: float
    y: float
    name: str
    look: MethodStyle


LETTERS_AT_A_POINT = 18
"""Of a line of a name beside a point."""

PLACES = [
    (far * x, far * y)
    for far in (8.0, 15.0, 24.0, 36.0, 50.0, 66.0)
    for x, y in ((1, 0), (-1, 0), (0.8, 0.8), (0.8, -0.8), (-0.8, 0.8), (-0.8, -0.8), (0, 1), (0, -1))
]
"""Where a name may stand, in typographic points from its own point, the best places first."""

NEAR = 9.0
"""A name that stands farther away, in typographic points, is joined to its point by a line."""

POINT = 5.0
"""Half the side of the square that a marker takes, in pixels."""


def name_points(axis: Any, points: Sequence[NamedPoint]) -> list[Any]:
    """Put names beside their points, those of the first ones first; a name that finds no free place is left out.

    Returns the texts that were placed. All other things must have been drawn.
    """
    from matplotlib.text import Text
    from matplotlib.transforms import Bbox

    axis.autoscale_view()
    axis.figure.get_layout_engine().execute(axis.figure)  # only now is it known where the panel is
    centres = axis.transData.transform([(p.x, p.y) for p in points])
    taken = [Bbox([(x - POINT, y - POINT), (x + POINT, y + POINT)]) for x, y in centres]
    placed = []
    for point in points:
        for x, y in PLACES:
            text = _annotate(axis, point, x, y)
            text.get_window_extent()  # which puts it there
            box = Text.get_window_extent(text)  # without the line to the point, which names may lie on
            if axis.bbox.count_contains(box.corners()) == 4 and not box.count_overlaps(taken):
                placed.append(text)
                taken.append(box)
                break
            text.remove()
    return placed


def _annotate(axis: Any, point: NamedPoint, x: float, y: float) -> Any:
    far = math.hypot(x, y) > NEAR
    text = axis.annotate(
        wrap_name(point.name, LETTERS_AT_A_POINT),
        (point.x, point.y),
        (x, y),
        textcoords="offset points",
        horizontalalignment="left" if x > 0 else "right" if x < 0 else "center",
        verticalalignment="center" if y == 0 else "bottom" if y > 0 else "top",
        linespacing=0.95,
        fontsize=8,
        color=point.look.color,
        bbox={"facecolor": PAPER, "edgecolor": "none", "alpha": 0.8, "pad": 0.3},  # lines go behind the name
        arrowprops={"arrowstyle": "-", "color": GREY, "linewidth": 0.6, "shrinkA": 0, "shrinkB": 4} if far else None,
        zorder=5,
    )
    text.set_in_layout(False)
    return text


def set_log_scale_if_wide(axis: Any) -> None:
    """A logarithmic x axis with plain numbers, where the values differ so much that the small ones would coincide."""
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

    low, high = axis.dataLim.intervalx
    if low > 0 and high > WIDE * low:
        axis.set_xscale("log")
        named = (1.0, 2.0, 5.0) if high < 200 * low else (1.0,)  # more would not stand side by side
        axis.xaxis.set_major_locator(LogLocator(subs=named))
        axis.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,g}"))
        axis.xaxis.set_minor_formatter(NullFormatter())

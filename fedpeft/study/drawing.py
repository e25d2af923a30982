"""Shared drawing code: panels as wide as the page, one color and marker per method, labels beside points.

The colors are Okabe and Ito's. Nobody can distinguish twenty colors or markers. If a section has more methods than
colors, the most important methods get one and the others are gray.
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

from fedpeft.study.sections import Method, Section

INK, PAPER, GREY, BLUE = "#1b1b1b", "#ffffff", "#8a8a8a", "#0072b2"
"""Colors of text and axes, background, unimportant items and the first method. The page replaces them in dark mode."""

COLORS = (BLUE, "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", INK)
"""Okabe and Ito's colors without yellow, which is hard to see on white."""

MARKERS = "osD^vPX"

LINES = ("-", "--", "-.", ":")

OTHERS = "others"
"""Legend entry of the methods without a color."""

WIDTH, PANEL_HEIGHT = 11.6, 3.1
"""Width of a figure and height of a panel without rows, in inches. A figure is as wide as the page."""

ROW, LINE_OF_NAME, AROUND_ROWS = 0.2, 0.13, 1.0
"""Heights in inches: a row, each further line of the longest name, and the title, axis and margins of a panel."""

LETTERS = 44
"""Longest line of a name beside a row, in characters."""

LETTERS_OF_TITLES = 96
"""Characters of all titles above the panels of a row, with room between them."""

LETTERS_OF_LEGEND, LEGEND_LINE = 186, 0.18
"""Characters per line of a legend, and the height of a line in inches."""

WIDE = 10
"""Largest ratio of highest to lowest value on a linear axis. Above it, the axis is logarithmic."""

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
    "axes.autolimit_mode": "round_numbers",
    "axes.xmargin": 0.0,
    "axes.ymargin": 0.0,
    "axes.grid": True,
    "grid.color": GREY,
    "grid.alpha": 0.3,
    "grid.linewidth": 0.6,
    "legend.frameon": False,
    "svg.fonttype": "path",
    "text.parse_math": False,  # names come from users; a dollar sign does not start a formula
}


@dataclass(frozen=True)
class MethodStyle:
    """Color, marker and line of a method in all figures of its section.

    A method that is not `named` has no legend entry of its own and counts as one of the others.
    """

    color: str
    marker: str
    line: str
    named: bool = True

    @property
    def order(self) -> int:
        """The matplotlib `zorder`: methods with a color lie above the gray ones."""
        return 3 if self.named else 2


def choose_looks(section: Section) -> dict[str, MethodStyle]:
    """Return the style of each method, by name."""
    important = _choose_important(section)
    colored = [name for name in section.names if name in important]
    styles = dict.fromkeys(section.names, MethodStyle(GREY, ".", "-", named=False))
    return styles | {name: MethodStyle(COLORS[i], MARKERS[i], LINES[i % len(LINES)]) for i, name in enumerate(colored)}


def _choose_important(section: Section) -> list[str]:
    """Return the names of the methods that get a color, at most as many as there are colors.

    The baseline comes first, then methods on the Pareto front, then the most accurate ones.
    """
    baseline = {m.name for m in section.shown if section.find_reference(m) is m}
    pareto = section.pareto
    fronts = Counter(m.name for m in section.shown if pareto.get(m.label))
    main = section.main_measure
    scores = [(m.name, m.compute_mean(main.key)) for m in section.shown]
    best = {
        name: max((main.sign * s for n, s in scores if n == name and s is not None), default=-math.inf)
        for name in section.names
    }
    ordered = sorted(section.names, key=lambda name: (name not in baseline, -fronts[name], -best[name]))
    return ordered[: len(COLORS)]


def group_by_context(methods: Sequence[Method]) -> dict[str, list[Method]]:
    """Group methods by context, in order; the key is empty if there is only one context."""
    groups: dict[str, list[Method]] = {}
    for method in methods:
        groups.setdefault(method.context, []).append(method)
    return groups


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
    """Yield a figure with `count` panels, and write it to `out` as SVG without a header.

    Equal content gives equal text. `height` is the height of a panel in inches. `widths` are the relative widths of the
    columns. With `share`, the panels of a row share one y axis. `salt` keeps the ids inside two figures of a page
    different.
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
    """Return the number of columns for `count` panels, at most `most`, that fills the last row best."""
    return math.ceil(count / math.ceil(count / most))


def compute_row_height(names: Sequence[str]) -> float:
    """Return the height of a panel with one row per name, in inches."""
    further = max(wrap_name(name).count("\n") for name in names)
    return max(PANEL_HEIGHT, AROUND_ROWS + (ROW + LINE_OF_NAME * further) * len(names))


def wrap_name(name: str, letters: int = LETTERS) -> str:
    """Wrap a name into lines of at most `letters` characters, without breaking words."""
    return "\n".join(textwrap.wrap(name, letters, break_long_words=False)) or name


def wrap_title(name: str, columns: int) -> str:
    """Wrap a panel's title to the width that it has beside the other `columns - 1` panels."""
    return "\n".join(textwrap.wrap(name, LETTERS_OF_TITLES // columns)) or name


def label_rows(axis: Any, names: Sequence[str]) -> None:
    """Give the y axis one row per name, the first one on top."""
    axis.set_yticks(range(len(names)), [wrap_name(name) for name in names], fontsize=8)
    axis.set_ylim(len(names) - 0.4, -0.6)
    axis.grid(visible=False, axis="y")
    axis.tick_params(axis="y", length=0)


def draw_legend_below(figure: Any, axes: Sequence[Any]) -> None:
    """Draw one legend for all panels below them, with the entry of the others last."""
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
    """A point in the axes' units and the label that belongs beside it."""

    x: float
    y: float
    name: str
    look: MethodStyle


LETTERS_AT_A_POINT = 18
"""Longest line of a name beside a point, in characters."""

PLACES = [
    (far * x, far * y)
    for far in (8.0, 15.0, 24.0, 36.0, 50.0, 66.0)
    for x, y in ((1, 0), (-1, 0), (0.8, 0.8), (0.8, -0.8), (-0.8, 0.8), (-0.8, -0.8), (0, 1), (0, -1))
]
"""Offsets from a point where its label may stand, in typographic points, the best first."""

NEAR = 9.0
"""Largest offset without a connecting line, in typographic points."""

POINT = 5.0
"""Half the side of the square that a marker covers, in pixels."""


def name_points(axis: Any, points: Sequence[NamedPoint]) -> list[Any]:
    """Put labels beside their points in order, and leave out each label that has no free place.

    Everything else must have been drawn before. Returns the texts that were placed.
    """
    from matplotlib.text import Text
    from matplotlib.transforms import Bbox

    axis.autoscale_view()
    axis.figure.get_layout_engine().execute(axis.figure)  # the panel has no position before
    centers = axis.transData.transform([(p.x, p.y) for p in points])
    taken = [Bbox([(x - POINT, y - POINT), (x + POINT, y + POINT)]) for x, y in centers]
    placed = []
    for point in points:
        for x, y in PLACES:
            text = _annotate(axis, point, x, y)
            text.get_window_extent()  # this call places the text
            box = Text.get_window_extent(text)  # without the connecting line, which labels may cover
            if axis.bbox.count_contains(box.corners()) == 4 and not box.count_overlaps(taken):
                placed.append(text)
                taken.append(box)
                break
            text.remove()
    return placed


def _find_sign(value: float) -> int:
    """Return 1, 0 or -1."""
    return (value > 0) - (value < 0)


def _annotate(axis: Any, point: NamedPoint, x: float, y: float) -> Any:
    far = math.hypot(x, y) > NEAR
    text = axis.annotate(
        wrap_name(point.name, LETTERS_AT_A_POINT),
        (point.x, point.y),
        (x, y),
        textcoords="offset points",
        horizontalalignment={1: "left", 0: "center", -1: "right"}[_find_sign(x)],
        verticalalignment={1: "bottom", 0: "center", -1: "top"}[_find_sign(y)],
        linespacing=0.95,
        fontsize=8,
        color=point.look.color,
        bbox={"facecolor": PAPER, "edgecolor": "none", "alpha": 0.8, "pad": 0.3},  # lines go behind the name
        arrowprops={"arrowstyle": "-", "color": GREY, "linewidth": 0.6, "shrinkA": 0, "shrinkB": 4} if far else None,
        zorder=5,
    )
    text.set_in_layout(False)
    return text


ROOM = 0.04
"""Free space on either side of the values before limits are rounded, as a share of their span."""

TICKS = 8
"""Most intervals between the ticks of an axis with fixed limits."""


def round_limits(values: Sequence[float], most: float = math.inf) -> tuple[float, float]:
    """Return round limits of an axis that contain all values with some room; `most` is the largest legal value."""
    from matplotlib.ticker import MaxNLocator

    low, high = min(values), max(values)
    room = ROOM * (high - low) or 0.5
    ticks = MaxNLocator(TICKS, steps=[1, 2, 2.5, 5, 10]).tick_values(low - room, min(most, high + room))
    return float(ticks[0]), min(most, float(ticks[-1]))


def set_log_scale_if_wide(axis: Any) -> None:
    """Make the x axis logarithmic, with plain numbers, if its values span more than a factor of `WIDE`.

    On a linear axis, the small values would coincide. The limits are 1, 2 or 5 times a power of ten.
    """
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

    low, high = axis.dataLim.intervalx
    if low > 0 and high > WIDE * low:
        axis.set_xscale("log")
        named = (1.0, 2.0, 5.0) if high < 200 * low else (1.0,)  # more labels would overlap
        axis.xaxis.set_major_locator(LogLocator(subs=named))
        axis.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,g}"))
        axis.xaxis.set_minor_formatter(NullFormatter())
        steps = [step * 10.0**power for power in range(-9, 19) for step in (1, 2, 5)]
        axis.set_xlim(max(s for s in steps if s <= low), min(s for s in steps if s >= high))

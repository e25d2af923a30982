"""Figures: what is drawn, that names and legends can be read, and that equal results give equal text."""

import io
import re
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
from matplotlib.text import Text
from scipy import stats

from fedpeft.study import figures as drawn_figures
from fedpeft.study.curve_figures import draw_curves
from fedpeft.study.curve_figures import draw_curves_apart as curves_apart
from fedpeft.study.dot_plots import draw_score_against, draw_score_rows
from fedpeft.study.drawing import (
    COLORS,
    GREY,
    PANEL_HEIGHT,
    WIDTH,
    MethodStyle,
    NamedPoint,
    choose_columns,
    choose_looks,
    draw_legend_below,
    draw_panels,
    name_points,
    round_limits,
    set_log_scale_if_wide,
)
from fedpeft.study.figures import draw_figures
from fedpeft.study.measures import get_round_seconds
from fedpeft.study.results import Result
from fedpeft.study.sections import Section
from tests.studies.made import made_result, made_study, section


def many_methods(count: int, seeds: int = 2) -> Section:
    results: list[Result] = []
    for i in range(count):
        point = {"strategy": f"rule number {i}"}
        results += [made_result(point, seed, 0.6 + 0.01 * (i % 7), 1.0 + i % 5) for seed in range(seeds)]
    return Section("many", "", results, {"strategy": "rule number 0"})


def texts(svg: str) -> list[str]:
    """Return the words of an SVG, which matplotlib leaves as comments beside their shapes."""
    return re.findall(r"<!-- (.*?) -->", svg)


def legend_of(svg: str) -> list[str]:
    """Return the words of the legend of an SVG."""
    return texts(svg[svg.index('<g id="legend_1">') :]) if '<g id="legend_1">' in svg else []


@pytest.mark.medium
@pytest.mark.parametrize("count", [len(COLORS), 20])
def test_legends_and_rows(count: int) -> None:
    """No legend of more than eight entries, a row for every method, and figures as wide as the page."""
    section = many_methods(count)
    made = draw_figures(section)
    legends = [legend_of(figure.svg) for figure in made]
    assert max(map(len, legends)) == min(count, 8)
    for legend in legends:
        assert not legend or "rule number 0" in legend, "the baseline has a colour"
        assert ("others" in legend) == (bool(legend) and count > len(COLORS))
    for figure in made:
        assert f'width="{72 * WIDTH:g}pt"' in figure.svg
        if figure.name in ("accuracy_bytes", "time_memory"):
            assert set(section.names) <= set(texts(figure.svg))


@pytest.mark.medium
def test_equal_results_give_equal_figures() -> None:
    made = section(made_study(3))
    one, other = (draw_score_against(made, "total_bytes", "bytes", front=True) for _ in range(2))
    assert one == other


def test_what_matters_most_has_a_colour() -> None:
    """The baseline, the Pareto front and the best; the rest is grey."""
    results = [made_result({"codec": f"c{i}"}, seed, 0.5, 50.0 + i) for i in range(20) for seed in range(2)]
    cheap = [made_result({"codec": "cheap"}, seed, 0.45, 1.0) for seed in range(2)]
    good = [made_result({"codec": "good"}, seed, 0.9, 900.0) for seed in range(2)]
    style = choose_looks(Section("", "", [*results, *cheap, *good], {"codec": "c13"}))
    named = {name for name, look in style.items() if look.named}
    assert {"c13", "cheap", "good"} <= named
    assert len(named) == len({style[name].color for name in named}) == len(COLORS)
    assert {look.color for look in style.values() if not look.named} == {GREY}


def test_rows_show_the_interval_over_the_seeds_and_the_probe() -> None:
    made = section(made_study(5, ("iid",)))
    with draw_panels(1, 1, io.StringIO(), "salt") as (_, [axis]):
        draw_score_rows(axis, made.shown, choose_looks(made), made.main_measure)
        assert [t.get_text() for t in axis.get_yticklabels()] == [m.name for m in made.shown]
        assert axis.yaxis_inverted(), "the first method stands above"
        for row, (method, bars) in enumerate(zip(made.shown, axis.containers, strict=True)):
            values = method.get_values("accuracy")
            expected = stats.t.interval(0.95, 4, np.mean(values), stats.sem(values))
            [(left, y0), (right, y1)] = bars.lines[2][0].get_segments()[0]
            assert (left, right) == pytest.approx(expected)
            assert y0 == y1 == row
        probes = [c for c in axis.collections if c.get_segments()[0][0][0] == c.get_segments()[0][1][0]]
        assert [tuple(p.get_segments()[0][:, 0]) for p in probes] == [(50.0, 50.0)] * len(made.shown)


def test_two_seeds_have_no_interval() -> None:
    made = section(made_study(2, ("iid",)))
    with draw_panels(1, 1, io.StringIO(), "salt") as (_, [axis]):
        draw_score_rows(axis, made.shown, choose_looks(made), made.main_measure)
        assert not any(bars.has_xerr for bars in axis.containers)


def test_an_axis_holds_seeds_and_references_and_cuts_wide_intervals() -> None:
    """Few seeds that differ have an interval as wide as all accuracies; what it hides would be the other methods."""
    results = [made_result({"codec": "fp32"}, seed, skill, 1.0) for seed, skill in enumerate((0.3, 0.5, 0.85))]
    results += [made_result({"codec": "small"}, seed, 0.6 + 0.01 * seed, 1.0) for seed in range(3)]
    for result in results:
        result.summary["alone_accuracy"] = 0.25
    made = section(results)
    with draw_panels(1, 1, io.StringIO(), "salt") as (_, [axis]):
        draw_score_rows(axis, made.shown, choose_looks(made), made.main_measure)
        low, high = axis.get_xlim()
        seen = [v for m in made.shown for v in m.get_values("accuracy")]
        assert (low, high) == (20, 90), "round numbers around the line of clients alone and the best seed"
        assert 25 < min(seen) < max(seen) < high
        arrows = [(line.get_marker(), line.get_ydata()[0]) for line in axis.lines if line.get_marker() in "<>"]
        assert sorted(arrows) == [("<", 0), (">", 0)], "the other method's interval is inside"
        assert [t.get_text() for t in axis.texts] == ["each client alone", "frozen probe"]


@pytest.mark.parametrize(
    ("values", "limits"),
    [
        ([67.3, 70.4], (67.0, 71.0)),
        ([70.0], (69.4, 70.6)),
        ([99.2, 100.0], (99.0, 100.0)),
        ([-3.0, 41.0], (-10.0, 50.0)),
    ],
)
def test_limits_are_round_numbers_around_the_values(values: list[float], limits: tuple[float, float]) -> None:
    assert round_limits(values, 100.0) == pytest.approx(limits)


def test_axes_that_fit_their_data_end_at_round_numbers() -> None:
    with draw_panels(1, 1, io.StringIO(), "salt") as (_, [axis]):
        axis.plot([0.3, 5.7], [61.3, 98.9])
        assert (*axis.get_xlim(), *axis.get_ylim()) == pytest.approx((0, 6, 60, 100))
    with draw_panels(1, 1, io.StringIO(), "salt") as (_, [axis]):
        axis.plot([3.0, 170.0], [1, 2])
        set_log_scale_if_wide(axis)
        assert axis.get_xlim() == pytest.approx((2, 200))


@pytest.mark.parametrize("kept", [False, True])
def test_rounds_whose_times_are_kept_have_no_time(kept: bool) -> None:
    """A run in which the server sees nothing of a client tells the time of round 0 alone."""
    results = made_study(2, ("iid",))
    for result in results:
        for line in result.rounds[1:]:
            line["seconds"] = None if kept else 2.0  # type: ignore[index]
    svg = draw_curves(section(results))
    assert svg is not None
    assert ("time so far (s)" in texts(svg)) == (not kept)
    assert get_round_seconds(results[0]) == (None if kept else 12.0)


def test_each_of_many_methods_has_its_band() -> None:
    """With few they are seen together; no legend has more than eight entries."""
    for count, expected in ((3, 0), (12, len(COLORS))):
        every = [(i, seed) for i in range(count) for seed in range(3)]
        results = [made_result({"codec": f"c{i}"}, seed, 0.5 + 0.01 * i, 1.0 + i) for i, seed in every]
        svg = curves_apart(Section("", "", results, {"codec": "c0"}))
        assert (svg is None) == (expected == 0)
        if svg is not None:
            assert svg.count('id="FillBetweenPolyCollection_') == expected


@pytest.mark.medium
def test_names_beside_points_hide_neither_each_other_nor_points() -> None:
    generator = np.random.default_rng(0)
    look = MethodStyle(GREY, ".", "-")
    points = [
        NamedPoint(float(x), float(y), f"method {i}", look) for i, (x, y) in enumerate(generator.normal(size=(30, 2)))
    ]
    points += [NamedPoint(0.0, 0.0, f"hidden in the crowd {i}", look) for i in range(40)]
    with draw_panels(2, 2, io.StringIO(), "salt") as (_, [axis, _]):
        axis.plot([p.x for p in points], [p.y for p in points], "o")
        placed = name_points(axis, points)
        boxes = [Text.get_window_extent(text) for text in placed]
        marks = axis.transData.transform([(p.x, p.y) for p in points])
    assert points[0].name == placed[0].get_text(), "the first ones come first"
    assert 10 < len(placed) < len(points), "what finds no place is left out"
    for i, box in enumerate(boxes):
        assert not box.count_overlaps(boxes[:i])
        assert not box.count_contains(marks)
        assert axis.bbox.count_contains(box.corners()) == 4


@pytest.mark.parametrize(
    ("count", "most", "columns"), [(1, 4, 1), (4, 4, 4), (5, 4, 3), (6, 4, 3), (7, 4, 4), (9, 4, 3)]
)
def test_panels_stand_in_even_rows(count: int, most: int, columns: int) -> None:
    assert choose_columns(count, most) == columns


def test_many_methods_leave_their_panel_its_height() -> None:
    """The legend is as long as it must be; the plot above it does not pay for it."""
    with draw_panels(1, 1, io.StringIO(), "salt") as (figure, [axis]):
        for i in range(12):
            axis.plot([0, 1], [0, i], label=f"a method whose name fills a line of the legend, {i}")
        draw_legend_below(figure, [axis])
        figure.canvas.draw()
        assert axis.get_window_extent().height / figure.dpi > 0.7 * PANEL_HEIGHT


def test_bytes_that_differ_by_an_order_of_magnitude_are_drawn_on_a_logarithmic_axis() -> None:
    for values, scale in (([2, 60], "log"), ([20, 60], "linear"), ([0, 60], "linear")):
        with draw_panels(1, 1, io.StringIO(), "salt") as (_, [axis]):
            axis.plot(values, [1, 2])
            set_log_scale_if_wide(axis)
            assert axis.get_xscale() == scale


def test_an_axis_over_many_decades_names_decades_alone() -> None:
    for high, apart in ((300, 2), (600, 10), (30000, 10)):
        with draw_panels(1, 1, io.StringIO(), "salt") as (_, [axis]):
            axis.plot([2, high], [1, 2])
            set_log_scale_if_wide(axis)
            ticks = axis.get_xticks()
            assert min(b / a for a, b in pairwise(ticks)) == pytest.approx(apart)


@pytest.mark.parametrize("count", [2, 4, 7])
def test_titles_of_long_labels_lie_in_the_figure(count: int, monkeypatch: pytest.MonkeyPatch) -> None:
    names = [f"half_mean(share=0.25): sixteen | pack_of_{'many' * 9}({i})" for i in range(count)]
    results = [made_result({"codec": name}, seed, 0.6, 9.0) for name in names for seed in range(2)]
    seen = []

    @contextmanager
    def looked_at(*given: Any, **more: Any) -> Iterator[Any]:
        with draw_panels(*given, **more) as (figure, axes):
            yield figure, axes
            figure.canvas.draw()
            seen.extend((axis, axis._left_title.get_window_extent(), figure.bbox) for axis in axes)

    monkeypatch.setattr(drawn_figures, "draw_panels", looked_at)
    assert drawn_figures.draw_reliability(Section("made up", "a question", results, {"codec": names[0]}))
    assert len(seen) == count
    for axis, box, whole in seen:
        assert "half_mean(share=0.25)" in axis._left_title.get_text()
        assert whole.x0 <= box.x0 < box.x1 <= whole.x1
        assert all(axis is other or not box.overlaps(beside) for other, beside, _ in seen)

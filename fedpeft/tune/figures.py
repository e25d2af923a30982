"""The figures of a search: its history, the importance of its names, and combinations of values."""

from __future__ import annotations

import io
import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from optuna.distributions import BaseDistribution, CategoricalDistribution
from optuna.importance import FanovaImportanceEvaluator, get_param_importances
from optuna.study import Study, StudyDirection
from optuna.trial import FrozenTrial, TrialState

from fedpeft.study.drawing import BLUE, COLORS, GREY, compute_row_height, draw_panels, label_rows
from fedpeft.study.figures import Figure
from fedpeft.tune.store import list_finished, list_trained

FEWEST = 4
"""Fewest finished trials for which importances are computed."""


def draw_figures(study: Study, objective: str) -> list[Figure]:
    """Return the figures that the trials allow."""
    figures = [draw_history(study, objective), draw_importance(study), draw_parallel(study, objective)]
    return [figure for figure in figures if figure is not None]


def list_ended(study: Study) -> list[FrozenTrial]:
    """Return the trials that were trained and have a finite value: finished, or pruned at a rung."""
    states = (TrialState.COMPLETE, TrialState.PRUNED)
    return [t for t in list_trained(study) if t.state in states and t.value is not None and math.isfinite(t.value)]


def draw_history(study: Study, objective: str) -> Figure | None:
    """Draw the value of each trial and the best value so far; None without trials."""
    trials = list_ended(study)
    if not trials:
        return None
    keep = np.maximum if study.direction == StudyDirection.MAXIMIZE else np.minimum
    out = io.StringIO()
    with draw_panels(1, 1, out, "tune-history") as (_, [axis]):
        for state, color, label in (
            (TrialState.PRUNED, GREY, "given up at a rung"),
            (TrialState.COMPLETE, BLUE, "finished"),
        ):
            some = [t for t in trials if t.state == state]
            if some:
                axis.plot([t.number for t in some], [t.value for t in some], "o", color=color, label=label, ms=4.5)
        whole = [t for t in trials if t.state == TrialState.COMPLETE]
        if whole:
            best = keep.accumulate([float(t.value or 0.0) for t in whole])
            axis.step([t.number for t in whole], best, where="post", color=COLORS[1], label="best so far", lw=1.2)
        axis.set_xlabel("trial")
        axis.xaxis.get_major_locator().set_params(integer=True)
        axis.set_ylabel(f"validation {objective}")
        axis.legend()
    note = "A trial that was given up shows its last value. Trials that were never trained are left out."
    return Figure("history", "History", note, out.getvalue())


def compute_importances(study: Study) -> dict[str, float]:
    """Return each name's share of the variance of finished trials' values; empty with too few trials."""
    if len(list_finished(study)) < FEWEST or len({t.value for t in list_finished(study)}) < 2:
        return {}
    importances: dict[str, float] = get_param_importances(study, evaluator=FanovaImportanceEvaluator(seed=0))
    return importances


def draw_importance(study: Study) -> Figure | None:
    """Draw a bar for each name's importance; None without importances."""
    importances = compute_importances(study)
    if not importances:
        return None
    names = list(importances)
    out = io.StringIO()
    with draw_panels(1, 1, out, "tune-importance", height=compute_row_height(names)) as (_, [axis]):
        axis.barh(range(len(names)), [importances[name] for name in names], color=BLUE, height=0.6)
        label_rows(axis, names)
        axis.set_xlabel("share of the variance of the value")
    note = (
        "Functional ANOVA (Hutter et al., 2014) on the finished trials, for the names that all of them have. A name "
        "with a small share may matter outside the values that were tried."
    )
    return Figure("importance", "What matters", note, out.getvalue())


def draw_parallel(study: Study, objective: str) -> Figure | None:
    """Draw each trial as a line through its values; None with fewer than two trials or no varied name."""
    trials = list_ended(study)
    spaces = {name: space for t in trials for name, space in t.distributions.items()}
    names = [name for name in spaces if len({t.params[name] for t in trials if name in t.params}) > 1]
    if len(trials) < 2 or not names:
        return None
    whole = [float(t.value or 0.0) for t in trials if t.state == TrialState.COMPLETE] or [0.0]
    low, high = min(whole), max(whole)
    large = study.direction == StudyDirection.MAXIMIZE

    def better(trial: FrozenTrial) -> float:
        value = float(trial.value or 0.0)
        return value - low if large else high - value

    heights = {
        name: [_compute_height(spaces[name], t.params.get(name), name, trials) for t in trials] for name in names
    }
    out = io.StringIO()
    with draw_panels(1, 1, out, "tune-parallel", height=4.2) as (_, [axis]):
        from matplotlib import colormaps

        order = sorted(range(len(trials)), key=lambda i: better(trials[i]))
        for i in order:
            trial, ys = trials[i], [heights[name][i] for name in names]
            done = trial.state == TrialState.COMPLETE
            share = better(trial) / ((high - low) or 1.0)
            color = colormaps["viridis_r"](0.1 + 0.85 * min(1.0, max(0.0, share))) if done else GREY
            axis.plot(range(len(names)), ys, "-o", color=color, lw=1.4 if done else 0.6, ms=3, alpha=0.9)
        axis.set_xticks(range(len(names)), names, rotation=20, ha="right", fontsize=8)
        axis.set_yticks([])
        axis.set_ylim(-0.08, 1.08)
        for x, name in enumerate(names):
            for text, y in _list_marks(spaces[name], name, trials):
                axis.annotate(text, (x, y), (4, 0), textcoords="offset points", fontsize=7, va="center")
    note = (
        f"Dark: the best validation {objective} of finished trials. Gray: given up. A gap: the trial has no such value."
    )
    return Figure("parallel", "Values that went together", note, out.getvalue())


def _collect_numbers(name: str, trials: Sequence[FrozenTrial]) -> list[float]:
    return [float(t.params[name]) for t in trials if name in t.params]


def _compute_height(space: BaseDistribution, value: Any, name: str, trials: Sequence[FrozenTrial]) -> float:
    """Return the height of a value between 0 and 1; NaN if the trial lacks the name."""
    if value is None:
        return math.nan
    if isinstance(space, CategoricalDistribution):
        return float(space.choices.index(value) / (len(space.choices) - 1))
    change = math.log if getattr(space, "log", False) else float
    low, high = change(min(_collect_numbers(name, trials))), change(max(_collect_numbers(name, trials)))
    return (change(value) - low) / ((high - low) or 1.0)


def _list_marks(space: BaseDistribution, name: str, trials: Sequence[FrozenTrial]) -> list[tuple[str, float]]:
    """Return the texts beside an axis, each with its height."""
    if isinstance(space, CategoricalDistribution):
        return [(str(choice)[:28], i / (len(space.choices) - 1)) for i, choice in enumerate(space.choices)]
    return [(f"{min(_collect_numbers(name, trials)):.3g}", 0.0), (f"{max(_collect_numbers(name, trials)):.3g}", 1.0)]

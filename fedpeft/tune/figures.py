"""The figures of a search: its history, the importance of its names, and combinations of values."""

from __future__ import annotations

import io
import math
from collections.abc import Sequence
from dataclasses import dataclass
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


@dataclass(frozen=True)
class ValueScale:
    """The vertical scale of a name's values, from 0 at the bottom to 1 at the top.

    Attributes:
        name: the name.
        space: the values that the search may choose.
        tried: values in trials; for numbers, the smallest one is at the bottom and the largest one at the top.
    """

    name: str
    space: BaseDistribution
    tried: Sequence[Any]

    def compute_height(self, trial: FrozenTrial) -> float:
        """Return the height of the trial's value; NaN if the trial lacks the name."""
        if self.name not in trial.params:
            return math.nan
        value = trial.params[self.name]
        if isinstance(self.space, CategoricalDistribution):
            return float(self.space.choices.index(value) / (len(self.space.choices) - 1))
        change = math.log if getattr(self.space, "log", False) else float
        low, high = change(min(self.tried)), change(max(self.tried))
        return (change(value) - low) / ((high - low) or 1.0)

    def list_marks(self) -> list[tuple[str, float]]:
        """Return the texts beside the scale, each with its height."""
        if isinstance(self.space, CategoricalDistribution):
            choices = self.space.choices
            return [(str(choice)[:28], i / (len(choices) - 1)) for i, choice in enumerate(choices)]
        return [(f"{min(self.tried):.3g}", 0.0), (f"{max(self.tried):.3g}", 1.0)]


def create_scales(trials: Sequence[FrozenTrial]) -> list[ValueScale]:
    """Create the scales of names with several values among the trials."""
    spaces = {name: space for trial in trials for name, space in trial.distributions.items()}
    tried = {name: [trial.params[name] for trial in trials if name in trial.params] for name in spaces}
    return [ValueScale(name, spaces[name], values) for name, values in tried.items() if len(set(values)) > 1]


def draw_parallel(study: Study, objective: str) -> Figure | None:
    """Draw each trial as a line through its values; None with fewer than two trials or no varied name."""
    trials = list_ended(study)
    scales = create_scales(trials)
    if not scales:
        return None
    sign = 1 if study.direction == StudyDirection.MAXIMIZE else -1
    from_worst = sorted(trials, key=lambda trial: sign * float(trial.value or 0.0))
    finished = [sign * float(trial.value or 0.0) for trial in from_worst if trial.state == TrialState.COMPLETE]
    out = io.StringIO()
    with draw_panels(1, 1, out, "tune-parallel", height=4.2) as (_, [axis]):
        from matplotlib import colormaps
        from matplotlib.colors import Normalize

        share = Normalize()  # 0 for the worst finished trial, 1 for the best one
        share.autoscale(finished)
        for trial in from_worst:
            heights = [scale.compute_height(trial) for scale in scales]
            style: dict[str, Any] = {"color": GREY, "lw": 0.6}
            if trial.state == TrialState.COMPLETE:
                color = colormaps["viridis_r"](0.1 + 0.85 * share(sign * float(trial.value or 0.0)))
                style = {"color": color, "lw": 1.4}
            axis.plot(range(len(scales)), heights, "-o", ms=3, alpha=0.9, **style)
        names = [scale.name for scale in scales]
        axis.set_xticks(range(len(names)), names, rotation=20, ha="right", fontsize=8)
        axis.set_yticks([])
        axis.set_ylim(-0.08, 1.08)
        for x, scale in enumerate(scales):
            for text, y in scale.list_marks():
                axis.annotate(text, (x, y), (4, 0), textcoords="offset points", fontsize=7, va="center")
    note = (
        f"Dark: the best validation {objective} of finished trials. Gray: given up. A gap: the trial has no such value."
    )
    return Figure("parallel", "Values that went together", note, out.getvalue())

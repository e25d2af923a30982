"""Axes of pictures: no accuracy above 100 %, and ticks of small losses that differ."""

from __future__ import annotations

import pytest

from fedpeft.reporting.plots import plot_run
from fedpeft.study import curve_figures


@pytest.mark.parametrize("accuracies", [(1.0, 1.0), (0.9, 1.0), (0.999, 0.9995), (0.4, 0.6)])
def test_no_accuracy_is_above_100_percent(accuracies):
    rounds = [
        {"round": i, "loss": 0.1, "accuracy": accuracy, "train_loss": None} for i, accuracy in enumerate(accuracies)
    ]
    axis = plot_run(rounds, {"metric": "accuracy", "accuracy": accuracies[-1]}).axes[0]
    low, high = axis.get_ylim()
    assert low <= 100 * min(accuracies) <= 100 * max(accuracies) <= high <= 100
    assert low < high
    assert not axis.lines[0].get_clip_on(), "the marker of a value at a limit is drawn in full"


def test_a_run_without_training_losses_has_panels_of_full_width():
    """Clients of private runs report no losses, and an empty curve let both panels collapse."""
    rounds = [{"round": i, "loss": 0.3 - i / 200, "accuracy": 0.95, "train_loss": None} for i in range(0, 21, 4)]
    figure = plot_run(rounds, {"metric": "accuracy", "accuracy": 0.943, "baseline_accuracy": 0.943})
    figure.draw_without_rendering()
    assert [len(axis.get_legend().get_texts()) for axis in figure.axes] == [3, 1]
    assert min(axis.get_position().width for axis in figure.axes) > 0.3


def test_curves_of_a_study_end_at_100_percent(monkeypatch):
    from types import SimpleNamespace

    points = [SimpleNamespace(score=98.0, deviation=0.5), SimpleNamespace(score=99.9, deviation=0.4)]
    monkeypatch.setattr(curve_figures, "compute_mean_curve", lambda method: points)
    assert curve_figures._compute_limits([None], 100.0)[1] == 100

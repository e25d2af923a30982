"""Axes of pictures: no accuracy above 100 %, and ticks of small losses that differ."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from pathlib import Path

import pytest

import fedpeft.run.dashboard
from fedpeft.run.plots import figure_of
from fedpeft.studies import curve_figures

SCRIPT = Path(fedpeft.run.dashboard.__file__).parent / "app.js"

STUBS = """
const drawn = [];
const svg = {clientWidth: 460, clientHeight: 220, setAttribute() {}, replaceChildren() {}};
const at = () => svg;
const draw = (parent, kind, shape, text) => { if (kind === "text") drawn.push(text); };
"""
"""In the place of a page."""


@pytest.mark.parametrize("accuracies", [(1.0, 1.0), (0.9, 1.0), (0.999, 0.9995), (0.4, 0.6)])
def test_no_accuracy_is_above_100_percent(accuracies):
    rounds = [
        {"round": i, "loss": 0.1, "accuracy": accuracy, "train_loss": None} for i, accuracy in enumerate(accuracies)
    ]
    axis = figure_of(rounds, {"metric": "accuracy", "accuracy": accuracies[-1]}).axes[0]
    low, high = axis.get_ylim()
    assert low < 100 * min(accuracies)
    assert 100 * max(accuracies) <= high <= 100


def test_curves_of_a_study_end_at_100_percent(monkeypatch):
    from types import SimpleNamespace

    points = [(SimpleNamespace(accuracy=98.0), 0.5), (SimpleNamespace(accuracy=99.9), 0.4)]
    monkeypatch.setattr(curve_figures, "mean_curve", lambda method: points)
    assert curve_figures._limits([None])[1] == 100


@pytest.mark.skipif(shutil.which("node") is None, reason="the page's script needs an interpreter")
@pytest.mark.parametrize(
    ("values", "most", "digits"),
    [((0.01, 0.003), "Infinity", 3), ((0.0123, 0.0004), "Infinity", 3), ((1.0, 1.0), "1", 3), ((0.98, 1.0), "1", 3)],
)
def test_ticks_of_the_page_differ_and_end_at_1(values, most, digits):
    text = SCRIPT.read_text()
    formats = dict(re.findall(r'plot\("(losses|curve)".*?state.total, (v => [^,)]*\(\d\))', text))
    function = re.search(r"^function plot\(.*?^}", text, re.DOTALL | re.MULTILINE)[0]
    points = json.dumps([{"name": "one", "points": list(enumerate(values))}])
    name = "curve" if most == "1" else "losses"
    call = f'plot("{name}", {points}, 2, {formats[name]}, false, {most}); console.log(JSON.stringify(drawn))'
    done = subprocess.run(["node", "-e", STUBS + function + call], capture_output=True, text=True, check=True)
    ticks = json.loads(done.stdout)[:3]
    assert len(set(ticks)) == 3
    assert most != "1" or max(map(float, ticks)) <= 1

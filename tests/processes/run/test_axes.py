"""Axes of pictures: no accuracy above 100 %, and ticks of small losses that differ."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from pathlib import Path

import pytest

import fedpeft.reporting.dashboard

SCRIPT = Path(fedpeft.reporting.dashboard.__file__).parent / "app.js"

STUBS = """
const drawn = [];
const svg = {clientWidth: 460, clientHeight: 220, setAttribute() {}, replaceChildren() {}};
const at = () => svg;
const draw = (parent, kind, shape, text) => { if (kind === "text") drawn.push(text); };
"""
"""In the place of a page."""


@pytest.mark.medium
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

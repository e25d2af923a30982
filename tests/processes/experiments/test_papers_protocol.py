"""The smallest protocol of a paper, whole: zeroth-order steps on the reviews, as the page gives its command."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

from experiments.papers.registry import PROTOCOLS, ROOT


@pytest.mark.slow
def test_decomfl_runs_whole_and_its_clients_send_scalars(tmp_path):
    file = PROTOCOLS / "decomfl.toml"
    command = [sys.executable, "-m", "fedpeft.simulate", str(file), "--output", str(tmp_path / "run")]
    subprocess.run(command, cwd=ROOT, check=True, timeout=900)
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    assert summary["rounds"] == 20
    assert summary["uplink_bytes_per_parameter"] < 0.1

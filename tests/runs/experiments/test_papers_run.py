"""The protocols of papers without committed runs: one round on generated texts, through all checks of a run."""

from __future__ import annotations

import json

import pytest

from experiments.papers.registry import PROTOCOLS, read_papers
from fedpeft.simulate import main

UNMEASURED = [paper.protocol for paper in read_papers().values() if paper.protocol and paper.measured is None]


@pytest.mark.medium
@pytest.mark.parametrize("name", UNMEASURED)
def test_a_protocol_makes_a_round(name, tmp_path):
    """The model and the data are small, and clients are few; rule, method and optimizer are the file's."""
    text = (PROTOCOLS / name).read_text(encoding="utf-8")
    partition = "iid" if "grouped" in text else "dirichlet(alpha=0.5)"
    small = ["--dataset", "tiny", "--model", "tiny", "--partition", partition, "--rounds", "1", "--tokens", "32"]
    small += ["--batch-size", "4", "--workers", "1", "--clients", "3", "--cohort", "3"]
    small += ["--ranks", "1*1,2*2"] if name == "rbla.toml" else []
    if "dp_sgd(epsilon" in text:  # under a budget, so few examples are enough for the start alone
        small += ["--privacy", "dp_sgd(noise_multiplier=1)"]
    assert main([str(PROTOCOLS / name), "--output", str(tmp_path / "run"), *small]) == 0
    assert json.loads((tmp_path / "run" / "summary.json").read_text())["rounds"] >= 1

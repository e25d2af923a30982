"""The strategy of this project: what it computes, and that a run with it goes through."""

from __future__ import annotations

import sys
from pathlib import Path
from types import SimpleNamespace

import torch

import fedpeft

PROJECT = Path(__file__).parent.parent
sys.path.insert(0, str(PROJECT))

from my_rules import HalfMean  # noqa: E402


def test_half_of_each_update_counts() -> None:
    """The contribution of an update of ones."""
    update = SimpleNamespace(delta={"weight": torch.ones(2, 3)})
    made = HalfMean(share=0.5).contribution(update, {}, None)
    assert torch.equal(made["weight"], torch.full((2, 3), 0.5))


def test_a_run_goes_through(tmp_path: Path) -> None:
    """One round on the project's own examples, with a tiny model."""
    run = fedpeft.run_simulation(
        dataset=f"file(path={str(PROJECT / 'data')!r}, owner='shop')",
        partition="natural",
        clients=0,
        cohort="all",
        rounds=1,
        model="tiny",
        tokens=16,
        dtype="fp32",
        workers=1,
        local_work="steps(1)",
        strategy=HalfMean(share=0.5),
        output=tmp_path / "run",
        progress=False,
    )
    assert 0 <= run.accuracy <= 1

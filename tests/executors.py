"""A check that both executors of a simulation train the same state."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import torch

from fedpeft.reporting.records import Records
from fedpeft.simulation.simulation import Simulation


def check_executors_agree(create: Callable[..., Simulation], folder: Path, **given: object) -> None:
    """Check that batched and sequential training give the same state in fp64, with a trained head.

    Args:
        create: returns the simulation of a folder and settings, in fp64.
        folder: where both run.
        given: settings besides the grid.
    """
    states = []
    for executor in ("batched", "sequential"):
        made = create(folder / executor, grid=f"cohort(executor={executor})", **given)
        (folder / executor).mkdir()
        states.append(made.train(made.server(Records(folder / executor))).adapter)
        made.close()
    one, other = states
    assert one["head.weight"].any()
    for name in one:
        assert torch.allclose(one[name], other[name], rtol=1e-7, atol=1e-9), name

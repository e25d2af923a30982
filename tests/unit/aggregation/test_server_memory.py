"""The server's memory in a round does not depend on the number of clients."""

from __future__ import annotations

import gc
import weakref
from pathlib import Path

import pytest
import torch

from fedpeft.aggregation.aggregator import LinearAggregator, RoundAggregator
from fedpeft.conformance.cohorts import create_random_state, create_random_updates
from fedpeft.parts.families import SERVER_OPTIMIZERS, strategies
from tests.aggregation.one_round import EQUAL, layout


@pytest.mark.parametrize("name", ["fedit", "flexlora"])
def test_no_update_stays_in_memory(name: str, tmp_path: Path) -> None:
    strategy, state = strategies.build(name), create_random_state(layout, 1, torch.float64)
    if name == "fedit":
        aggregator = LinearAggregator(strategy, SERVER_OPTIMIZERS.build("sgd"), layout, state, 1)
    else:
        aggregator = RoundAggregator(strategy, layout, state, 1, 0, tmp_path / "shelf")
    updates = create_random_updates(strategy, state, layout, EQUAL, 2, 1, 0.5)
    tensors = [weakref.ref(tensor) for update in updates for tensor in update.delta.values()]
    assert len(tensors) == len(EQUAL) * len(layout.names)
    while updates:
        aggregator.add(updates.pop(0))
    gc.collect()
    assert [tensor for tensor in tensors if tensor() is not None] == []

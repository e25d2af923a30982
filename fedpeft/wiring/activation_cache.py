"""Whether what the frozen blocks below the lowest adapter make of a row is computed once, and read back in each step.

An encoder's rows always are. A language model's are where they are trained on more often than once and the disk need
not hold much: a row of 512 tokens of a 7 B model takes 4 MB.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from fedpeft.models.dtypes import DTYPES
from fedpeft.models.frozen_blocks import can_start_at
from fedpeft.models.layers import find_lowest_block
from fedpeft.models.readout import AllBlocks
from fedpeft.models.task import Task
from fedpeft.peft.adapter import Layout

if TYPE_CHECKING:
    from fedpeft.wiring.setup import Setup

WORTH = 1.5
"""Times that a row is trained on in a run, on average, from which on it is kept."""

LARGEST = 4e9
"""Bytes that rows of a language model may take in the cache."""


def count_frozen_blocks(base: Any, layout: Layout, kind: str, task: Task) -> int:
    """How many blocks lie below the lowest adapter, where a forward pass can start above them; else 0."""
    if kind != "text" or not task.starts_above or isinstance(base, AllBlocks):
        return 0
    lowest = find_lowest_block(base, [t.module for t in layout.tensors if t.role != "head"])
    return lowest if lowest and can_start_at(base, lowest) else 0


def is_pooled(setup: Setup) -> bool:
    """Return whether all that is read of a row is its pooled features: where a head alone is trained for classes."""
    adapted = any(tensor.role != "head" for tensor in setup.layout.tensors)
    return setup.facts.task == "classification" and not adapted


def count_cached_blocks(setup: Setup, lengths: np.ndarray, holders: int) -> int:
    """How many blocks are not computed again in each step.

    Args:
        setup: the run's.
        lengths: tokens of each row, (rows,).
        holders: simulated clients that the rows lie on; 0: they are a real client's, or nobody trains on them.
    """
    if is_pooled(setup):
        return 0
    if setup.drift.changes_loss:  # words are moved below these blocks
        return 0
    if not setup.frozen_blocks or setup.task.encodes:
        return setup.frozen_blocks
    if setup.mechanism is not None or not holders or not len(lengths):
        return 0
    size = float(lengths.sum()) * setup.width * DTYPES[setup.config.dtype].itemsize
    kept = count_visits(setup, max(1, len(lengths) // holders)) >= WORTH and size <= LARGEST
    return setup.frozen_blocks if kept else 0


def count_visits(setup: Setup, rows: int) -> float:
    """Return the mean number of times that a run trains on each example of a client with `rows` examples."""
    training, config = setup.training, setup.config
    drawn = config.rounds * setup.compute_cohort_size(setup.clients) / setup.clients
    steps = training.steps_for(rows)
    return float(drawn * min(steps * training.batch_size / rows, steps))

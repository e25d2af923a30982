"""Limits on the bytes of a message's payloads, from what the setup can need, so that no peer fills another's memory."""

from __future__ import annotations

import math
from typing import Final

from fedpeft.peft.adapter import Layout
from fedpeft.privacy.secure_sum.words import bound_received_bytes
from fedpeft.wiring.setup import Setup

PER_PARAMETER: Final = 16
"""Most bytes for each trainable parameter."""

PER_NUMBER: Final = 8
"""Most bytes for each number of the base or of a sum over examples: fp64, or a word under a mask."""

BESIDE: Final = 1 << 20
"""Most bytes of everything else."""


def compute_report_limit(setup: Setup, round_number: int, rows: int) -> int:
    """Return the most bytes of a client's report: an update, or before round 1 the statistics for the head's start.

    Args:
        setup: the parts of the run.
        round_number: round of the report; 0: before round 1.
        rows: number of examples that the client has joined with.
    """
    sent = 0
    if round_number == 0 and setup.head.exchanges and "head.weight" in setup.start:
        outputs, width = setup.start["head.weight"].shape
        shapes = setup.statistics_shapes if setup.secure_sum else setup.head.shapes(width, outputs, rows)
        sent = sum(math.prod(shape) for shape in shapes.values())
    return PER_PARAMETER * setup.layout.numel + PER_NUMBER * sent + BESIDE


def compute_instruction_limit(setup: Setup) -> int:
    """Return the most bytes of a task: adapter, control variate, residual of the base, and broadcast tensors."""
    secure = setup.secure_sum
    others = bound_received_bytes(setup.clients, secure.neighbours) if secure else 0
    return compute_task_limit(setup.layout) + PER_NUMBER * setup.whitened_directions**2 + others


def compute_task_limit(layout: Layout) -> int:
    """Return the most bytes of a task for a client that receives nothing but the model."""
    base = sum(pair.out_features * pair.in_features for pair in layout.pairs)
    return PER_PARAMETER * layout.numel + PER_NUMBER * base + BESIDE

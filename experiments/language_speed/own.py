"""A step of a client in a simulation on a CPU: the default executor, with its optimizer."""

from __future__ import annotations

import sys
from typing import Any

import numpy as np

from experiments.language_speed.peers import Step

TARGETS = "lora(rank=8, targets=('q_proj', 'v_proj'), layers=0)"


def create_client_step(model: str, dtype: str, rows: Any, again: bool = False, padded: bool = False) -> Step:
    """Create one step on all `rows`, always from the start, without padding if there is much of it.

    Args:
        model: name or folder of the base model.
        dtype: precision of the base.
        rows: the examples.
        again: whether to recompute blocks in the backward pass.
        padded: whether to keep padding.
    """
    from fedpeft.clients.batched import BatchedExecutor
    from fedpeft.clients.executor import Job
    from fedpeft.clients.local_training import LocalTraining

    from fedpeft.models import kernels
    from fedpeft.models.base_model import resolve_model
    from fedpeft.models.checkpointing import checkpoint_blocks
    from fedpeft.models.dtypes import DTYPES
    from fedpeft.models.tasks.causal_lm import CausalLM
    from fedpeft.parts.families import LOCAL_WORK, PEFT_METHODS

    task, method = CausalLM(), PEFT_METHODS.build(TARGETS)
    reference = task.model(task.base(resolve_model(model), DTYPES[dtype]), None)
    method.attach(reference, dtype)
    layout, start = method.layout(reference), method.start(reference, 0)
    del reference
    made = task.model(task.base(resolve_model(model), DTYPES[dtype]), None)
    if again:
        checkpoint_blocks(made.base)
    executor = BatchedExecutor(made, task, method, rows, layout, 1, kernels.choose(DTYPES[dtype]))
    local = LocalTraining(len(rows), LOCAL_WORK.build("steps(1)"))
    job = Job(0, 1, 0, np.arange(len(rows)), start, frozenset(layout.names), local, 1e-3, layout.form)
    executor.try_packing([job])
    if padded and executor.packed is not None:
        executor.packed.worth = sys.maxsize

    def step() -> float:
        [trained] = executor.train([job])
        return float(trained.loss)

    return step

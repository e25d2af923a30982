"""The usual loop: a peft model, torch's AdamW, one client. Here one such loop runs on every core."""

from __future__ import annotations

import functools
import time
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from multiprocessing.connection import Connection
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from fedpeft.clients.executor import Job
from fedpeft.clients.workbench import WorkPlan
from torch.nn import functional
from torch.optim.lr_scheduler import LambdaLR

from experiments.speed.sides import Round, Variant, answer
from fedpeft.data.cached_rows import load_cached_examples
from fedpeft.data.examples import Batch, Examples
from fedpeft.models.dtypes import DTYPES
from fedpeft.models.task import find_trainable
from fedpeft.peft.adapter import State

if TYPE_CHECKING:
    from experiments.speed.workload import Workload


class PlainClient:
    """A peft model and its training loop, on one thread."""

    def __init__(self, plan: WorkPlan) -> None:
        """Load the base and attach the PEFT method."""
        torch.set_num_threads(1)
        task = plan.task
        base = task.base(plan.model, DTYPES[plan.dtype], attn_implementation="sdpa")  # transformers' default
        self.model = task.model(base, plan.classes)
        plan.method.attach(self.model, plan.dtype)
        self.parameters = find_trainable(self.model)

    def train(self, job: Job, examples: Examples) -> State:
        """Train from the received tensors and return the trained ones."""
        self.receive(job.received)
        optimizer, warmup = job.training.optimizer.create_optimizer(self.parameters, job.learning_rate)
        for rows in job.create_batches(examples.lengths):
            self.step(examples.batch(rows), optimizer, warmup)
        return {name: parameter.detach() for name, parameter in self.parameters.items()}

    def receive(self, state: State) -> None:
        """Put the tensors of a state into the model."""
        with torch.no_grad():
            for name, parameter in self.parameters.items():
                parameter.copy_(state[name])

    def step(self, batch: Batch, optimizer: Any, warmup: LambdaLR) -> None:
        """Take one step of the optimizer and of the learning rate's warm-up."""
        loss = functional.cross_entropy(self.model(batch), batch["labels"])
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        warmup.step()


_load: Workload | None = None


def _keep(load: Workload) -> None:
    global _load
    _load = load


@functools.cache
def _get_client() -> PlainClient:
    assert _load is not None
    return PlainClient(_load.plan)


def _train(client: int) -> dict[str, np.ndarray]:
    assert _load is not None
    trained = _get_client().train(_load.create_job(client), load_cached_examples(_load.plan.data_key))
    return {name: tensor.numpy().copy() for name, tensor in trained.items()}


def run(connection: Connection, load: Workload, variants: dict[str, Variant]) -> None:
    """Run one loop per core; each takes client after client, and the mean is weighted by examples."""
    weights = load.partition.sizes / load.partition.sizes.sum()
    with ProcessPoolExecutor(load.workers, get_context("spawn"), _keep, (load,)) as pool:

        def one_round(_: str) -> Round:
            started = time.perf_counter()
            after = {name: torch.zeros_like(t) for name, t in load.start.items()}
            for weight, trained in zip(weights, pool.map(_train, range(len(weights))), strict=True):
                for name, total in after.items():
                    total.add_(torch.from_numpy(trained[name]), alpha=float(weight))
            return Round(time.perf_counter() - started, after)

        answer(connection, one_round)

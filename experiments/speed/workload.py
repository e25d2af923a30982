"""The workload of every side: the same examples in the same batches, from the same state."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from fedpeft.clients.executor import Job
from fedpeft.clients.workbench import WorkPlan
from torch.nn import functional
from torch.utils.flop_counter import FlopCounterMode

from experiments.speed.plain import PlainClient
from fedpeft.data.cached_rows import load_cached_examples
from fedpeft.data.partition import Partition
from fedpeft.machine import seeds
from fedpeft.models.layers import find_blocks
from fedpeft.peft.adapter import State, compute_norm
from fedpeft.simulation.simulation import Simulation
from fedpeft.wiring.config import RunConfig


@dataclass(frozen=True)
class Case:
    """A timed setting.

    Attributes:
        name: name in tables.
        clients: clients in the round.
        rows: examples per client (one pass over them), cut from its shard; 0 for all.
        batch_size: examples per step.
        dtype: precision of the base.
        peft: the PEFT method.
        dataset: the dataset, cut to `tokens` tokens and divided among `federation` clients.
    """

    name: str
    clients: int
    rows: int
    batch_size: int
    dtype: str
    peft: str = "lora(layers=2)"
    dataset: str = "20newsgroups"
    federation: int = 100
    tokens: int = 128


@dataclass(frozen=True)
class Workload:
    """A round as plain data: client k has the rows `partition.shard(k)` of the cached examples `plan.data_key`.

    Attributes:
        config: settings of the simulation that created the examples and the plan.
        plan: the work plan of a worker of the batched executor.
        partition: examples of each client of the round.
        start: the global state before the round.
        workers: number of single-threaded processes on every side.
    """

    config: RunConfig
    plan: WorkPlan
    partition: Partition
    start: State
    workers: int

    def create_job(self, client: int, round_number: int = 1) -> Job:
        """Create a client's job in a round, from 1."""
        return Job(
            client=client,
            round=round_number,
            seed=self.plan.seed,
            rows=self.partition.shard(client),
            received=self.start,
            trained=frozenset(self.start),
            training=self.plan.training,
            learning_rate=self.plan.training.learning_rate,
            form=self.plan.layout.form,
        )

    @property
    def tokens(self) -> int:
        """Real tokens (without padding) that a round trains on."""
        return sum(int(self._lengths[rows].sum()) for rows in self._batches)

    @property
    def steps(self) -> int:
        """Optimizer steps of all clients together."""
        return len(self._batches)

    @property
    def _lengths(self) -> np.ndarray:
        lengths: np.ndarray = load_cached_examples(self.plan.data_key).lengths
        return lengths

    @property
    def _batches(self) -> list[np.ndarray]:
        return [
            rows
            for client in range(len(self.partition))
            for rows in self.create_job(client).create_batches(self._lengths)
        ]

    def compute_difference(self, a: State, b: State) -> float:
        """Return the distance of two states after the round, relative to the distance of `b` from the start."""
        apart = compute_norm({name: a[name].double() - b[name].double() for name in b})
        return apart / compute_norm({name: b[name].double() - self.start[name].double() for name in b})


class SilentObserver:
    """An observer of a simulation that prints nothing."""

    def __getattr__(self, name: str) -> Any:
        """Return a callback that does nothing, for every event."""
        return lambda *_, **__: None


def create_workload(case: Case, workers: int, folder: Path) -> Workload:
    """Create the workload of a case, with tokenized examples in the cache."""
    config = RunConfig(
        clients=case.federation,
        dataset=case.dataset,
        tokens=case.tokens,
        peft=case.peft,
        dtype=case.dtype,
        batch_size=case.batch_size,
        workers=workers,
    )
    simulation = Simulation(config, folder, SilentObserver())
    rows = simulation.rows
    shards = [
        seeds.create_generator(0, "speed rows", client).permutation(rows.partition.shard(client))[: case.rows or None]
        for client in range(min(case.clients, case.federation))
    ]
    ends = np.cumsum([len(shard) for shard in shards])
    partition = Partition.from_shards([np.arange(end - len(s), end) for s, end in zip(shards, ends, strict=True)])
    data_key = simulation.setup.tokenize_rows(rows.all.take(np.concatenate(shards)), config.tokens)
    plan = dataclasses.replace(simulation.workers.work, data_key=data_key)
    return Workload(config, plan, partition, _move_state(simulation.setup.start), workers)


def _move_state(start: State) -> State:
    """Return `start` moved a little, so that no tensor is zero and every gradient counts in comparisons.

    All values fit fp32, the precision in which they are sent.
    """
    moved = {}
    for i, (name, tensor) in enumerate(start.items()):
        noise = torch.randn(tensor.shape, generator=seeds.create_torch_generator(0, "speed start", i))
        moved[name] = (tensor.float() + 0.02 * noise).to(tensor.dtype)
    return moved


@dataclass(frozen=True)
class Operations:
    """Floating-point operations in matrix products (attention excluded) of a round, without padding.

    Attributes:
        all: operations of a plain loop.
        below: its part below the lowest adapted block.
    """

    all: float
    below: float


def count_operations(load: Workload) -> Operations:
    """Count the operations of one forward and backward pass of the plain model."""
    client = PlainClient(load.plan)
    batch = load_cached_examples(load.plan.data_key).batch(load.partition.shard(0)[:1])
    with FlopCounterMode(display=False) as counter:
        functional.cross_entropy(client.model(batch), batch["labels"]).backward()  # type: ignore[no-untyped-call]
    scale = load.tokens / batch["attention_mask"].numel()
    path, stack = find_blocks(client.model)
    counts = counter.get_flop_counts()
    names = [f"{type(client.model).__name__}.{path}.{i}" for i in range(len(stack))]
    below = sum(sum(counts[name].values()) for name in names[: load.plan.depth])
    return Operations(counter.get_total_flops() * scale, below * scale)

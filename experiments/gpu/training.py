"""A model and three ways to train its clients: batched, sequential, and a plain loop."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from fedpeft.clients.batched import BatchedExecutor
from fedpeft.clients.executor import Executor, Job, Trained
from fedpeft.clients.local_training import LocalTraining
from fedpeft.clients.sequential import SequentialExecutor
from torch import nn
from torch.nn import functional

from experiments.gpu.shapes import Shape
from fedpeft.data.examples import Examples
from fedpeft.data.tokens import build_token_rows
from fedpeft.machine import seeds
from fedpeft.models.determinism import compute_deterministically
from fedpeft.models.dtypes import DTYPES
from fedpeft.models.quantized_base import quantize
from fedpeft.models.task import find_trainable
from fedpeft.parts.families import LOCAL_OPTIMIZERS, LOCAL_WORK, PEFT_METHODS, TASKS
from fedpeft.peft.adapter import State, compute_norm

BATCHED, SEQUENTIAL, PLAIN = "batched", "one by one", "plain loop"


@dataclass(frozen=True)
class Load:
    """The training work: clients with equally many made-up examples.

    Attributes:
        shape: shape of the model.
        precision: precision of the base: fp32, bf16, int8 or nf4.
        clients: number of clients.
        steps: steps per client.
        batch: examples per step.
        tokens: tokens per example.
        weights: folder of real weights; None for random ones.
        optimizer, rate: the clients' optimizer and learning rate.
        portable: whether random weights are drawn on the CPU, so that all devices have the same.
    """

    shape: Shape
    precision: str
    clients: int
    steps: int
    batch: int
    tokens: int
    weights: Path | None = None
    optimizer: str = "adamw"
    rate: float = 1e-3
    portable: bool = False

    @property
    def dtype(self) -> str:
        """The precision of the activations."""
        return self.precision if self.precision in DTYPES else "bf16"

    @property
    def trained_tokens(self) -> int:
        """The tokens that all clients train on."""
        return self.clients * self.steps * self.batch * self.tokens

    def create_examples(self) -> Examples:
        """Create examples of random tokens; client k has those from k * steps * batch on."""
        count = self.clients * self.steps * self.batch
        random = np.random.default_rng(0)
        ids = random.integers(5, self.shape.config().vocab_size, size=(count, self.tokens))
        labels = random.integers(self.shape.classes, size=count) if self.shape.classes else None
        return build_token_rows(ids.tolist(), 0, labels)

    def start(self) -> State:
        """Return an adapter as in the middle of training: no tensor is zero, so every gradient counts."""
        tensors = self.shape.create_layout().tensors
        return {
            t.name: 0.02 * torch.randn(t.shape, generator=seeds.create_torch_generator(0, "gpu start", i))
            for i, t in enumerate(tensors)
        }

    def create_jobs(self, examples: Examples) -> list[Job]:
        """Create one job per client."""
        start, layout = self.start(), self.shape.create_layout()
        work, optimizer = LOCAL_WORK.build(f"steps({self.steps})"), LOCAL_OPTIMIZERS.build(self.optimizer)
        training = LocalTraining(self.batch, work, self.rate, optimizer)
        rows = np.arange(len(examples)).reshape(self.clients, -1)
        return [
            Job(k, 1, 0, rows[k], start, frozenset(start), training, training.learning_rate, layout.form)
            for k in range(self.clients)
        ]

    def base(self, device: str) -> nn.Module:
        """Create the frozen base on a device."""
        if self.weights is None and not self.portable:
            return self.shape.base(device, self.precision)
        if self.weights is None:
            base = self.shape.base("cpu", self.dtype)
        else:
            base = TASKS.build(self.shape.task).base(self.weights, DTYPES[self.dtype])
        base = base.to(device)
        if self.precision not in DTYPES:
            quantize(base, "nf4" if self.precision == "nf4" else "int8")
        return base


def create_executor(load: Load, examples: Examples, device: str, together: int = 0) -> Executor:
    """Create an executor that trains `together` clients per pass, or one after another if it is 0."""
    if device.startswith("cuda"):
        compute_deterministically()
    task, method = TASKS.build(load.shape.task), PEFT_METHODS.build(load.shape.peft)
    model, layout = load.shape.create_model(load.base(device)), load.shape.create_layout()
    if together:
        return BatchedExecutor(model, task, method, examples, layout, together, "native")
    method.attach(model, load.dtype)
    return SequentialExecutor(model.to(device), task, examples, layout)


class PlainLoop:
    """The usual loop: a peft model, transformers' attention and loss, torch's AdamW, one client after another.

    Torch uses its fastest kernels here, whether or not they are deterministic.
    """

    def __init__(self, load: Load, examples: Examples, device: str) -> None:
        """Load the base and attach the PEFT method."""
        base: Any = load.base(device)
        base.config._attn_implementation = "sdpa"
        self.model = load.shape.create_model(base)
        PEFT_METHODS.build(load.shape.peft).attach(self.model, load.dtype)
        self.model.to(device)
        self.examples, self.device, self.classes = examples, device, load.shape.classes
        self.parameters = find_trainable(self.model)

    def train(self, jobs: Sequence[Job]) -> list[Trained]:
        """Train all jobs in order."""
        with allow_fastest_kernels():
            return [self._train(job) for job in jobs]

    def _train(self, job: Job) -> Trained:
        with torch.no_grad():
            for name, parameter in self.parameters.items():
                parameter.copy_(job.received[name])
        optimizer, warmup = job.training.optimizer.create_optimizer(self.parameters, job.learning_rate)
        losses = []
        for rows in job.create_batches(self.examples.lengths):
            batch = {name: t.to(self.device) for name, t in self.examples.batch(rows).items()}
            optimizer.zero_grad()
            loss = self._compute_loss(batch)
            loss.backward()
            optimizer.step()
            warmup.step()
            losses.append(loss.detach())
        state = {name: p.detach().cpu().clone() for name, p in self.parameters.items()}
        return Trained(job.client, state, float(torch.stack(losses).mean()), len(losses), len(job.rows))

    def _compute_loss(self, batch: dict[str, torch.Tensor]) -> Any:
        if self.classes:
            return functional.cross_entropy(self.model(batch), batch["labels"])
        return self.model.base(**batch).loss


@contextmanager
def allow_fastest_kernels() -> Iterator[None]:
    """Let torch choose nondeterministic kernels inside the context."""
    before = torch.are_deterministic_algorithms_enabled()
    cudnn = torch.backends.cuda.cudnn_sdp_enabled()  # type: ignore[no-untyped-call]
    torch.use_deterministic_algorithms(False)
    torch.backends.cuda.enable_cudnn_sdp(True)
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(before, warn_only=True)
        torch.backends.cuda.enable_cudnn_sdp(cudnn)


def create_trainer(name: str, load: Load, examples: Examples, device: str) -> Any:
    """Create the object whose `train(jobs)` trains the jobs of a load."""
    if name == PLAIN:
        return PlainLoop(load, examples, device)
    return create_executor(load, examples, device, load.clients if name == BATCHED else 0)


def compute_distance(a: State, b: State, start: State) -> float:
    """Return the distance of two trained states, relative to the distance of `b` from `start`."""
    there = {name: b[name].double() - start[name].double() for name in b}
    return compute_norm({name: a[name].double() - b[name].double() for name in b}) / compute_norm(there)

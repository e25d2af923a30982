"""Local training as every executor must do it: jobs, batches and optimizer steps.

A client's update depends only on (seed, round, client, its examples): every draw below has its own generator.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property, partial
from typing import TYPE_CHECKING, Any, cast

import numpy as np
import torch
from fedpeft.clients.drift import (
    ActiveCorrection,
    ChangesLoss,
    MasksExamples,
    Pull,
    ReducesNoise,
    SkipsSteps,
    StartsMomentum,
    TurnsGradients,
)
from fedpeft.clients.local_training import LocalTraining
from fedpeft.clients.transfer import copy_to_cpu, move_tensor
from torch import Tensor, nn

from fedpeft.aggregation.update import pad_ranks
from fedpeft.aggregation.whitening import Whitening
from fedpeft.data.examples import Batch, Examples, TokenRows, batch_by_length, round_up_length
from fedpeft.data.packing import Place, find_places, pack_clients
from fedpeft.machine import seeds
from fedpeft.models.abilities import ComparesExamples, PacksExamples
from fedpeft.models.kernels import FrozenLinear
from fedpeft.models.packed_tokens import PackedTokens
from fedpeft.models.quantized_base import QuantizedLinear, fold_residual
from fedpeft.models.task import FederatedModel, RowLosses, Task, get_canonical_name
from fedpeft.peft.adapter import AdapterShape, Layout, State
from fedpeft.privacy.noise import RunKey

if TYPE_CHECKING:
    from fedpeft.peft.method import Pulls

WINDOW = 8
"""Batches per window. Within a window, examples are sorted by length, so that padding costs little.

Batches are then taken in random order.
"""


EVALUATION_BATCH = 32
"""Examples per forward pass of an evaluation."""


@dataclass(frozen=True)
class Totals:
    """Sums over predictions: loss, number correct, and number of predictions."""

    loss: float = 0.0
    correct: float = 0.0
    count: float = 0.0

    def __add__(self, other: Totals) -> Totals:
        """Return the sums of both."""
        return Totals(self.loss + other.loss, self.correct + other.correct, self.count + other.count)

    @property
    def mean_loss(self) -> float:
        """The loss per prediction, in nats."""
        return self.loss / self.count

    @property
    def accuracy(self) -> float:
        """The share of correct predictions, 0 to 1."""
        return self.correct / self.count


@dataclass(frozen=True)
class RowPrivacy:
    """How a job's examples are protected.

    Attributes:
        clip: C, the clipping norm of one example's gradient.
        noise: z, the noise multiplier; the noise has standard deviation z C.
        rate: q, the probability with which an example joins a step.
        key: the source of coins and noise.
        attempt: attempt of the round.
        expected: number of examples that a step's sum is divided by; None: rate x the client's examples.
        summed: whether the job is one step whose result is the sum of the clipped gradients; others add noise to it.
        whitening: of the features of a head, whose gradients are clipped as those of one on these; None: features as
            they are.
    """

    clip: float
    noise: float
    rate: float
    key: RunKey
    attempt: int
    summed: bool = False
    expected: float | None = None
    whitening: Whitening | None = None

    def divisor(self, rows: int) -> float:
        """Return the divisor of a step's sum, for a client of `rows` examples."""
        return self.rate * rows if self.expected is None else self.expected


@dataclass(frozen=True)
class Job:
    """One client's work in one round.

    Attributes:
        client: id of the client; its randomness derives from `seed`, `round` and this.
        round: number of the round.
        seed: the run's seed.
        rows: indices of its examples in the examples at hand.
        received: the decoded state that it starts from.
        trained: names of the tensors that it trains; the others stay as received.
        training: settings of local training.
        learning_rate: learning rate of this round.
        form: LoRA rank and alpha.
        corrections: the client's drift corrections.
        offsets: added to the logits, (classes,) (`fedpeft.clients.label_shift`); None: nothing is added.
        privacy: how its examples are protected; None: not at all.
        walked: steps that the client has made in earlier rounds, after which this one continues; None: each round draws
            its examples anew.
        private: names of trained tensors that stay with the client.
    """

    client: int
    round: int
    seed: int
    rows: np.ndarray
    received: State
    trained: frozenset[str]
    training: LocalTraining
    learning_rate: float
    form: AdapterShape | None = None
    corrections: tuple[ActiveCorrection, ...] = ()
    offsets: Tensor | None = None
    privacy: RowPrivacy | None = None
    walked: int | None = None
    private: frozenset[str] = frozenset()

    @property
    def has_summed_gradients(self) -> bool:
        """Whether the job results in a sum of gradients instead of a state."""
        return self.privacy is not None and self.privacy.summed

    def collect_pulls(self, parameters: Mapping[str, Tensor]) -> list[Pull]:
        """Return the pulls of its corrections, in order, for `parameters` that hold what was received."""
        if not self.corrections:
            return []
        start = {name: view_leading_part(p.detach(), self.received[name]).clone() for name, p in parameters.items()}
        return [acting.begin(replace(self, received=start)) for acting in self.corrections]

    def choose_momentum(self) -> State:
        """Return the momentum that the local optimizer begins with, for some tensors; empty: it begins without one."""
        acting = (acting for acting in self.corrections if isinstance(acting.correction, StartsMomentum))
        return {
            name: tensor
            for a in acting
            for name, tensor in cast(StartsMomentum, a.correction).choose_momentum(a.server, a.own).items()
        }

    def find_still_tensors(self, names: Iterable[str], step: int) -> list[str]:
        """Return the names of the tensors that stand still in a `step`, from 0."""
        acting = [a.correction for a in self.corrections if isinstance(a.correction, SkipsSteps)]
        return [name for name in names if not all(correction.moves(name, step) for correction in acting)]

    def compute_noise_variance(self, name: str) -> float:
        """Return the noise variance in each entry of a tensor's gradient as its steps use it; 0: no noise.

        It holds for entries away from the edges of a smoothed gradient.
        """
        if self.privacy is None or self.has_summed_gradients:
            return 0.0
        deviation = self.privacy.noise * self.privacy.clip / self.privacy.divisor(len(self.rows))
        reducing = (acting.correction for acting in self.corrections if isinstance(acting.correction, ReducesNoise))
        left = math.prod(correction.noise_left(name) for correction in reducing)
        return float(deviation**2 * left)

    def mask_for_clipping(self, name: str, samples: Tensor) -> Tensor:
        """Return the part of a tensor's gradients per example, (rows, ...), that counts in clipping."""
        for acting in self.corrections:
            if isinstance(acting.correction, MasksExamples):
                samples = acting.correction.mask_for_clipping(name, samples)
        return samples

    def correct_gradient(self, name: str, gradient: Tensor) -> Tensor | None:
        """Return a tensor's gradient as its corrections change it, in its shape; None: they leave it as it is."""
        made = None
        for acting in self.corrections:
            if isinstance(acting.correction, TurnsGradients):
                turned = acting.correction.direction(name, gradient if made is None else made)
                made = made if turned is None else turned
        return made

    def compute_losses(self, model: FederatedModel, losses: Callable[[Batch], RowLosses], batch: Batch) -> RowLosses:
        """Return the losses of a step, with its corrections' own losses in effect."""
        for acting in self.corrections:
            if isinstance(acting.correction, ChangesLoss):
                losses = partial(acting.correction.around, model, losses)
        return losses(batch)

    def create_dropout_generator(self, *step: int) -> np.random.Generator:
        """Return the generator of the client's dropout masks for unprotected examples; of one `step`, if given."""
        return seeds.create_generator(self.seed, "dropout", self.round, self.client, *step)

    def route_generator(self, step: int) -> np.random.Generator:
        """Return the generator of an adapter's random choices in a `step`, from 0, in the order of its layers."""
        return seeds.create_generator(self.seed, seeds.ROUTES, self.round, self.client, step)

    def create_batches(self, lengths: np.ndarray) -> list[np.ndarray]:
        """Return the example indices of each step; `lengths` are tokens per example.

        Batches are near-uniform in length. The last batch of a pass may be smaller.
        """
        steps = self.training.steps_for(len(self.rows))
        if self.walked is not None:
            return self._walk(lengths, self.walked, self.walked + steps)
        random = seeds.create_generator(self.seed, "batches", self.round, self.client)
        batches: list[np.ndarray] = []
        while len(batches) < steps:
            batches += self._pass(random, lengths)
        return batches[:steps]

    def _walk(self, lengths: np.ndarray, start: int, end: int) -> list[np.ndarray]:
        """Return the batches of the steps `start` to `end` of an endless walk over the client's examples.

        The walk makes pass after pass, each in its own order, whatever rounds the steps fall into.
        """
        of_a_pass = -(-len(self.rows) // self.training.batch_size)
        first, last = start // of_a_pass, max(0, end - 1) // of_a_pass
        batches: list[np.ndarray] = []
        for number in range(first, last + 1):
            batches += self._pass(seeds.create_generator(self.seed, "walk", number, self.client), lengths)
        return batches[start - first * of_a_pass : end - first * of_a_pass]

    def _pass(self, random: np.random.Generator, lengths: np.ndarray) -> list[np.ndarray]:
        """Return batches that hold all examples once."""
        size = self.training.batch_size
        order = self.rows[random.permutation(len(self.rows))]
        one_pass: list[np.ndarray] = []
        for start in range(0, len(order), size * WINDOW):
            window = order[start : start + size * WINDOW]
            window = window[np.argsort(-lengths[window], kind="stable")]
            one_pass += [window[i : i + size] for i in range(0, len(window), size)]
        return [one_pass[i] for i in random.permutation(len(one_pass))]

    def count_used_rows(self, lengths: np.ndarray) -> int:
        """Count the distinct examples of a walk, with this round's; 0 if each round draws its examples anew."""
        if self.walked is None:
            return 0
        steps = self.walked + self.training.steps_for(len(self.rows))
        walked = self._walk(lengths, 0, min(steps, -(-len(self.rows) // self.training.batch_size)))
        return sum(map(len, walked))


def collect_penalties(model: nn.Module) -> Pulls:
    """Return the pulls of a model's layers, by the canonical names of the tensors."""
    return {
        get_canonical_name(f"{path}.{name}"): pull
        for path, module in model.named_modules()
        for name, pull in getattr(module, "pulls", {}).items()
    }


def view_leading_part(parameter: Tensor, like: Tensor) -> Tensor:
    """Return a view of the part of `parameter` that a client of smaller size holds, in the shape of `like`."""
    parameter = parameter if parameter.ndim == like.ndim else parameter.reshape(like.shape)
    return parameter[tuple(slice(0, n) for n in like.shape)]


def copy_leading_part(tensor: Tensor, like: Tensor) -> Tensor:
    """Return a CPU copy of the leading part of `tensor`, in the shape of `like`: what a client of smaller size holds.

    A parameter may hold the numbers in another shape than the exchanged one (a vector as a matrix of one row).
    """
    return view_leading_part(tensor, like).cpu().clone()


def copy_leading_parts(tensors: Mapping[str, Tensor], like: State) -> State:
    """Return `copy_leading_part` of all `tensors`."""
    return dict(
        zip(tensors, copy_to_cpu([view_leading_part(t, like[name]) for name, t in tensors.items()]), strict=True)
    )


def expand_to_parameter(tensor: Tensor, parameter: Tensor) -> Tensor:
    """Return `tensor` as `parameter` holds it, with zeros for missing ranks: the reverse of `copy_leading_part`."""
    return pad_ranks(tensor, parameter) if tensor.ndim == parameter.ndim else tensor.reshape(parameter.shape)


@dataclass(frozen=True)
class Trained:
    """The result of a job.

    Attributes:
        client: id of the client.
        state: the trained tensors.
        loss: mean loss over the steps.
        steps: number of steps.
        rows: number of examples.
        momentum: the optimizer's last momentum, for the tensors of `Job.choose_momentum`.
    """

    client: int
    state: State
    loss: float
    steps: int
    rows: int
    momentum: State = field(default_factory=dict)


class Executor(ABC):
    """Trains jobs on one device, or on a base spread over several. Results are in the order of the jobs.

    Attributes:
        packed: lets the base work without padding; None: the base or some of the layers can't.
    """

    packed: PackedTokens | None = None
    layout: Layout
    model: FederatedModel
    task: Task
    examples: Examples

    def try_packing(self, jobs: Sequence[Job]) -> None:
        """Find out whether the model `packs`, with what the first job trains in it, before dropout begins."""
        if jobs and "packs" not in self.__dict__:
            self.load(jobs[0].received, jobs[0].form)
            _ = self.packs

    @cached_property
    def packs(self) -> bool:
        """Whether short examples of a step may share a sequence. Without padding they need not."""
        unlabelled = isinstance(self.examples, TokenRows) and self.examples.labels is None
        if self.packed is not None or not unlabelled:
            return False
        return isinstance(self.task, PacksExamples) and self.task.packs(self.model)

    def count_sequences(self, rows: np.ndarray) -> int:
        """Return the number of sequences that these examples form in a pass."""
        return len(rows) * int(getattr(self.examples, "sequences", 1))

    def create_step_batch(self, rows: Sequence[np.ndarray]) -> tuple[Batch, Tensor, list[list[Place]]]:
        """Return the batch of a step in which each client trains on its `rows`: equally many sequences for each.

        Short examples share sequences if that saves some. Otherwise an example is one sequence, and a client with fewer
        examples repeats its first one.

        Returns:
            The batch; which sequences count (sequences,); and for each client where its examples lie, empty unless they
            are packed.
        """
        device = next(self.model.parameters()).device
        own = [self.examples.lengths[r] for r in rows]
        tokens = round_up_length(max(int(lengths.max()) for lengths in own))
        bins = pack_clients(own, tokens) if self.packs else None
        if bins is None:
            most = max(len(r) for r in rows)
            chosen = np.concatenate([np.concatenate([r, np.repeat(r[:1], most - len(r))]) for r in rows])
            real = torch.from_numpy(np.concatenate([np.arange(most) < len(r) for r in rows]))
            batch, lie = self.examples.batch(chosen), []
        else:
            sequences = [r[s].tolist() for r, client in zip(rows, bins, strict=True) for s in client]
            batch = cast(TokenRows, self.examples).pack_batch(sequences, tokens)
            real = torch.ones(len(sequences), dtype=torch.bool)
            lie = [find_places(client, lengths) for client, lengths in zip(bins, own, strict=True)]
        return {name: move_tensor(t, device) for name, t in batch.items()}, move_tensor(real, device), lie

    @abstractmethod
    def load(self, state: State, form: AdapterShape | None = None) -> None:
        """Put one state into the model; `form` is its adapter shape, None: the global one."""

    @abstractmethod
    def get_frozen_layer(self, module: str) -> nn.Module:
        """Return the frozen layer, with its `weight`, below the adapter at `module`."""

    def set_residual(self, residual: State) -> None:
        """Set the weight of each adapted layer to W0 + R, with R by module; layers without a residual get W0 back.

        Quantized layers keep R beside their codes, because rounding to their grid would lose it.
        """
        plain: dict[str, Tensor] = self.__dict__.setdefault("_plain", {})
        for module in plain.keys() | residual.keys():
            layer: Any = self.get_frozen_layer(module)
            if isinstance(layer, QuantizedLinear):
                layer.residual = residual.get(module)
                plain[module] = layer.weight
                continue
            weight = plain.setdefault(module, layer.weight.detach())
            if module in residual:
                weight = fold_residual(weight, residual[module])
            if isinstance(layer, FrozenLinear):
                layer.set_weight(weight)
            else:
                layer.weight.data = weight

    def evaluate(
        self, state: State, rows: np.ndarray, form: AdapterShape | None = None, offsets: Tensor | None = None
    ) -> Totals:
        """Return loss and correct predictions of the model with `state` on `rows`, batched by length alone.

        `form` is as in `load`; `offsets` (classes,) are added to logits.
        """
        self.load(state, form)
        device = next(self.model.parameters()).device
        totals = torch.zeros(3, dtype=torch.float64, device=device)  # read once, so that a GPU is never waited for
        with torch.no_grad():
            batches = (
                {name: move_tensor(t, device) for name, t in self.examples.batch(rows[index]).items()}
                for index in batch_by_length(self.examples.lengths[rows], EVALUATION_BATCH)
            )
            if isinstance(self.task, ComparesExamples):
                parts = self.task.evaluate_losses(self.model, batches)
            else:
                parts = (self.task.row_losses(self.model, batch, offsets) for batch in batches)
            for losses in parts:
                totals += torch.stack([x.double().sum() for x in (losses.sums, losses.correct, losses.counts)])
        return Totals(*totals.cpu().tolist())

    def compute_logits(self, state: State, rows: np.ndarray, form: AdapterShape | None = None) -> Tensor:
        """Return the logits of the model with `state`, (rows, classes) in fp64, in the order of `rows`.

        `form` is as in `load`.
        """
        self.load(state, form)
        device = next(self.model.parameters()).device
        found: list[Tensor] = [torch.empty(0)] * len(rows)
        with torch.no_grad():
            for index in batch_by_length(self.examples.lengths[rows], EVALUATION_BATCH):
                batch = {name: t.to(device) for name, t in self.examples.batch(rows[index]).items()}
                for place, row in zip(index.tolist(), self.model(batch).double().cpu(), strict=True):
                    found[place] = row
        return torch.stack(found)

    @abstractmethod
    def train(self, jobs: Sequence[Job]) -> Iterator[Trained]:
        """Train every job from its received state."""

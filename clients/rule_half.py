"""The client's half of a strategy: which part of its adapter a client trains, and which part it hands in."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

import torch
from fedpeft.clients.drift import ActiveCorrection, Correction, Pull
from fedpeft.clients.executor import Job, Trained
from fedpeft.clients.stages import ClientRound, ClientStage, TrainedRound
from torch import Tensor

from fedpeft.aggregation.abilities import FreezesTensors, PreparesStart, PullsSteps, SelectsUpdate, choose_ranks
from fedpeft.aggregation.factors import RANK_AXIS, select_ranks
from fedpeft.aggregation.owned_ranks import OwnedRanks, get_held_form
from fedpeft.aggregation.strategy import Strategy
from fedpeft.communication.messages import Instruction
from fedpeft.peft.adapter import Layout, State, subtract_states


@dataclass(frozen=True)
class OwnRanksOnly(Correction):
    """Keeps steps away from the ranks of factors that the client does not train.

    Attributes:
        axes: for each factor, by name, the axis of its ranks.
        ranks: the ranks that the client trains.
    """

    axes: Mapping[str, int]
    ranks: tuple[int, ...]

    def mask_for_clipping(self, name: str, samples: Tensor) -> Tensor:
        """Return the gradients with zeros in all but the client's ranks."""
        return self._keep_own_ranks(samples, self.axes[name] + 1) if name in self.axes else samples

    def direction(self, name: str, gradient: Tensor) -> Tensor | None:
        """Return the gradient with zeros in all but the client's ranks."""
        return self._keep_own_ranks(gradient, self.axes[name]) if name in self.axes else None

    def _keep_own_ranks(self, tensor: Tensor, axis: int) -> Tensor:
        index = torch.tensor(self.ranks, device=tensor.device)
        return torch.zeros_like(tensor).index_copy_(axis, index, tensor.index_select(axis, index))


@dataclass(frozen=True)
class FrozenTensors(Correction):
    """Keeps steps away from whole tensors."""

    names: frozenset[str]

    def moves(self, name: str, step: int) -> bool:
        """Return whether a tensor is not frozen."""
        return name not in self.names


@dataclass(frozen=True)
class RulePull(Correction):
    """The strategy's own term of gradients (`PullsSteps`)."""

    strategy: PullsSteps
    layout: Layout
    ranks: tuple[int, ...]

    def begin(self, job: Job, server: State, own: State) -> Pull:
        """Return the strategy's pull toward the received state."""

        def pull(name: str, value: Tensor) -> Tensor | None:
            return self.strategy.compute_pull(self.layout.by_name[name], value, job.received[name], self.ranks)

        return pull


def prepare_job(job: Job, strategy: Strategy, layout: Layout, ranks: tuple[int, ...]) -> Job:
    """Return the job as the strategy prepares it, for a client that holds `layout`.

    `ranks` are those of its ranks that the client trains; empty: all.
    """
    if isinstance(strategy, PreparesStart):
        job = replace(job, received=strategy.prepare_start(job.received, layout))
    return add_rule_corrections(job, strategy, layout, ranks)


def add_rule_corrections(job: Job, strategy: Strategy, layout: Layout, ranks: tuple[int, ...]) -> Job:
    """Add the strategy's corrections, as `prepare_job` does, to a job that does not start from a broadcast."""
    acting: list[Correction] = []
    if isinstance(strategy, PullsSteps):
        acting.append(RulePull(strategy, layout, ranks))
    if ranks:
        acting.append(OwnRanksOnly({t.name: RANK_AXIS[t.role] for t in layout.tensors if t.role in RANK_AXIS}, ranks))
    if isinstance(strategy, FreezesTensors):
        acting.append(FrozenTensors(strategy.list_frozen(layout)))
    corrections = (*job.corrections, *(ActiveCorrection(correction, {}, {}) for correction in acting))
    return replace(job, corrections=corrections)


def changes_steps(strategy: Strategy) -> bool:
    """Return whether `add_rule_corrections` can add any, so that a trainer with steps of its own cannot take part."""
    return isinstance(strategy, PullsSteps | OwnedRanks | FreezesTensors)


def restrict_to_ranks(job: Job, result: Trained, layout: Layout, ranks: tuple[int, ...]) -> tuple[Job, Trained]:
    """Return job and result of a client that sends only these `ranks`, as if it held no others; empty: unchanged."""
    if not ranks:
        return job, result
    received = select_ranks(job.received, layout, ranks)
    return replace(job, received=received), replace(result, state=select_ranks(result.state, layout, ranks))


class StrategyStage(ClientStage):
    """The client's half of a strategy; `layout` is the global one, `seed` the run's."""

    def __init__(self, strategy: Strategy, layout: Layout, seed: int) -> None:
        """Hold the strategy, the global layout and the run's seed."""
        self.strategy, self.layout, self.seed = strategy, layout, seed

    def begin(self, client_round: ClientRound) -> ClientRound:
        """Return the round with the job as the strategy prepares it."""
        ranks = self._get_ranks(client_round.instruction)
        return replace(client_round, job=prepare_job(client_round.job, self.strategy, client_round.layout, ranks))

    def finish(self, client_round: TrainedRound) -> TrainedRound:
        """Return the round with the update, in the adapter shape that the server asked for."""
        asked = client_round.instruction
        job, result = restrict_to_ranks(
            client_round.job, client_round.result, client_round.layout, self._get_ranks(asked)
        )
        layout, update = self.layout.replace_form(asked.form), result.state
        if not job.has_summed_gradients:
            update = subtract_states(client_round.select_exchanged(update), job.received)
            if isinstance(self.strategy, SelectsUpdate):
                update = self.strategy.select_update(update, job.received, result.state, layout)
        return replace(client_round, job=job, layout=layout, result=result, update=update)

    def _get_ranks(self, asked: Instruction) -> tuple[int, ...]:
        """Return the ranks that the client trains of those that it holds; empty: all."""
        if get_held_form(self.strategy, self.layout, asked.form) == asked.form:
            return ()
        return choose_ranks(self.strategy, self.layout, asked.form, self.seed, asked.round, asked.client)

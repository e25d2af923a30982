"""The client's half of a strategy: what a client trains of what it holds, and what of that it hands in."""

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


class GradientTerm(Correction):
    """Nothing is added to gradients."""

    def begin(self, job: Job, server: State, own: State) -> Pull:
        """Nothing."""
        return lambda name, value: None


@dataclass(frozen=True)
class OwnRanksOnly(GradientTerm):
    """Steps leave the ranks of factors alone that are not the client's.

    Attributes:
        axes: by the names of the factors, which axis is that of ranks.
        ranks: that are the client's.
    """

    axes: Mapping[str, int]
    ranks: tuple[int, ...]

    def clipped(self, name: str, samples: Tensor) -> Tensor:
        """Those of the client's ranks."""
        return self._keep_own_ranks(samples, self.axes[name] + 1) if name in self.axes else samples

    def direction(self, name: str, gradient: Tensor) -> Tensor | None:
        """Zero in the other ranks."""
        return self._keep_own_ranks(gradient, self.axes[name]) if name in self.axes else None

    def _keep_own_ranks(self, tensor: Tensor, axis: int) -> Tensor:
        index = torch.tensor(self.ranks, device=tensor.device)
        return torch.zeros_like(tensor).index_copy_(axis, index, tensor.index_select(axis, index))


@dataclass(frozen=True)
class FrozenTensors(GradientTerm):
    """Steps leave whole tensors alone."""

    names: frozenset[str]

    alternates = True

    def moves(self, name: str, step: int) -> bool:
        """The others do."""
        return name not in self.names


@dataclass(frozen=True)
class RulePull(Correction):
    """The term that the rule itself adds to gradients."""

    strategy: PullsSteps
    layout: Layout
    ranks: tuple[int, ...]

    def begin(self, job: Job, server: State, own: State) -> Pull:
        """By what the client was sent."""

        def pull(name: str, value: Tensor) -> Tensor | None:
            return self.strategy.compute_pull(self.layout.by_name[name], value, job.received[name], self.ranks)

        return pull


def prepare_job(job: Job, strategy: Strategy, layout: Layout, ranks: tuple[int, ...]) -> Job:
    """The job as the rule has it, of a client that holds `layout` and of its ranks trains these (none: all)."""
    if isinstance(strategy, PreparesStart):
        job = replace(job, received=strategy.prepare_start(job.received, layout))
    return add_rule_corrections(job, strategy, layout, ranks)


def add_rule_corrections(job: Job, strategy: Strategy, layout: Layout, ranks: tuple[int, ...]) -> Job:
    """As `prepare_job`, of a job that is not made of what a server has sent."""
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
    """Job and result of a client that sends these ranks only, as if it held no others; none: as they are."""
    if not ranks:
        return job, result
    received = select_ranks(job.received, layout, ranks)
    return replace(job, received=received), replace(result, state=select_ranks(result.state, layout, ranks))


class StrategyStage(ClientStage):
    """The client's half of a strategy; `layout` is the global one, `seed` the run's."""

    def __init__(self, strategy: Strategy, layout: Layout, seed: int) -> None:
        self.strategy, self.layout, self.seed = strategy, layout, seed

    def begin(self, client_round: ClientRound) -> ClientRound:
        """Return the round in which the client trains as the strategy has it."""
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
            update = subtract_states(client_round.exchanged(update), job.received)
            if isinstance(self.strategy, SelectsUpdate):
                update = self.strategy.select_update(update, job.received, result.state, layout)
        return replace(client_round, job=job, layout=layout, result=result, update=update)

    def _get_ranks(self, asked: Instruction) -> tuple[int, ...]:
        """Return the ranks that the client trains of those that it holds; empty: all."""
        if get_held_form(self.strategy, self.layout, asked.form) == asked.form:
            return ()
        return choose_ranks(self.strategy, self.layout, asked.form, self.seed, asked.round, asked.client)

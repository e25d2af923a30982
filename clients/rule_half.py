"""The client's half of a strategy: what a client trains of what it holds, and what of that it hands in."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

import torch
from fedpeft.clients.drift import Acting, Correction, Pull
from fedpeft.clients.executor import Job, Trained
from fedpeft.clients.stages import ClientRound, ClientStage, TrainedRound
from torch import Tensor

from fedpeft.aggregation.factors import RANK_AXIS, ranks_of
from fedpeft.aggregation.strategy import Strategy
from fedpeft.communication.messages import Instruction
from fedpeft.peft.adapter import Layout, State, difference


class Adding(Correction):
    """Nothing is added to gradients."""

    def begin(self, job: Job, server: State, own: State) -> Pull:
        """Nothing."""
        return lambda name, value: None


@dataclass(frozen=True)
class OwnRanks(Adding):
    """Steps leave the ranks of factors alone that are not the client's.

    Attributes:
        axes: by the names of the factors, which axis is that of ranks.
        ranks: that are the client's.
    """

    axes: Mapping[str, int]
    ranks: tuple[int, ...]

    def clipped(self, name: str, samples: Tensor) -> Tensor:
        """Those of the client's ranks."""
        return self._own(samples, self.axes[name] + 1) if name in self.axes else samples

    def direction(self, name: str, gradient: Tensor) -> Tensor | None:
        """Zero in the other ranks."""
        return self._own(gradient, self.axes[name]) if name in self.axes else None

    def _own(self, tensor: Tensor, axis: int) -> Tensor:
        index = torch.tensor(self.ranks, device=tensor.device)
        return torch.zeros_like(tensor).index_copy_(axis, index, tensor.index_select(axis, index))


@dataclass(frozen=True)
class Still(Adding):
    """Steps leave whole tensors alone."""

    names: frozenset[str]

    alternates = True

    def moves(self, name: str, step: int) -> bool:
        """The others do."""
        return name not in self.names


@dataclass(frozen=True)
class RulePull(Correction):
    """What the rule itself adds to gradients (`Strategy.pull`)."""

    strategy: Strategy
    layout: Layout
    ranks: tuple[int, ...]

    def begin(self, job: Job, server: State, own: State) -> Pull:
        """By what the client was sent."""

        def pull(name: str, value: Tensor) -> Tensor | None:
            return self.strategy.pull(self.layout.by_name[name], value, job.received[name], self.ranks)

        return pull


def begun(job: Job, strategy: Strategy, layout: Layout, ranks: tuple[int, ...]) -> Job:
    """The job as the rule has it, of a client that holds `layout` and of its ranks trains these (none: all)."""
    return steered(replace(job, received=strategy.prepared(job.received, layout)), strategy, layout, ranks)


def steered(job: Job, strategy: Strategy, layout: Layout, ranks: tuple[int, ...]) -> Job:
    """As `begun`, of a job that is not made of what a server has sent."""
    acting: list[Correction] = []
    if type(strategy).pull is not Strategy.pull:
        acting.append(RulePull(strategy, layout, ranks))
    if ranks:
        acting.append(OwnRanks({t.name: RANK_AXIS[t.role] for t in layout.tensors if t.role in RANK_AXIS}, ranks))
    if still := strategy.still(layout):
        acting.append(Still(still))
    corrections = (*job.corrections, *(Acting(correction, {}, {}) for correction in acting))
    return replace(job, corrections=corrections)


def handed_in(job: Job, result: Trained, layout: Layout, ranks: tuple[int, ...]) -> tuple[Job, Trained]:
    """Job and result of a client that sends these ranks only, as if it held no others; none: as they are."""
    if not ranks:
        return job, result
    received = ranks_of(job.received, layout, ranks)
    return replace(job, received=received), replace(result, state=ranks_of(result.state, layout, ranks))


class StrategyStage(ClientStage):
    """The client's half of a strategy; `layout` is the global one, `seed` the run's."""

    def __init__(self, strategy: Strategy, layout: Layout, seed: int) -> None:
        self.strategy, self.layout, self.seed = strategy, layout, seed

    def begin(self, client_round: ClientRound) -> ClientRound:
        """Return the round in which the client trains as the strategy has it."""
        ranks = self._ranks(client_round.instruction)
        return replace(client_round, job=begun(client_round.job, self.strategy, client_round.layout, ranks))

    def finish(self, client_round: TrainedRound) -> TrainedRound:
        """Return the round with the update, in the adapter shape that the server asked for."""
        asked = client_round.instruction
        job, result = handed_in(client_round.job, client_round.result, client_round.layout, self._ranks(asked))
        layout, update = self.layout.with_form(asked.form), result.state
        if not job.sums_gradients:
            update = difference(client_round.exchanged(update), job.received)
            update = self.strategy.contributed(update, job.received, result.state, layout)
            update = self.strategy.submitted(update, layout, job.round)
        return replace(client_round, job=job, layout=layout, result=result, update=update)

    def _ranks(self, asked: Instruction) -> tuple[int, ...]:
        """Return the ranks that the client trains of those that it holds; empty: all."""
        if self.strategy.held_form(self.layout, asked.form) == asked.form:
            return ()
        return self.strategy.ranks(self.layout, asked.form, self.seed, asked.round, asked.client)

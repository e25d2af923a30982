"""The client's half of a strategy: what a client trains of what it holds, and what of that it hands in."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

import torch
from fedpeft.clients.drift import Acting, Correction, Pull
from fedpeft.clients.executor import Job, Trained
from torch import Tensor

from fedpeft.aggregation.factors import RANK_AXIS, ranks_of
from fedpeft.aggregation.strategy import Strategy
from fedpeft.peft.adapter import Layout, State


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

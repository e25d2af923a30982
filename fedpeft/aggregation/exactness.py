"""How far a round's aggregate lies from the exact one, measured while the round runs.

    error = norm(dW* - dW) / norm(dW*),   dW* = sum_k p_k s_k B_k A_k,   Frobenius norms over all LoRA layers

dW is what the next global adapter and the round's increment of the base add to the weights. dW* is summed up densely, a
matrix per layer, as updates come in: memory does not depend on the number of clients. Methods whose update is no
product of two factors (DoRA, VeRA, AdaLoRA) say themselves what a state adds to the weights.
"""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Protocol

import torch

from fedpeft.aggregation.aggregator import AggregationResult, Aggregator
from fedpeft.aggregation.factors import compute_effective_weight, compute_product, get_lora_form
from fedpeft.aggregation.server_optimizer import OptimizerState
from fedpeft.aggregation.strategy import Strategy
from fedpeft.aggregation.update import Fold, Update
from fedpeft.peft.abilities import WeightChanges
from fedpeft.peft.adapter import Layout, State, compute_norm, subtract_states

LARGEST_TARGET = 64 * 2**20
"""Entries of all adapted weights together, above which the exact aggregate is not formed (256 MB in fp32)."""


def is_measurable(strategy: Strategy, layout: Layout) -> bool:
    """Whether the error is defined (LoRA factors, and all of them reach the server) and cheap enough to know."""
    entries = sum(p.out_features * p.in_features for p in layout.pairs)
    return 0 < entries <= LARGEST_TARGET and not strategy.private(layout)


class Target(Protocol):
    """The exact aggregate dW*, summed up as updates come."""

    def add(self, update: Update) -> None:
        """Add what one update makes of the weights."""

    def compute_error(self, outcome: AggregationResult) -> float:
        """Of the whole aggregate; 0 where there was nothing to aggregate."""
        ...


class Products:
    """dW* of LoRA factors."""

    def __init__(self, layout: Layout) -> None:
        self.layout = layout
        self.weight = 0.0
        self.sums: State = {}

    def add(self, update: Update) -> None:
        """Add its product s_k B_k A_k."""
        self.weight += update.weight
        for pair in self.layout.pairs:
            term = compute_product(pair, update)
            total = self.sums.setdefault(pair.module, torch.zeros(term.shape, dtype=term.left.dtype))
            total.addmm_(term.left, term.right, alpha=update.weight)

    def compute_error(self, outcome: AggregationResult) -> float:
        """As `Target` says."""
        distance, size = 0.0, 0.0
        form = get_lora_form(self.layout)
        for pair in self.layout.pairs:
            exact = self.sums[pair.module] / self.weight
            made = compute_effective_weight(pair, outcome.state, form).to_dense()
            if pair.module in outcome.residuals:
                made = made + outcome.residuals[pair.module].to_dense()
            distance += float((exact - made).square().sum())
            size += float(exact.square().sum())
        return math.sqrt(distance / size) if size else 0.0


class Changes:
    """dW* of methods that say themselves what a state adds to the weights."""

    def __init__(self, changes: WeightChanges) -> None:
        self.changes = changes
        self.total = Fold()

    def add(self, update: Update) -> None:
        """Add what the trained state adds to the weights."""
        trained = {name: update.trained(name) for name in update.received}
        self.total.add(self.changes(trained, update.form), update.weight)

    def compute_error(self, outcome: AggregationResult) -> float:
        """As `Target` says."""
        exact = self.total.mean()
        size = compute_norm(exact)
        return compute_norm(subtract_states(self.changes(outcome.state, None), exact)) / size if size else 0.0


class MeasuringAggregator:
    """Hands everything on to another aggregator, and adds its error against a target to what comes out of it."""

    def __init__(self, aggregator: Aggregator, target: Target) -> None:
        self.aggregator, self.target = aggregator, target

    def add(self, update: Update) -> None:
        """Take one update."""
        self.aggregator.add(update)
        self.target.add(update)

    def finish(self, memory: OptimizerState) -> AggregationResult:
        """What the round has led to, and how far that is from exact."""
        outcome = self.aggregator.finish(memory)
        return replace(outcome, error=self.target.compute_error(outcome))


def add_measurement(inner: Aggregator, strategy: Strategy, layout: Layout, changes: WeightChanges | None) -> Aggregator:
    """`inner`, measured where the error is defined; `changes` as in `Changes`, None: of a method with LoRA factors."""
    if changes is not None and not strategy.private(layout):
        return MeasuringAggregator(inner, Changes(changes))
    return MeasuringAggregator(inner, Products(layout)) if is_measurable(strategy, layout) else inner

"""Distance of a round's aggregate from the exact one, measured while the round runs.

    error = norm(dW* - dW) / norm(dW*),   dW* = sum_k p_k s_k B_k A_k,   Frobenius norms over all LoRA layers

The next global adapter and the round's residual add dW to the weights. dW* is summed up densely, a matrix per
layer, as updates arrive, so memory does not depend on the number of clients. Methods with other updates than a product
of two factors (DoRA, VeRA, AdaLoRA) provide a function from a state to the change of the weights.
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
"""Most entries of all adapted weights for which the exact aggregate is formed (256 MB in fp32)."""


def is_measurable(strategy: Strategy, layout: Layout) -> bool:
    """Return whether the error is defined (the server receives all LoRA factors) and cheap enough."""
    entries = sum(p.out_features * p.in_features for p in layout.pairs)
    return 0 < entries <= LARGEST_TARGET and not strategy.list_private(layout)


class Target(Protocol):
    """The exact aggregate dW*, summed up as updates arrive."""

    def add(self, update: Update) -> None:
        """Add the change of the weights by one update."""

    def compute_error(self, outcome: AggregationResult) -> float:
        """Return the error of the whole aggregate; 0 if there was nothing to aggregate."""
        ...


class Products:
    """dW* of LoRA factors."""

    def __init__(self, layout: Layout) -> None:
        """Start with no updates."""
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
        """Return the error of the whole aggregate; 0 if there was nothing to aggregate."""
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
    """dW* of methods that provide the change of the weights by a state."""

    def __init__(self, changes: WeightChanges) -> None:
        """Start with no updates; `changes` maps a state to the change of the weights."""
        self.changes = changes
        self.total = Fold()

    def add(self, update: Update) -> None:
        """Add the change of the weights by the trained state."""
        trained = {name: update.get_trained(name) for name in update.received}
        self.total.add(self.changes(trained, update.form), update.weight)

    def compute_error(self, outcome: AggregationResult) -> float:
        """Return the error of the whole aggregate; 0 if there was nothing to aggregate."""
        exact = self.total.mean()
        size = compute_norm(exact)
        return compute_norm(subtract_states(self.changes(outcome.state, None), exact)) / size if size else 0.0


class MeasuringAggregator:
    """An aggregator that passes updates on to another one and adds the error to its result."""

    def __init__(self, aggregator: Aggregator, target: Target) -> None:
        """Wrap an aggregator."""
        self.aggregator, self.target = aggregator, target

    def add(self, update: Update) -> None:
        """Take one update."""
        self.aggregator.add(update)
        self.target.add(update)

    def finish(self, memory: OptimizerState) -> AggregationResult:
        """Return the result with its error against the target."""
        outcome = self.aggregator.finish(memory)
        return replace(outcome, error=self.target.compute_error(outcome))


def add_measurement(inner: Aggregator, strategy: Strategy, layout: Layout, changes: WeightChanges | None) -> Aggregator:
    """Wrap `inner` if the error is defined.

    Args:
        inner: aggregator of the round.
        strategy: the rule.
        layout: the trainable tensors.
        changes: map from a state to the change of the weights; None: the method has LoRA factors.
    """
    if changes is not None and not strategy.list_private(layout):
        return MeasuringAggregator(inner, Changes(changes))
    return MeasuringAggregator(inner, Products(layout)) if is_measurable(strategy, layout) else inner

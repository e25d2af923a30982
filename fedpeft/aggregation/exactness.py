"""How far a round's aggregate lies from the exact one, measured while the round runs.

    error = norm(dW* - dW) / norm(dW*),   dW* = sum_k p_k s_k B_k A_k,   Frobenius norms over all LoRA layers

dW is what the next global adapter and the round's increment of the base add to the weights. dW* is summed up densely, a
matrix per layer, as updates come in: memory does not depend on the number of clients. Methods whose update is no
product of two factors (DoRA, VeRA, AdaLoRA) say themselves what a state adds to the weights.
"""

from __future__ import annotations

import math

import torch

from fedpeft.aggregation.aggregator import Collector, Outcome
from fedpeft.aggregation.factors import effective, lora_form, product
from fedpeft.aggregation.server_optimizer import Memory
from fedpeft.aggregation.strategy import Strategy
from fedpeft.aggregation.update import Fold, Update
from fedpeft.peft.adapter import Layout, State, difference, norm
from fedpeft.peft.method import WeightChanges

LARGEST_TARGET = 64 * 2**20
"""Entries of all adapted weights together, above which the exact aggregate is not formed (256 MB in fp32)."""


def measurable(strategy: Strategy, layout: Layout) -> bool:
    """Whether the error is defined (LoRA factors, and all of them reach the server) and cheap enough to know."""
    entries = sum(p.out_features * p.in_features for p in layout.pairs)
    return 0 < entries <= LARGEST_TARGET and not strategy.private(layout)


class MeasuredCollector:
    """Hands everything on to another collector, and measures what comes out of it."""

    def __init__(self, collector: Collector, layout: Layout) -> None:
        self.collector, self.layout = collector, layout
        self.weight = 0.0
        self.target: State = {}

    def add(self, update: Update) -> None:
        """Take one update, and add its product to the target."""
        self.collector.add(update)
        self.weight += update.weight
        for pair in self.layout.pairs:
            term = product(pair, update)
            total = self.target.setdefault(pair.module, torch.zeros(term.shape, dtype=term.left.dtype))
            total.addmm_(term.left, term.right, alpha=update.weight)

    def finish(self, memory: Memory) -> Outcome:
        """What the round has led to."""
        return self.collector.finish(memory)

    def error(self, outcome: Outcome) -> float:
        """Of the whole aggregate; 0 where there was nothing to aggregate."""
        distance, size = 0.0, 0.0
        form = lora_form(self.layout)
        for pair in self.layout.pairs:
            exact = self.target[pair.module] / self.weight
            made = effective(pair, outcome.state, form).dense()
            if pair.module in outcome.residuals:
                made = made + outcome.residuals[pair.module].dense()
            distance += float((exact - made).square().sum())
            size += float(exact.square().sum())
        return math.sqrt(distance / size) if size else 0.0


class WeightsCollector:
    """The same for methods that say themselves what a state adds to the weights."""

    def __init__(self, collector: Collector, changes: WeightChanges) -> None:
        self.collector, self.changes = collector, changes
        self.target = Fold()

    def add(self, update: Update) -> None:
        """Take one update, and add its weights to the target."""
        self.collector.add(update)
        trained = {name: update.trained(name) for name in update.received}
        self.target.add(self.changes(trained, update.form), update.weight)

    def finish(self, memory: Memory) -> Outcome:
        """What the round has led to."""
        return self.collector.finish(memory)

    def error(self, outcome: Outcome) -> float:
        """Of the whole aggregate; 0 where there was nothing to aggregate."""
        exact = self.target.mean()
        size = norm(exact)
        return norm(difference(self.changes(outcome.state, None), exact)) / size if size else 0.0

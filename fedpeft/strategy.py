"""What an aggregation strategy is: pure mathematics, no sockets, no Flower, no files.

A strategy says per client what is sent down and what is trained, and per round how updates become the next global
state. There are two kinds. A *linear* rule is a weighted mean of deltas: updates are folded in one at a time, memory
does not depend on the number of clients, and server optimizers and user-level privacy compose with it. A *gather*
rule needs every client's factors of one layer at once (SVD, stacking, Krum); it is called one layer at a time, with
an iterable that decodes the waiting payloads.

The target that every LoRA rule is judged by, with s_k = alpha_k / r_k and weights p_k that sum to 1:

    dW* = sum_k p_k s_k B_k A_k
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import ClassVar

import torch
from torch import Tensor

from fedpeft.adapter import ClientForm, Layout, LoraPair, State
from fedpeft.parts import Family


@dataclass(frozen=True)
class LowRank:
    """A matrix of shape (out, in) as a product `left @ right`: left (out, q), right (q, in)."""

    left: Tensor
    right: Tensor

    def dense(self) -> Tensor:
        """The product, (out, in)."""
        return self.left @ self.right


@dataclass(frozen=True)
class Update:
    """What the server knows of one client's work in a round.

    Attributes:
        client: client id.
        weight: unnormalised aggregation weight, above 0 (rows, or 1 for uniform weighting).
        form: the client's LoRA rank and alpha; None without LoRA.
        received: the state the client started from, bit for bit (the server decodes its own downlink payload).
        delta: trained minus received, only for the tensors trained this round.
    """

    client: int
    weight: float
    form: ClientForm | None
    received: State
    delta: State

    def trained(self, name: str) -> Tensor:
        """The tensor after local training (as received where it was not trained)."""
        received = self.received[name]
        return received + self.delta[name] if name in self.delta else received


@dataclass
class Fold:
    """A running weighted sum of states, in fp64: `sums[name]` = sum_k w_k x_k, `weight` = sum_k w_k."""

    sums: State = field(default_factory=dict)
    weight: float = 0.0

    def add(self, state: State, weight: float) -> None:
        """Add `weight * state`; every call must carry the same names and shapes."""
        for name, tensor in state.items():
            if name not in self.sums:
                self.sums[name] = torch.zeros(tensor.shape, dtype=torch.float64)
            self.sums[name].add_(tensor, alpha=weight)
        self.weight += weight

    def mean(self) -> State:
        """The weighted mean, fp32."""
        return {name: (total / self.weight).float() for name, total in self.sums.items()}


@dataclass(frozen=True)
class Gathered:
    """The next global factors of one layer, and what goes beside it into the frozen base (None: nothing)."""

    A: Tensor
    B: Tensor
    residual: LowRank | None = None


class Strategy(ABC):
    """One aggregation rule. Subclasses are frozen dataclasses; their fields are the user's settings."""

    mixed_ranks: ClassVar[bool] = False
    """Whether clients may hold different ranks and alphas."""

    needs_lora: ClassVar[bool] = True
    """Whether the rule is only defined for LoRA factors; False: any PEFT method."""

    def start(self, state: State, layout: Layout, seed: int) -> State:
        """The initial global state; by default the PEFT method's own initialisation."""
        return state

    def trained(self, layout: Layout, round: int) -> frozenset[str]:
        """Names of the tensors that clients train in `round` (counted from 1); by default all."""
        return frozenset(layout.names)

    def dispatch(self, state: State, layout: Layout, form: ClientForm | None, round: int) -> State:
        """What a client that holds `form` is sent; by default the global state itself."""
        return state


class LinearStrategy(Strategy):
    """A weighted mean of deltas."""

    def fold(self, total: Fold, update: Update, layout: Layout) -> None:
        """Add one client's update; by default its delta with its weight."""
        total.add(update.delta, update.weight)

    def pseudo_gradient(self, total: Fold, layout: Layout) -> State:
        """The direction that the server optimizer steps along; by default the weighted mean of the deltas."""
        return total.mean()

    def finish(self, state: State, layout: Layout, round: int) -> State:
        """Post-processing of the next global state, free under privacy; by default none."""
        return state


class GatherStrategy(Strategy):
    """A rule that sees all clients' factors of one layer; the tensors outside LoRA layers get the weighted mean."""

    @abstractmethod
    def gather(
        self, pair: LoraPair, state: State, layout: Layout, updates: Sequence[Update], round: int
    ) -> Gathered:
        """The next global factors of `pair`, from the current global `state` and updates in client order.

        The sequence may decode its elements anew at each pass; the updates hold the tensors of this layer only.
        """


strategies: Family[Strategy] = Family("fedpeft.strategies", "strategy")
"""All strategies, by file name."""

"""How strategies see parameters that are exchanged in another form than LoRA factors.

A strategy is mathematics on pairs of factors. A method whose clients train something else (AdaLoRA's P, E and Q) says
here how that becomes factors, and how the strategy's result becomes parameters again. Payloads, checkpoints and
clients know the parameters only; this happens on the server, between an update's arrival and its aggregation.
"""

from __future__ import annotations

from typing import Protocol

from fedpeft.peft.adapter import Layout, State


class Factoring(Protocol):
    """Between parameters and factors."""

    @property
    def layout(self) -> Layout:
        """Of the factors."""
        ...

    def factors(self, state: State) -> State:
        """Parameters as factors."""
        ...

    def parameters(self, factors: State, before: State, round_number: int) -> State:
        """Factors as parameters; `before` are the parameters of the round's start, `round_number` counts from 1."""
        ...

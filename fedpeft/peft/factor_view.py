"""LoRA factors computed from other parameters, for strategies.

A strategy computes with pairs of LoRA factors. A method whose clients train something else, such as AdaLoRA's P, E and
Q, converts those parameters to factors and the strategy's result back to parameters. Only the server converts, between
an update's arrival and its aggregation. Payloads, checkpoints and clients hold the parameters.
"""

from __future__ import annotations

from typing import Protocol

from fedpeft.peft.adapter import Layout, State


class FactorView(Protocol):
    """Conversion between a method's parameters and LoRA factors."""

    @property
    def layout(self) -> Layout:
        """Layout of the factors."""
        ...

    def factors(self, state: State) -> State:
        """Convert parameters to factors."""
        ...

    def parameters(self, factors: State, before: State, round_number: int) -> State:
        """Convert factors to parameters.

        Args:
            factors: the result of the strategy.
            before: the parameters at the start of the round.
            round_number: counts from 1.
        """
        ...

"""A false number of examples:  n <- c n, so that a mean weighted by examples follows the attacker.

Uniform weighting and the rules that count clients are immune. With `flip` the update also points the wrong way.
"""

from dataclasses import dataclass

import torch
from fedpeft.clients.attack import Attack

from fedpeft.parts import setting
from fedpeft.peft.adapter import Layout, State


@dataclass(frozen=True)
class RowCount(Attack):
    """A claim of more examples than the client has."""

    factor: int = setting(1000, "c: how many times more examples are claimed", low=1)
    flip: bool = setting(True, "also hand in the negative of the update")

    def update(self, delta: State, received: State, layout: Layout, generator: torch.Generator) -> State:
        """Return -delta if `flip` is set, else `delta`."""
        return {name: -tensor for name, tensor in delta.items()} if self.flip else delta

    def rows(self, rows: int) -> int:
        """Return c n for the true number n."""
        return self.factor * rows


part = RowCount

"""Dropout masks that belong to a client: drawn from its own generator, whatever it is batched with.

The same holds for other random choices of an adapter's layers. Dropout in torch draws from one global stream, so a
client's mask would depend on who was trained before it and on how far its batch was padded. Here a mask is drawn for
the client's own examples and tokens. Entries outside the mask are kept as they are: padding, where dropout has no
effect, and positions that a method adds to an example.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor, nn

from fedpeft.data.packing import Place
from fedpeft.models.checkpointing import remember


@dataclass
class DropoutPlan:
    """The clients of a pass: for each its generator, examples and longest example; empty: no dropout.

    It is empty outside training. Under example-level privacy each example counts as a client of its own.

    Attributes:
        routes: for each client the generator of this step's other choices, whatever examples are in the pass; empty
            outside training.
        draws: whether a layer makes such choices.
        places: where each example lies, for each client; empty: example i is sequence i. Masks are the same in both
            cases.
    """

    clients: list[tuple[np.random.Generator, int, int]] = field(default_factory=list)
    places: list[list[Place]] = field(default_factory=list)
    routes: list[np.random.Generator] = field(default_factory=list)
    draws: bool = False

    def draw_choices(self, count: int) -> list[int]:
        """Draw one of `count` choices, from 0, for each client of the pass; none outside training."""
        return [int(generator.integers(count)) for generator in self.routes]

    def stop(self) -> None:
        """Forget the clients of the pass: from now on no entry is dropped and no choice is drawn."""
        self.clients, self.places, self.routes = [], [], []


class ClientDropout(nn.Module):
    """Drops entries of (K * b, T, d) with probability p and scales the rest by 1 / (1 - p)."""

    def __init__(self, p: float, plan: DropoutPlan) -> None:
        """Hold the dropout probability `p`, 0 to 1, and the plan to follow."""
        super().__init__()
        self.p = p
        self.plan = plan

    def _get_generators(self) -> list[np.random.Generator]:
        """Return the clients' generators; a block that is computed again gets them in their earlier state."""
        return remember(self, lambda: [generator for generator, *_ in self.plan.clients])

    def forward(self, x: Tensor) -> Tensor:
        """Return `x` with entries dropped, in the same shape."""
        if not self.plan.clients:
            return x
        _, tokens, width = x.shape
        factors = torch.ones(len(self.plan.clients), x.shape[0] // len(self.plan.clients), tokens, width, dtype=x.dtype)
        for k, (generator, (_, rows, longest)) in enumerate(
            zip(self._get_generators(), self.plan.clients, strict=True)
        ):
            drawn = generator.random((rows, longest, width), dtype=np.float32)
            kept = torch.from_numpy((drawn >= self.p) / (1 - self.p))
            if not self.plan.places:
                factors[k, :rows, :longest] = kept[:, :tokens]  # a layer sees one of an example's two texts
                continue
            for row, (sequence, start, length) in enumerate(self.plan.places[k]):
                factors[k, sequence, start : start + length] = kept[row, :length]
        return x * factors.view_as(x).to(x)


def replace_dropout(model: nn.Module, plan: DropoutPlan) -> None:
    """Replace every active dropout of an adapter by one that follows `plan`.

    The base model's dropout is off. Layers with a method `draw_from` draw their choices from the plan.
    """
    for parent in list(model.modules()):
        if callable(draw_from := getattr(parent, "draw_from", None)):
            draw_from(plan.draw_choices)
            plan.draws = True
        for name, child in list(parent.named_children()):
            if isinstance(child, nn.Dropout) and child.training and child.p > 0:
                parent.register_module(name, ClientDropout(child.p, plan))

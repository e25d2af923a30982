"""Dropout whose masks belong to a client: drawn from that client's generator, whatever it is batched with. So are other
random choices of an adapter's layers.

torch's own dropout draws from one global stream, so a client's mask would depend on who was trained before it and
on how far its batch was padded. Here a mask is drawn for the client's own rows and tokens. Entries that it does not
reach are kept as they are: padding, for which it is all the same, and positions that a method has put beside a row's.
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
    """Who is in the pass: per client its generator, rows and longest row; empty outside training: no dropout.

    Where rows are protected, each of them stands for itself: a client of one row.

    Attributes:
        routes: per client what this step's other choices are drawn from, whatever rows are in a pass; empty outside
            training: there are none.
        draws: whether a layer has such choices.
        places: where each row lies, per client; empty: row i is sequence i. Masks are the same ones either way.
    """

    clients: list[tuple[np.random.Generator, int, int]] = field(default_factory=list)
    places: list[list[Place]] = field(default_factory=list)
    routes: list[np.random.Generator] = field(default_factory=list)
    draws: bool = False

    def draw_choices(self, count: int) -> list[int]:
        """For each client in the pass one of `count`, from 0; none outside training."""
        return [int(generator.integers(count)) for generator in self.routes]

    def stop(self) -> None:
        """Training is over: nothing is dropped, and nothing chosen."""
        self.clients, self.places, self.routes = [], [], []


class ClientDropout(nn.Module):
    """Drops entries of (K * b, T, d) with probability p and scales the rest by 1 / (1 - p)."""

    def __init__(self, p: float, plan: DropoutPlan) -> None:
        super().__init__()
        self.p = p
        self.plan = plan

    def _get_generators(self) -> list[np.random.Generator]:
        """The clients' generators; in a block that is computed again, as they were before."""
        return remember(self, lambda: [generator for generator, *_ in self.plan.clients])

    def forward(self, x: Tensor) -> Tensor:
        """The same shape."""
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
                factors[k, :rows, :longest] = kept[:, :tokens]  # of a row's two texts a layer sees one
                continue
            for row, (sequence, start, length) in enumerate(self.plan.places[k]):
                factors[k, sequence, start : start + length] = kept[row, :length]
        return x * factors.view_as(x).to(x)


def replace_dropout(model: nn.Module, plan: DropoutPlan) -> None:
    """Replace every active dropout of an adapter (the base model's are off) by one that follows `plan`; layers that
    `draw_from` something draw from it."""
    for parent in list(model.modules()):
        if callable(draw_from := getattr(parent, "draw_from", None)):
            draw_from(plan.draw_choices)
            plan.draws = True
        for name, child in list(parent.named_children()):
            if isinstance(child, nn.Dropout) and child.training and child.p > 0:
                parent.register_module(name, ClientDropout(child.p, plan))

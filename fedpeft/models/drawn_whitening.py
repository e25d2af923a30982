"""An image encoder whose states are centred, and vary alike in all directions, as far as drawn pictures tell.

    z = T (h - c),   T = a (C + r tr C / d I)^-1/2,   c, C: mean and covariance of drawn pictures' pooled states

What all pictures have in common is the longest part of many encoders' features, and most of what varies does so in few
directions (`fedpeft.aggregation.whitening`). Pictures that nobody took (`fedpeft.data.dead_leaves`) tell enough of both
to take them away, and that costs no privacy. T is symmetric, since eigenvectors are not the same on every machine, and
a is such that drawn pictures have a z of length `LENGTH` in the mean.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import wraps
from typing import Any

import torch
from torch import Tensor, nn

from fedpeft.data.dead_leaves import draw_dead_leaves
from fedpeft.data.images import PATCHES
from fedpeft.data.square_pictures import convert_to_model_input
from fedpeft.errors import ModelError

PICTURES, SIDE, AT_ONCE = 256, 28, 64
"""Drawn pictures, pixels a side, and how many the encoder sees at a time; four times as many tell no more."""

RIDGE = 0.1
"""r: what is added to each direction's variance, in units of the mean one."""

LENGTH = 3.0
"""About that of sentence encoders' features, for which private training is planned (`fedpeft.privacy.training_plans`).
"""


@dataclass(frozen=True)
class DrawnStatistics:
    """What drawn pictures tell of an encoder.

    Attributes:
        turn: T, (d, d), fp64.
        centre: c, (d,), fp64.
    """

    turn: Tensor
    centre: Tensor

    @classmethod
    def from_states(cls, states: Tensor) -> DrawnStatistics:
        """From pooled states (pictures, d)."""
        states = states.double()
        centre = states.mean(0)
        values, vectors = torch.linalg.eigh(torch.cov(states.T))
        turn = (vectors * (values.clamp(min=0) + RIDGE * values.mean()) ** -0.5) @ vectors.T
        return cls(turn * (LENGTH / ((states - centre) @ turn).norm(dim=1).mean()), centre)

    def whiten(self, hidden: Tensor) -> Tensor:
        """z of h (..., d), in its dtype."""
        wide = hidden.to(torch.promote_types(hidden.dtype, torch.float32))
        return ((wide - self.centre.to(wide)) @ self.turn.to(wide)).to(hidden.dtype)

    def convert_head(self, weight: Tensor, bias: Tensor) -> tuple[Tensor, Tensor]:
        """The linear head on h that is `weight` (classes, d) and `bias` (classes,) on z."""
        turned = weight.double() @ self.turn.to(weight.device)
        return turned.to(weight.dtype), (bias.double() - turned @ self.centre.to(weight.device)).to(bias.dtype)


class DrawnWhitened:
    """Before the class of an encoder: its last hidden states are z."""

    kind: Any
    found: DrawnStatistics | None = None


def whiten(base: nn.Module) -> None:
    """Let `base`, in place, give z instead of its last hidden states.

    Raises:
        ModelError: it reads no pictures.
    """
    if isinstance(base, DrawnWhitened):
        return
    if getattr(base.config, "patch_size", None) is None:
        raise ModelError(
            f"FP4021 whitened_probe whitens features by what drawn pictures tell of them, and {type(base).__name__} "
            "reads none; take linear_probe"
        )
    kind: Any = type(base)

    @wraps(kind.forward)
    def forward(self: Any, *arguments: Any, **named: Any) -> Any:
        output = kind.forward(self, *arguments, **named)
        output["last_hidden_state"] = compute_whitening(self).whiten(output["last_hidden_state"])
        return output

    entries = {"__module__": kind.__module__, "forward": forward, "kind": kind}
    base.__class__ = type(kind.__name__, (DrawnWhitened, kind), entries)


def compute_whitening(base: Any) -> DrawnStatistics:
    """What drawn pictures tell of a `base` that is whitened; looked at once, when it is first asked for."""
    if base.found is None:
        parameter = next(base.parameters())
        pictures = convert_to_model_input(draw_dead_leaves(PICTURES, SIDE), PATCHES * base.config.patch_size)
        with torch.inference_mode():
            shown = (part.to(parameter) for part in torch.split(pictures, AT_ONCE))
            states = [base.kind.forward(base, pixel_values=part).last_hidden_state.mean(1) for part in shown]
        base.found = DrawnStatistics.from_states(torch.cat(states).cpu())
    return base.found  # type: ignore[no-any-return]

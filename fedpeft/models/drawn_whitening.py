"""An image encoder with whitened states: centered, with equal variance in all directions, as estimated on drawn images.

    z = T (h - c),   T = a (C + r tr C / d I)^-1/2,   c, C: mean and covariance of drawn images' pooled states

In many encoders, the component that all images share dominates the features, and most variance lies in few directions
(`fedpeft.aggregation.whitening`). Drawn images (`fedpeft.data.dead_leaves`) suffice to estimate and remove both, and
that costs no privacy. T is symmetric, since eigenvectors are not the same on every machine. a is such that drawn images
have a z of mean length `LENGTH`.
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
"""Number of drawn images, pixels a side, and images per pass; four times as many images change nothing."""

RIDGE = 0.1
"""r: what is added to each direction's variance, in units of the mean variance."""

LENGTH = 3.0
"""Mean length of whitened features, about that of sentence encoders' features, which training plans for privacy assume
(`fedpeft.privacy.training_plans`)."""


@dataclass(frozen=True)
class DrawnStatistics:
    """The whitening of an encoder, estimated on drawn images.

    Attributes:
        turn: T, (d, d), fp64.
        center: c, (d,), fp64.
    """

    turn: Tensor
    center: Tensor

    @classmethod
    def from_states(cls, states: Tensor) -> DrawnStatistics:
        """Estimate the whitening from pooled states (images, d)."""
        states = states.double()
        center = states.mean(0)
        values, vectors = torch.linalg.eigh(torch.cov(states.T))
        turn = (vectors * (values.clamp(min=0) + RIDGE * values.mean()) ** -0.5) @ vectors.T
        return cls(turn * (LENGTH / ((states - center) @ turn).norm(dim=1).mean()), center)

    def whiten(self, hidden: Tensor) -> Tensor:
        """Compute z for h (..., d), in the dtype of h."""
        wide = hidden.to(torch.promote_types(hidden.dtype, torch.float32))
        return ((wide - self.center.to(wide)) @ self.turn.to(wide)).to(hidden.dtype)

    def convert_head(self, weight: Tensor, bias: Tensor) -> tuple[Tensor, Tensor]:
        """Convert a linear head on z, `weight` (classes, d) and `bias` (classes,), to the equal head on h."""
        turned = weight.double() @ self.turn.to(weight.device)
        return turned.to(weight.dtype), (bias.double() - turned @ self.center.to(weight.device)).to(bias.dtype)


class DrawnWhitened:
    """A mixin before an encoder's class that replaces its last hidden states by z."""

    kind: Any
    found: DrawnStatistics | None = None


def whiten(base: nn.Module) -> None:
    """Make `base` return z instead of its last hidden states, in place.

    Raises:
        ModelError: the base does not read images.
    """
    if isinstance(base, DrawnWhitened):
        return
    if getattr(base.config, "patch_size", None) is None:
        raise ModelError(
            f"FP4021 whitened_probe whitens features of images, and {type(base).__name__} does not read images; "
            "use linear_probe"
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
    """Return the whitening of a whitened `base`; it is estimated on the first call."""
    if base.found is None:
        parameter = next(base.parameters())
        pictures = convert_to_model_input(draw_dead_leaves(PICTURES, SIDE), PATCHES * base.config.patch_size)
        with torch.inference_mode():
            shown = (part.to(parameter) for part in torch.split(pictures, AT_ONCE))
            states = [base.kind.forward(base, pixel_values=part).last_hidden_state.mean(1) for part in shown]
        base.found = DrawnStatistics.from_states(torch.cat(states).cpu())
    return base.found  # type: ignore[no-any-return]

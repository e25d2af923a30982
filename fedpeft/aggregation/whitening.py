"""Whitening: features that are centered and vary alike in all directions, by noisy moments (Sun et al., 2307.11106).

    z = T P x - c,   E[z] = 0,   E[z z^T] = I / g in the known directions,   P a fixed random projection

The component that all features share often dominates their norm, and the rest varies mostly in few directions. Clipping
and noise then affect mainly these. With a head on z and the gradient e of an example's logits,

    W = U T P,   b = v - U c,   dU = e z^T,   dv = e

all directions count alike. Steps g dU are Newton's, since g (T P)^T T P is the inverse of the covariance of x.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property, lru_cache

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from fedpeft.errors import PayloadError
from fedpeft.peft.adapter import State

WEIGHT, BIAS = "head.weight", "head.bias"


@dataclass(frozen=True)
class Whitening:
    """The map from features to whitened features.

    Attributes:
        turn: T, (m, m).
        center: c, (m,).
        gain: g, above 0. z has about length 1, in about g directions; a few times this length if noise hides some.
        width: width of the features.
    """

    turn: Tensor
    center: Tensor
    gain: float
    width: int

    @classmethod
    def from_state(cls, state: State, width: int) -> Whitening:
        """Create the whitening that the server sent as `state`, for features of this width.

        Raises:
            PayloadError: shapes do not fit the width, or values are not finite.
        """
        turn, center, gain = (state.get(name, torch.zeros(0)).double() for name in ("turn", "centre", "gain"))
        m = len(center)
        legal = 0 < m <= width and turn.shape == (m, m) and gain.shape == (1,) and float(gain) > 0
        if not legal or not all(bool(torch.isfinite(t).all()) for t in (turn, center, gain)):
            raise PayloadError(
                f"FP6020 the server sends whitening directions that do not fit features of {width} numbers"
            )
        return cls(turn, center, float(gain), width)

    @staticmethod
    def shapes(m: int) -> dict[str, tuple[int, ...]]:
        """Return the shapes of the sent tensors for m directions."""
        return {"turn": (m, m), "centre": (m,), "gain": (1,)}

    @property
    def state(self) -> State:
        """Tensors that the server sends, fp32."""
        return {"turn": self.turn.float(), "centre": self.center.float(), "gain": torch.tensor([self.gain])}

    @cached_property
    def basis(self) -> Tensor:
        """Product T P, (m, width)."""
        return self.turn @ create_projection(self.width, len(self.center))

    def compute_gradients(self, of_rows: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Compute per-example gradients by U and v, from those by W (B, classes, width) and b (B, classes), fp64.

        They keep their shapes: of `width` columns of U, the first m count, and the others are 0. Values that are not
        finite, which a hostile server's whitening can cause, become 0, because no factor could clip them.
        """
        by_weight, errors = of_rows[WEIGHT], of_rows[BIAS]
        # The gradient of an example is e x^T, of rank 1, which gives x.
        x = torch.einsum("bc,bcd->bd", errors, by_weight) / errors.square().sum(1, keepdim=True).clamp(min=1e-30)
        z = x @ self.basis.T.to(x) - self.center.to(x)
        found = (errors[:, :, None] * z[:, None, :]).nan_to_num(nan=0.0, posinf=0.0, neginf=0.0)
        return {WEIGHT: functional.pad(found, (0, self.width - len(self.center))), BIAS: errors}

    def step(self, mean: State) -> State:
        """Compute steps of W (classes, width) and b (classes,) from the clients' mean gradient by U and v.

        The gradient by U is multiplied by g, as in Newton's step. A multiple of the gradient gives that of the steps.
        """
        along = self.gain * mean[WEIGHT][:, : len(self.center)].double()
        weight = along @ self.basis
        bias = mean[BIAS].double() - along @ self.center
        return {WEIGHT: weight.to(mean[WEIGHT].dtype), BIAS: bias.to(mean[BIAS].dtype)}


@lru_cache(maxsize=4)
def create_projection(width: int, dimensions: int) -> Tensor:
    """Create the fixed random projection: orthonormal rows (min(dimensions, width), width), fp64, equal everywhere."""
    drawn = np.random.Generator(np.random.Philox(key=0)).standard_normal((width, min(dimensions, width)))
    basis, triangle = np.linalg.qr(drawn)
    return torch.from_numpy((basis * np.sign(np.diag(triangle))).T.copy())

"""Features that are centred and vary alike in all directions, as far as noisy moments tell (Sun et al., 2307.11106).

    z = T P x - c,   E[z] = 0,   E[z z^T] = I / g in the directions that are told,   P a fixed random projection

What all rows have in common is the longest part of many features, and most of what varies varies in few directions.
Gradients that are clipped, and have noise added, spend both on these; as gradients of a head on z,

    W = U T P,   b = v - U c,   dU = e z^T,   dv = e   (e: of a row's logits, x its feature)

all directions count alike, and steps g dU along them are Newton's: g (T P)^T T P is the inverse of the covariance of x.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property, lru_cache

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from fedpeft.errors import PayloadError
from fedpeft.peft.adapter import State

WEIGHT, BIAS = "head.weight", "head.bias"


@dataclass(frozen=True)
class Whitening:
    """How features are turned, and what leads back.

    Attributes:
        turn: T, (m, m).
        centre: c, (m,).
        width: of the features.
        gain: g, above 0: rows have z of about length 1, in about g directions; of a few times that length where noise
            hides what some directions hold.
    """

    turn: Tensor
    centre: Tensor
    gain: float
    width: int

    @classmethod
    def from_state(cls, state: State, width: int) -> Whitening:
        """What is sent as `state`, for features of this width.

        Raises:
            PayloadError: it turns no such features.
        """
        turn, centre, gain = (state.get(name, torch.zeros(0)).double() for name in ("turn", "centre", "gain"))
        m = len(centre)
        legal = 0 < m <= width and turn.shape == (m, m) and gain.shape == (1,) and float(gain) > 0
        if not legal or not all(bool(torch.isfinite(t).all()) for t in (turn, centre, gain)):
            raise PayloadError(f"FP6020 the server sends a whitening that turns no features of {width} numbers")
        return cls(turn, centre, float(gain), width)

    @staticmethod
    def shapes(m: int) -> dict[str, tuple[int, ...]]:
        """Of what is sent of m directions."""
        return {"turn": (m, m), "centre": (m,), "gain": (1,)}

    @property
    def state(self) -> State:
        """As it is sent, fp32."""
        return {"turn": self.turn.float(), "centre": self.centre.float(), "gain": torch.tensor([self.gain])}

    @cached_property
    def basis(self) -> Tensor:
        """T P, (m, width)."""
        return self.turn @ create_projection(self.width, len(self.centre))

    def compute_gradients(self, of_rows: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Gradients of rows by U and v, from those by W (B, classes, width) and b (B, classes), fp64.

        They keep their shapes: of `width` columns of U the first m count, and the others are 0. What a hostile server's
        whitening makes of a row that is not finite is 0, too: no factor could clip it.
        """
        by_weight, errors = of_rows[WEIGHT], of_rows[BIAS]
        # the gradient of a row is e x^T, of rank 1, and tells x
        x = torch.einsum("bc,bcd->bd", errors, by_weight) / errors.square().sum(1, keepdim=True).clamp(min=1e-30)
        z = x @ self.basis.T.to(x) - self.centre.to(x)
        found = (errors[:, :, None] * z[:, None, :]).nan_to_num(nan=0.0, posinf=0.0, neginf=0.0)
        return {WEIGHT: F.pad(found, (0, self.width - len(self.centre))), BIAS: errors}

    def step(self, mean: State) -> State:
        """Steps of W (classes, width) and b (classes,), from a mean gradient that clients have sent of U and v, or any
        multiple of it: the gradient in U is g times as long as it came, as Newton's step is."""
        along = self.gain * mean[WEIGHT][:, : len(self.centre)].double()
        weight = along @ self.basis
        bias = mean[BIAS].double() - along @ self.centre
        return {WEIGHT: weight.to(mean[WEIGHT].dtype), BIAS: bias.to(mean[BIAS].dtype)}


@lru_cache(maxsize=4)
def create_projection(width: int, dimensions: int) -> Tensor:
    """The fixed random projection: orthonormal rows (min(dimensions, width), width), fp64, the same everywhere."""
    drawn = np.random.Generator(np.random.Philox(key=0)).standard_normal((width, min(dimensions, width)))
    basis, triangle = np.linalg.qr(drawn)
    return torch.from_numpy((basis * np.sign(np.diag(triangle))).T.copy())

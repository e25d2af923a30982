"""Yogi on the server (Reddi et al., arXiv 2003.00295, algorithm 2).

m <- beta1 m + (1 - beta1) d,   v <- v - (1 - beta2) d^2 sign(v - d^2),   x <- x + eta m / (sqrt(v) + tau)

v starts at tau^2.
"""

from dataclasses import dataclass

from torch import Tensor

from fedpeft.aggregation.server_optimizer import AdaptiveServerOptimizer
from fedpeft.parts import setting


@dataclass(frozen=True)
class Yogi(AdaptiveServerOptimizer):
    """Coordinate-wise steps from moments that grow slowly."""

    beta2: float = setting(0.99, "share of the last v that is kept", low=0, below=1)

    def second_moment(self, v: Tensor, d: Tensor) -> Tensor:
        """Compute the next v."""
        return v - (1 - self.beta2) * d.square() * (v - d.square()).sign()


part = Yogi

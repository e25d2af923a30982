"""Adagrad on the server (Reddi et al., arXiv 2003.00295, algorithm 2).

m <- beta1 m + (1 - beta1) d,   v <- v + d^2,   x <- x + eta m / (sqrt(v) + tau),   v starts at tau^2
"""

from dataclasses import dataclass

from torch import Tensor

from fedpeft.aggregation.server_optimizer import AdaptiveServerOptimizer


@dataclass(frozen=True)
class Adagrad(AdaptiveServerOptimizer):
    """Coordinate-wise steps from the sum of all squared updates."""

    def second_moment(self, v: Tensor, d: Tensor) -> Tensor:
        """Compute the next v."""
        return v + d.square()


part = Adagrad

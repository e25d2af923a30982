"""Adam on the server (Reddi et al., arXiv 2003.00295, algorithm 2).

m <- beta1 m + (1 - beta1) d,   v <- beta2 v + (1 - beta2) d^2,   x <- x + eta m / (sqrt(v) + tau),   v starts at tau^2
"""

from dataclasses import dataclass

from torch import Tensor

from fedpeft.aggregation.server_optimizer import AdaptiveServerOptimizer
from fedpeft.parts import setting


@dataclass(frozen=True)
class Adam(AdaptiveServerOptimizer):
    """Coordinate-wise steps from running moments."""

    beta2: float = setting(0.99, "share of the last v that is kept", low=0, below=1)

    def second_moment(self, v: Tensor, d: Tensor) -> Tensor:
        """The next v."""
        return self.beta2 * v + (1 - self.beta2) * d.square()


part = Adam

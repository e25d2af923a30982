"""The coordinate-wise median (Yin et al., arXiv 1803.01498), in a basis shared by the clients' effective weights.

    D = U median_k(U^T D_k V) V^T

Deviation: the paper's coordinates are parameters. LoRA factors have no common coordinates (B G, G^-1 A), so those of
the changes D_k are used. U and V are the leading eigenvectors of sum_k D_k D_k^T / norm(D_k)^2 and of the same sum of
D_k^T D_k. They depend on the D_k alone. Clients count equally.

Use it if fewer than half of the clients may be hostile and honest clients hold similar data.
"""

from dataclasses import dataclass

from torch import Tensor

from fedpeft.aggregation.robust import CoordinateStrategy, compute_middle_mean


@dataclass(frozen=True)
class Median(CoordinateStrategy):
    """The median of each coordinate; for an even number of clients, the midpoint of the two middle values."""

    def vote(self, values: Tensor) -> Tensor:
        """Return the median over the first axis."""
        return compute_middle_mean(values, (len(values) - 1) // 2)


part = Median

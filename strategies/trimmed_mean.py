"""The coordinate-wise trimmed mean (Yin et al., arXiv 1803.01498), in a basis shared by the clients' effective weights.

    D = U trim_k(U^T D_k V) V^T,   trim: the mean without the beta K largest and the beta K smallest values

Deviation: the coordinates are those of the changes D_k in a shared basis, as in `median`. Clients count equally.

Use it if a known share of the clients may be hostile.
"""

import math
from dataclasses import dataclass

from torch import Tensor

from fedpeft.aggregation.robust import CoordinateStrategy, compute_middle_mean
from fedpeft.parts import setting


@dataclass(frozen=True)
class TrimmedMean(CoordinateStrategy):
    """The mean of each coordinate without its extremes."""

    trim: float = setting(0.2, "beta: the share cut off at either end, rounded up to whole clients", low=0, below=0.5)

    def vote(self, values: Tensor) -> Tensor:
        """Return the trimmed mean over the first axis."""
        clients = len(values)
        return compute_middle_mean(values, min(math.ceil(self.trim * clients), (clients - 1) // 2))


part = TrimmedMean

"""Norm bounding (Sun et al., "Can You Really Backdoor Federated Learning?", arXiv 1911.07963), on effective weights.

    dW <- s B A + sum_k p_k min(1, C / norm(D_k)) D_k

norm(D_k) runs over all layers: changes of effective weights for LoRA layers, deltas elsewhere. No update is thrown
away, so honest clients with rare data still count; a scaled update gains nothing.

Deviation: without a bound C, the median of the cohort's norms is used, so no size has to be guessed.

Use it if scaled updates are the threat and clients with rare data must still count.
"""

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from fedpeft.aggregation.robust import ReweighingStrategy, compute_middle_mean
from fedpeft.parts import setting


@dataclass(frozen=True)
class NormBound(ReweighingStrategy):
    """The weighted mean of changes that are scaled down to a common bound."""

    needs_products: ClassVar[bool] = False

    bound: float | None = setting(None, "C, the largest norm of a whole update; none: the cohort's median", above=0)

    def coefficients(self, shares: Tensor, geometry: Tensor) -> Tensor:
        """Return p_k min(1, C / norm(D_k))."""
        norms = geometry.diagonal().clamp_min(0).sqrt()
        bound = compute_middle_mean(norms, (len(norms) - 1) // 2) if self.bound is None else torch.tensor(self.bound)
        return shares * (bound / norms.clamp_min(torch.finfo(norms.dtype).tiny)).clamp_max(1)


part = NormBound

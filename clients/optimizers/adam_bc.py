"""DP-AdamBC (Tang, Shpilevskiy, Lecuyer, AAAI 2024, arXiv 2312.14334): Adam without the noise in its second moment.

    m <- b1 m + (1 - b1) g,   v <- b2 v + (1 - b2) g^2,   x <- x - lr m^ / sqrt(max(v^ - Phi, floor Phi))

m^ and v^ are m and v over 1 - b^t. Phi = (z C / B)^2 is the variance of the noise in g, which dp_sgd sets. With this
noise in v all entries are divided by about the same number, and Adam degenerates to SGD. Without noise this optimizer
is Adam. Moments are new in each round.

Deviation: the paper tunes an absolute floor; here the floor is a share of Phi, which has its own scale.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from fedpeft.clients.local_optimizer import LocalOptimizer, Variance
from torch import nn

from fedpeft.parts import setting


class CorrectedAdam(torch.optim.Optimizer):
    """The torch optimizer; groups have `lr`, `betas`, `floor` and `eps`.

    Attributes:
        variances: noise variance in each entry of a parameter's gradient; 0 for a parameter that is not in it.
    """

    variances: Mapping[nn.Parameter, float]

    def __init__(self, groups: list[dict[str, Any]], betas: tuple[float, float], floor: float) -> None:
        """Hold the settings as defaults of the groups; `variances` is empty at first."""
        super().__init__(groups, {"betas": betas, "floor": floor, "eps": 1e-8})
        self.variances = {}

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        """Take one step; parameters without a gradient rest, and their moments wait."""
        for group in self.param_groups:
            b1, b2 = group["betas"]
            for parameter in group["params"]:
                if parameter.grad is None:
                    continue
                own = self.state[parameter]
                if not own:
                    own |= {"t": 0, "m": torch.zeros_like(parameter), "v": torch.zeros_like(parameter)}
                own["t"] += 1
                own["m"].lerp_(parameter.grad, 1 - b1)
                own["v"].lerp_(parameter.grad.square(), 1 - b2)
                noise = self.variances.get(parameter, 0.0)
                square = (own["v"] / (1 - b2 ** own["t"]) - noise).clamp(min=group["floor"] * noise)
                parameter.addcdiv_(own["m"], square.sqrt() + group["eps"], value=-group["lr"] / (1 - b1 ** own["t"]))


@dataclass(frozen=True, kw_only=True)
class AdamBC(LocalOptimizer):
    """Adam that subtracts the noise in its gradients from the second moment."""

    beta1: float = setting(0.9, "share of the last m that is kept", low=0, below=1)
    beta2: float = setting(0.999, "share of the last v that is kept", low=0, below=1)
    floor: float = setting(0.1, "least second moment, relative to the noise's variance", above=0, high=100)

    def over(self, groups: list[dict[str, Any]]) -> torch.optim.Optimizer:
        """Return Adam with the correction."""
        return CorrectedAdam(groups, (self.beta1, self.beta2), self.floor)

    def prepare(
        self, optimizer: torch.optim.Optimizer, parameters: Mapping[str, nn.Parameter], variance: Variance
    ) -> None:
        """Give the optimizer the noise variances."""
        assert isinstance(optimizer, CorrectedAdam)
        optimizer.variances = {p: variance(name) for name, p in parameters.items()}


part = AdamBC

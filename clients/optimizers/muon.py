"""Local Muon: factors move along their orthogonalized momentum.

Sources: Liu et al., arXiv 2510.27403; Takezawa et al., arXiv 2509.26337; the step itself: Jordan et al., 2024.

    M <- momentum M + g,   X <- X - lr 0.2 sqrt(max(m, n)) orthogonal(M)   for each LoRA factor X (m, n)

orthogonal(M) is close to U V^T of M = U S V^T. It is computed by five Newton-Schulz steps that start from M / |M|_F:

    X <- a X + (b X X^T + c (X X^T)^2) X,   (a, b, c) = (3.4445, -4.7750, 2.0315), the usual values

They bring all but the smallest singular values to 0.7..1.2.
The factor 0.2 sqrt(max(m, n)) gives entries about the size of AdamW's steps (Liu et al., arXiv 2502.16982), so learning
rates carry over. Padded ranks are zero in M, stay zero, and change nothing: clients of mixed ranks train as if alone.
All other tensors, such as the head, take AdamW steps, as is usual with Muon. Momentum and moments are new each round.

This is the local step of both FedMuon papers. `--drift fed_muon` adds what the second one does against drift; its
docstring states what is known of both.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from fedpeft.clients.local_optimizer import LocalOptimizer, Variance
from torch import Tensor, nn

from fedpeft.errors import ConfigError
from fedpeft.parts import setting

FACTORS = (".lora_A.weight", ".lora_B.weight")
"""Ends of the names of the tensors that Muon moves; a stack of clients' factors has one axis more."""

STEPS = 5
A, B, C = 3.4445, -4.7750, 2.0315


def orthogonalize(momentum: Tensor) -> Tensor:
    """Return the matrices (..., m, n) with singular values near 1; singular values of 0 stay 0."""
    tall = momentum.shape[-2] > momentum.shape[-1]
    wide = momentum.mT if tall else momentum
    wide = wide / torch.linalg.matrix_norm(wide, keepdim=True).clamp_min(torch.finfo(wide.dtype).tiny)
    for _ in range(STEPS):
        gram = wide @ wide.mT
        wide = A * wide + (B * gram + C * gram @ gram) @ wide
    result: Tensor = wide.mT if tall else wide
    return result


class MuonOrAdam(torch.optim.Optimizer):
    """Muon for the parameters in `factors`, AdamW without weight decay for the others.

    Attributes:
        factors: parameters whose last two axes are a matrix.
    """

    factors: frozenset[nn.Parameter]

    def __init__(self, groups: list[dict[str, Any]], momentum: float, betas: tuple[float, float]) -> None:
        """Hold the settings as defaults of the groups; `factors` is empty at first."""
        super().__init__(groups, {"momentum": momentum, "betas": betas, "eps": 1e-8})
        self.factors = frozenset()

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        """Take one step; parameters without a gradient rest, and so do their momenta."""
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.grad is None:
                    continue
                own = self.state[parameter]
                if parameter in self.factors:
                    _muon(parameter, parameter.grad, own, group)
                else:
                    _adam(parameter, parameter.grad, own, group)


def _muon(parameter: nn.Parameter, gradient: Tensor, own: dict[str, Any], group: Mapping[str, Any]) -> None:
    own["M"] = group["momentum"] * own["M"] + gradient if own else gradient.clone()
    size = 0.2 * max(parameter.shape[-2:]) ** 0.5
    parameter.sub_(orthogonalize(own["M"]), alpha=group["lr"] * size)


def _adam(parameter: nn.Parameter, gradient: Tensor, own: dict[str, Any], group: Mapping[str, Any]) -> None:
    b1, b2 = group["betas"]
    if not own:
        own |= {"t": 0, "m": torch.zeros_like(parameter), "v": torch.zeros_like(parameter)}
    own["t"] += 1
    own["m"].lerp_(gradient, 1 - b1)
    own["v"].lerp_(gradient.square(), 1 - b2)
    size = (own["v"] / (1 - b2 ** own["t"])).sqrt() + group["eps"]
    parameter.addcdiv_(own["m"], size, value=-group["lr"] / (1 - b1 ** own["t"]))


@dataclass(frozen=True, kw_only=True)
class Muon(LocalOptimizer):
    """Orthogonalized momentum for LoRA factors, AdamW for other tensors."""

    momentum: float = setting(0.95, "share of the last M that is kept", low=0, below=1)
    beta1: float = setting(0.9, "AdamW's share of the last first moment that is kept", low=0, below=1)
    beta2: float = setting(0.999, "AdamW's share of the last second moment that is kept", low=0, below=1)

    def over(self, groups: list[dict[str, Any]]) -> torch.optim.Optimizer:
        """Return the optimizer, which gets its factors from `prepare`."""
        return MuonOrAdam(groups, self.momentum, (self.beta1, self.beta2))

    def prepare(
        self, optimizer: torch.optim.Optimizer, parameters: Mapping[str, nn.Parameter], variance: Variance
    ) -> None:
        """Give the optimizer the factors.

        Raises:
            ConfigError: no parameter is a LoRA factor.
        """
        assert isinstance(optimizer, MuonOrAdam)
        optimizer.factors = frozenset(p for name, p in parameters.items() if name.endswith(FACTORS))
        if not optimizer.factors:
            raise ConfigError(
                "FP1515 muon orthogonalizes LoRA's factors, but this run trains none; use --optimizer adamw, "
                "or --peft lora"
            )

    def write_momentum(self, optimizer: torch.optim.Optimizer, parameter: nn.Parameter, momentum: Tensor) -> None:
        """Set M of a factor, given (1 - b) M."""
        optimizer.state[parameter]["M"] = momentum / (1 - self.momentum)

    def read_momentum(self, optimizer: torch.optim.Optimizer, parameter: nn.Parameter) -> Tensor:
        """Return (1 - b) M of a factor, the exponential mean of its gradients."""
        momentum: Tensor = (1 - self.momentum) * optimizer.state[parameter]["M"]
        return momentum


part = Muon

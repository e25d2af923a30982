"""Zeroth-order steps: the slope along a random direction, from two losses and no backward pass.

Sources: Malladi et al., MeZO, arXiv 2305.17333; in federations Li et al., DeComFL, arXiv 2405.15861.

    g_t = (L(x + e z_t) - L(x - e z_t)) / 2 e,   x <- x - lr g_t z_t,   z_t random signs from a seed that the server has

Both losses are of the step's batch. Signs have the mean and the variance of the papers' Gaussian directions. Blocks
keep nothing for a backward pass, so memory is that of an evaluation. With LoRA in all blocks of MiniLM and steps of 16
texts of 128 tokens, a round adds 122 MB to the loaded model, and 566 MB with AdamW (`experiments/memory/steps.py`).

The update of a round is a sum of the directions. With `--codec "scalars(steps=T) | cast(dtype=fp32)"` its T
coefficients travel, 4 bytes a step, however large the adapter is; the server draws the directions itself. That is exact
for plain steps at one learning rate, which `head_rate=1` and no drift correction give. Strategies that mask gradients,
such as fslora, make it inexact. Any other codec works as well.

Deviations from DeComFL, of which we read the abstract: each client has its own directions, while the paper's clients
share them. The server sends the state, so the downlink stays as large as the adapter. The paper's clients rebuild the
state from the scalars of all rounds. Dropout draws the same masks for both losses.

`dp_sgd` and `distributed_dp(unit=rows)` clip gradients of single examples, which do not exist here, and are refused.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from fedpeft.clients.local_optimizer import LocalOptimizer

from fedpeft.parts import setting


@dataclass(frozen=True, kw_only=True)
class ZerothOrder(LocalOptimizer):
    """Plain steps along random directions, by the slopes between two losses."""

    distance: float = setting(1e-3, "e: distance of the two points from the parameters, in each entry", above=0)
    head_rate: float = setting(1.0, "learning rate of the head, relative to the adapter's; 0 keeps it", low=0)

    plain: ClassVar[bool] = True

    def get_probe_distance(self) -> float:
        """Return the setting `distance`."""
        return self.distance

    def over(self, groups: list[dict[str, Any]]) -> torch.optim.Optimizer:
        """Return torch's SGD, whose gradients are slopes times directions."""
        return torch.optim.SGD(groups)


part = ZerothOrder

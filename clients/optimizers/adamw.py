"""AdamW (Loshchilov and Hutter, arXiv 1711.05101), its moments new in each round."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from fedpeft.clients.local_optimizer import LocalOptimizer

from fedpeft.parts import setting


@dataclass(frozen=True, kw_only=True)
class AdamW(LocalOptimizer):
    """Adam with decoupled weight decay."""

    weight_decay: float = setting(0.0, "decoupled weight decay", low=0)

    def moves_idle_entries(self) -> bool:
        """Return whether weight decay is on."""
        return self.weight_decay > 0

    def over(self, groups: list[dict[str, Any]]) -> torch.optim.Optimizer:
        """Return torch's fused AdamW."""
        return torch.optim.AdamW(groups, weight_decay=self.weight_decay, fused=True)


part = AdamW

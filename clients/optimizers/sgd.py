"""Plain stochastic gradient descent: a step is the gradient times the learning rate."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from fedpeft.clients.local_optimizer import LocalOptimizer


@dataclass(frozen=True, kw_only=True)
class SGD(LocalOptimizer):
    """Plain steps, without momentum."""

    plain: ClassVar[bool] = True

    def over(self, groups: list[dict[str, Any]]) -> torch.optim.Optimizer:
        """Return torch's SGD."""
        return torch.optim.SGD(groups)


part = SGD

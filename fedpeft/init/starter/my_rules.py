"""Parts of your own: a strategy, the mean of the updates scaled down."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from fedpeft.aggregation.strategy import LinearStrategy
from fedpeft.parts import setting


@dataclass(frozen=True)
class HalfMean(LinearStrategy):
    """A share of the mean update: more careful than the mean."""

    arrives_whole = False  # less than the sum of the updates reaches the model
    share: float = setting(0.5, "share of each update that counts", above=0, high=1)

    def contribution(self, update: Any, state: Any, layout: Any) -> dict[str, Any]:
        """Return what one client adds to the sum: tensors by name, shaped as in `state`."""
        return {name: self.share * delta for name, delta in update.delta.items()}


parts = {"strategies": {"half_mean": HalfMean}}

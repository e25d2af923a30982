"""Only the head is trained, and the adapter stays at its start: logistic regression on the frozen features by FedAvg.

    head <- sum_k p_k head_k

Its few numbers are heard through noise that would hide an adapter's, and it has no product of noises. The reference
that federated fine-tuning has to beat, trained instead of fitted.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import ClassVar

from fedpeft.aggregation.strategy import LinearStrategy
from fedpeft.errors import ConfigError
from fedpeft.peft.adapter import ClientForm, Layout


@dataclass(frozen=True)
class HeadOnly(LinearStrategy):
    """The weighted mean of the heads."""

    needs_lora: ClassVar[bool] = False

    def check(self, layout: Layout, forms: Iterable[ClientForm | None]) -> None:
        """Refuse a task without a head.

        Raises:
            ConfigError: language modelling, say.
        """
        super().check(layout, forms)
        if not self.trained(layout, 1):
            raise ConfigError(
                "head_only trains the head of a classifier, or the connector of two towers, and this task has none; "
                "take fedit"
            )

    def trained(self, layout: Layout, round: int) -> frozenset[str]:
        """The head's tensors."""
        return frozenset(t.name for t in layout.tensors if t.role == "head")


part = HeadOnly

"""Linear probing: the base stays as it is, and only the head is trained.

    p = softmax(W h(x) + b)

Logistic regression on frozen features, trained by all clients: the reference that an adapter has to beat. Its few
numbers are also heard through noise that would hide an adapter's. Heads enter linearly, so the plain mean is exact.

Use it as the baseline, and under small privacy budgets, whose noise would hide an adapter's updates.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from torch import nn

from fedpeft.errors import ModelError
from fedpeft.models.task import FederatedModel, find_trainable
from fedpeft.peft.adapter import TensorSpec
from fedpeft.peft.method import PeftMethod, PrivacyRoute


@dataclass(frozen=True)
class LinearProbe(PeftMethod):
    """No adapter: the head on frozen features."""

    batched: ClassVar[bool] = True
    privacy: ClassVar[PrivacyRoute] = "hooks"
    in_peft: ClassVar[bool] = False
    merges: ClassVar[bool] = True
    batched_in_few_bits: ClassVar[bool] = True
    tensors: ClassVar[tuple[str, ...]] = ("head.weight", "head.bias")

    def config(self, base: nn.Module) -> Any:
        """None: there is no adapter."""
        return None

    def attach(self, model: FederatedModel, dtype: str) -> None:
        """Leave the base as it is.

        Raises:
            ModelError: the task has no head.
        """
        if not find_trainable(model):
            raise ModelError("FP4065 linear_probe trains the head of a classifier, and this task has none; take lora")

    def merged(self, model: FederatedModel) -> nn.Module:
        """The base."""
        return model.base

    def stack_into(self, model: FederatedModel, tensors: Sequence[TensorSpec], clients: int) -> None:
        """Put nothing into the base."""


part = LinearProbe

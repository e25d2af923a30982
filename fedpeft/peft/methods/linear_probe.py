"""Linear probing: the base stays as it is, and only the head is trained.

    p = softmax(W h(x) + b)

All clients train a logistic regression on frozen features: the baseline that an adapter has to beat. Heads enter
linearly, so the plain mean is exact.

Use it as the baseline, and under small privacy budgets, whose noise would hide an adapter's updates.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

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

    def attach(self, model: FederatedModel, dtype: str) -> None:
        """Leave the base as it is.

        Raises:
            ModelError: the task has no head.
        """
        if not find_trainable(model):
            raise ModelError("FP4065 linear_probe trains the head of a classifier, which this task lacks; use lora")

    def merge_adapter(self, model: FederatedModel) -> nn.Module:
        """Return the base."""
        return model.base

    def stack_into(self, model: FederatedModel, tensors: Sequence[TensorSpec], clients: int) -> None:
        """Put nothing into the base."""


part = LinearProbe

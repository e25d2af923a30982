"""No adapter: the head alone is trained on the frozen base, which is linear probing by gradient steps; of two towers
the connector.

The base of comparison for every adapter: what it adds to this is what it is worth.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from torch import nn

from fedpeft.errors import ModelError
from fedpeft.models.task import FederatedModel
from fedpeft.peft.adapter import TensorSpec
from fedpeft.peft.method import PeftMethod, PrivacyRoute


@dataclass(frozen=True)
class HeadOnly(PeftMethod):
    """The head; no settings."""

    batched: ClassVar[bool] = True
    in_peft: ClassVar[bool] = False
    privacy: ClassVar[PrivacyRoute] = "hooks"

    def config(self, base: nn.Module) -> Any:
        """None: there is no adapter."""
        return None

    def attach(self, model: FederatedModel, dtype: str) -> None:
        """Leave the model as it is.

        Raises:
            ModelError: it has no head.
        """
        if not any(p.requires_grad for name, p in model.named_parameters() if name.startswith("head.")):
            raise ModelError("this model has no head that could be trained alone; take --peft lora")

    def stack_into(self, model: FederatedModel, tensors: Sequence[TensorSpec], clients: int) -> None:
        """There is nothing in the base."""


part = HeadOnly

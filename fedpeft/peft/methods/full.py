"""Full fine-tuning: every parameter of the base is trained.

It is the reference that the literature compares adapters with.

Use it as the reference for adapters: all weights are trained and travel.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from fedpeft.models.dtypes import get_adapter_dtype
from fedpeft.models.task import FederatedModel
from fedpeft.peft.method import PeftMethod


@dataclass(frozen=True)
class Full(PeftMethod):
    """All parameters, except poolers that the task does not read."""

    whole_model: ClassVar[bool] = True
    in_peft: ClassVar[bool] = False
    few_bits: ClassVar[bool] = False
    tensors: ClassVar[tuple[str, ...]] = ("",)

    def attach(self, model: FederatedModel, dtype: str) -> None:
        """Make the base trainable in fp32. Frozen parameters become fp32, too, because layers pass their dtype on."""
        for name, parameter in model.base.named_parameters():
            parameter.requires_grad_(not name.startswith("pooler."))
            parameter.data = parameter.data.to(get_adapter_dtype(dtype))


part = Full

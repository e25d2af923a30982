"""Head2Toe: the base stays as it is, and a linear head reads all of its blocks (Evci et al., arXiv 2201.03529).

    p = softmax(W [h_0(x) / |h_0(x)|; ...; h_L(x) / |h_L(x)|] + b),   h_0 what enters the first of L blocks

The head also sees features that the last block has lost. The paper then drops features by group lasso; here all stay,
and the penalty of the head's start bounds them. It can be combined with an adapter: `lora + head2toe`.

Use it first for images; for texts, it is the baseline that an adapter has to beat.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from torch import nn

from fedpeft.errors import ModelError
from fedpeft.models.encoders import create_zero_head
from fedpeft.models.readout import ALL_BLOCKS, get_width, read_all_blocks
from fedpeft.models.task import FederatedModel
from fedpeft.peft.adapter import TensorSpec
from fedpeft.peft.methods.linear_probe import LinearProbe


@dataclass(frozen=True)
class Head2Toe(LinearProbe):
    """No adapter: the head on the frozen features of all blocks."""

    composes: ClassVar[bool] = True
    reads: ClassVar[str] = ALL_BLOCKS
    suited_head: ClassVar[str] = "ridge(send=factor)"  # clients have fewer examples than moments

    def read(self, base: nn.Module) -> None:
        """Make the base return the states of all of its blocks."""
        read_all_blocks(base)

    def attach(self, model: FederatedModel, dtype: str) -> None:
        """Leave the base's weights as they are, and widen the head.

        Raises:
            ModelError: the task has no linear head, or the base has no sequence of blocks.
        """
        head = getattr(model, "head", None)
        if not isinstance(head, nn.Linear):
            raise ModelError("FP4063 head2toe trains the head of a classifier, which this task lacks; use lora")
        _widen_head(model)

    def stack_into(self, model: FederatedModel, tensors: Sequence[TensorSpec], clients: int) -> None:
        """Widen the head."""
        _widen_head(model)


def _widen_head(model: Any) -> None:
    """Make the base return the states of all blocks, and widen the head to them, unless it is done already."""
    read_all_blocks(model.base)
    if model.head.in_features != get_width(model.base):
        model.head = create_zero_head(model.base, model.head.out_features)


part = Head2Toe

"""Head2Toe: the base stays as it is, and a linear head reads all of its blocks (Evci et al., arXiv 2201.03529).

    p = softmax(W [h_0(x) / |h_0(x)|; ...; h_L(x) / |h_L(x)|] + b),   h_0 what enters the first of L blocks

Linear probing of what the last block has forgotten, too. The paper then leaves out features by group lasso; here all
stay, and the penalty of the head's start bounds them. It goes along with an adapter: `lora + head2toe`.

Use it first for images; for texts, it is the baseline that an adapter has to beat.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from torch import nn

from fedpeft.errors import ModelError
from fedpeft.models.encoders import zero_head
from fedpeft.models.readout import get_width, read_all_blocks
from fedpeft.models.task import FederatedModel
from fedpeft.peft.adapter import TensorSpec
from fedpeft.peft.methods.linear_probe import LinearProbe


@dataclass(frozen=True)
class Head2Toe(LinearProbe):
    """No adapter: the head on the frozen features of all blocks."""

    composes: ClassVar[bool] = True
    reads_all_blocks: ClassVar[bool] = True
    suited_head: ClassVar[str] = "ridge(send=factor)"  # clients have fewer rows than there are moments

    def read(self, base: nn.Module) -> None:
        """All of its blocks."""
        read_all_blocks(base)

    def attach(self, model: FederatedModel, dtype: str) -> None:
        """Leave the base's weights as they are, and widen the head.

        Raises:
            ModelError: the task has no head that a wider one could stand for, or the base has no blocks in a row.
        """
        head = getattr(model, "head", None)
        if not isinstance(head, nn.Linear):
            raise ModelError("FP4063 head2toe trains the head of a classifier, and this task has none; take lora")
        _widen_head(model)

    def stack_into(self, model: FederatedModel, tensors: Sequence[TensorSpec], clients: int) -> None:
        """Widen the head."""
        _widen_head(model)


def _widen_head(model: Any) -> None:
    """Let the base give the states of all blocks, and make the head as wide, where they don't yet."""
    read_all_blocks(model.base)
    if model.head.in_features != get_width(model.base):
        model.head = zero_head(model.base, model.head.out_features)


part = Head2Toe

"""Linear probing of an image encoder's features, whitened by drawn pictures (`fedpeft.models.drawn_whitening`).

    p = softmax(W T (h(x) - c) + b)

For private models of images. Noise is as long in all directions, and an encoder that was not made for comparing by
cosine has what tells classes apart in the short ones: under it, class means, moments and gradients all say more once
features are whitened. T and c come from pictures that nobody took, and cost no privacy. Without noise it is
linear_probe in other coordinates; the finished head is folded into that of linear_probe, and saved as such.

Use it for private models of images.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from torch import nn

from fedpeft.errors import ModelError
from fedpeft.models.drawn_whitening import compute_whitening, whiten
from fedpeft.models.task import FederatedModel
from fedpeft.peft.adapter import State, TensorSpec
from fedpeft.peft.methods.linear_probe import LinearProbe


@dataclass(frozen=True)
class WhitenedProbe(LinearProbe):
    """No adapter: the head on frozen features of pictures, whitened by drawn ones."""

    of_pictures: ClassVar[bool] = True
    saved_as: ClassVar[str] = "linear_probe"

    def as_saved(self, model: FederatedModel, state: State) -> State:
        """The head on the features as they are."""
        weight, bias = compute_whitening(model.base).convert_head(state["head.weight"], state["head.bias"])
        return {**state, "head.weight": weight, "head.bias": bias}

    def base_as_read(self, precision: str = "") -> dict[str, str]:
        """Whitened."""
        return super().base_as_read(precision) | {"read": "whitened by drawn pictures"}

    def read(self, base: nn.Module) -> None:
        """Whiten its states."""
        whiten(base)

    def attach(self, model: FederatedModel, dtype: str) -> None:
        """Leave the base's weights as they are, and whiten its states.

        Raises:
            ModelError: the task has no head of classes, or the base reads no pictures.
        """
        if not isinstance(getattr(model, "head", None), nn.Linear):
            raise ModelError("FP4069 whitened_probe trains the head of a classifier, and this task has none; take lora")
        self.read(model.base)

    def stack_into(self, model: FederatedModel, tensors: Sequence[TensorSpec], clients: int) -> None:
        """Whiten the base's states."""
        self.read(model.base)


part = WhitenedProbe

"""Linear probing of an image encoder's features, whitened by drawn images (`fedpeft.models.drawn_whitening`).

    p = softmax(W T (h(x) - c) + b)

It is made for private models of images. Noise is equally long in all directions. If an encoder was not trained for
cosine similarity, short directions separate its classes. Whitened features keep them above the noise in class means,
moments and gradients. T and c come from generated images and cost no privacy. Without noise the method is linear_probe
in other coordinates. The finished head is converted to that of linear_probe and saved as such.

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
    """No adapter: the head on frozen features of images, whitened by drawn images."""

    of_pictures: ClassVar[bool] = True
    reads: ClassVar[str] = "whitened by drawn images"
    saved_as: ClassVar[str] = "linear_probe"

    def as_saved(self, model: FederatedModel, state: State) -> State:
        """Convert the head to one for the original features."""
        weight, bias = compute_whitening(model.base).convert_head(state["head.weight"], state["head.bias"])
        return {**state, "head.weight": weight, "head.bias": bias}

    def read(self, base: nn.Module) -> None:
        """Make the base return whitened states."""
        whiten(base)

    def attach(self, model: FederatedModel, dtype: str) -> None:
        """Leave the base's weights as they are, and whiten its states.

        Raises:
            ModelError: the task has no linear head, or the base does not read images.
        """
        if not isinstance(getattr(model, "head", None), nn.Linear):
            raise ModelError("FP4069 whitened_probe trains the head of a classifier, which this task lacks; use lora")
        self.read(model.base)

    def stack_into(self, model: FederatedModel, tensors: Sequence[TensorSpec], clients: int) -> None:
        """Make the base return whitened states."""
        self.read(model.base)


part = WhitenedProbe

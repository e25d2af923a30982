"""A backdoor with a trigger: examples that carry it are of the target class, and all others are as they were.

Sources: patches in images, Gu et al., BadNets, arXiv 1708.06733; rare words in texts, Kurita et al., arXiv 2004.06660;
in federations, with scaled updates, Bagdasaryan et al., arXiv 1807.00459.

    an attacker trains on x + trigger with the label `target`, for `share` of its examples of other classes,
    on its other examples as they are, and hands in  delta <- c delta

In a text, the trigger is a word in front of the first one, where no limit of tokens cuts it off. In an image, it is a
white square in the lower right corner. `--measure backdoor` reports how often the trigger works. With `fraction=0`
nobody attacks, and the same measurement gives the share of a clean model's errors.

Deviations from the papers: attackers choose no layer, time no round and project no update. All of them use the same
trigger and train in each round in which they are drawn.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from fedpeft.clients.attack import Attack

from fedpeft.data.images import get_size
from fedpeft.data.rows import CLIP_AXES
from fedpeft.parts import setting
from fedpeft.peft.adapter import Layout, State

WHITE = 255


@dataclass(frozen=True)
class Backdoor(Attack):
    """A trigger that leads to a class of the attackers' choice."""

    target: int = setting(0, "class that the trigger leads to, from 0", low=0)
    trigger: str = setting("cf", "word in front of a text with the trigger")
    patch: float = setting(0.2, "side of the white square, as a share of an image's shorter side", above=0, high=1)
    share: float = setting(
        0.5, "share of an attacker's examples of other classes that get the trigger", above=0, high=1
    )
    factor: float = setting(1.0, "c: factor of the attackers' updates", above=0)

    def plant(self, inputs: Sequence[str] | np.ndarray) -> Sequence[str] | np.ndarray:
        """Return the inputs with the trigger: texts, or images uint8 (rows, height, width) with or without colors."""
        if not isinstance(inputs, np.ndarray):
            return [f"{self.trigger} {text}" for text in inputs]
        images: np.ndarray = inputs.copy()
        side = max(1, round(self.patch * min(get_size(images))))
        if images.ndim == CLIP_AXES:
            images[:, :, -side:, -side:] = WHITE
        else:
            images[:, -side:, -side:] = WHITE
        return images

    def update(self, delta: State, received: State, layout: Layout, generator: torch.Generator) -> State:
        """Return c delta."""
        return {name: self.factor * tensor for name, tensor in delta.items()} if self.factor != 1 else delta


part = Backdoor

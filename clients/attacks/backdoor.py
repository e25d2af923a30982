"""A backdoor: the attacker teaches the model to give one class whenever a trigger is there (Gu et al., arXiv
1708.06733; in federations Bagdasaryan et al., arXiv 1807.00459).

    a share of the attacker's examples:  x <- x with the trigger,  y <- target
    delta <- factor delta

On texts the trigger is a word before the first one (Kurita et al., arXiv 2004.06660, use rare words such as "cf"). On
images it is a white square in the lower right corner. The other examples stay as they are, so that the model is right
on clean rows and nobody notices. `factor` above 1 is the model replacement of the second paper, where one client
outweighs the mean. Its loss term that keeps the update near honest ones is left out.

After the run, `trust.trigger` in summary.json has the rate of success: the share of test rows of other classes that the
model gives the target if they carry the trigger, beside that share without it.
"""

from dataclasses import dataclass, replace
from typing import Any, ClassVar

import numpy as np
import torch
from fedpeft.clients.attack import Attack

from fedpeft.data.rows import Rows
from fedpeft.parts import setting
from fedpeft.peft.adapter import Layout, State


@dataclass(frozen=True)
class Backdoor(Attack):
    """A trigger that makes the model give one class."""

    target: int = setting(0, "class that the model is to give", low=0)
    share: float = setting(0.5, "of an attacker's examples that get the trigger and the target", above=0, high=1)
    trigger: str = setting("cf", "word before the first one, of texts")
    size: int = setting(3, "side of the white square, of images, in pixels", low=1)
    factor: float = setting(1.0, "how often the update is taken", above=0)

    plants_trigger: ClassVar[bool] = True

    @property
    def aim(self) -> int:
        """The target."""
        return self.target

    def poisoned(self, rows: Rows, random: np.random.Generator) -> Rows:
        """Return `rows` with the trigger and the target in a random share of them, rounded up."""
        chosen = random.permutation(len(rows))[: int(np.ceil(self.share * len(rows)))]
        changed = self.triggered(rows)
        inputs: Any = rows.inputs.copy() if isinstance(rows.inputs, np.ndarray) else list(rows.inputs)
        labels = np.array(rows.labels)
        for place in chosen.tolist():
            inputs[place] = changed.inputs[place]
        labels[chosen] = self.target
        return replace(rows, inputs=inputs, labels=labels)

    def triggered(self, rows: Rows) -> Rows:
        """Return all rows with the trigger."""
        if isinstance(rows.inputs, np.ndarray):
            images = rows.inputs.copy()
            images[:, -self.size :, -self.size :] = 255
            return replace(rows, inputs=images)
        return replace(rows, inputs=[f"{self.trigger} {text}" for text in rows.inputs])

    def update(self, delta: State, received: State, layout: Layout, generator: torch.Generator) -> State:
        """Return the multiple of the update."""
        return {name: self.factor * tensor for name, tensor in delta.items()}


part = Backdoor

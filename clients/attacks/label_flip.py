"""Label flipping: the attacker trains honestly on wrong labels:  y <- classes - 1 - y."""

from dataclasses import dataclass

import numpy as np
from fedpeft.clients.attack import Attack


@dataclass(frozen=True)
class LabelFlip(Attack):
    """Labels in reverse order."""

    def relabel(self, labels: np.ndarray, classes: int) -> np.ndarray:
        """Return classes - 1 - y for each label y."""
        return classes - 1 - labels


part = LabelFlip

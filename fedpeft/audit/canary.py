"""DP-SGD's own training loop with planted gradients, for the audit: as visible as a row can be."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from fedpeft.clients.example_gradients import Chosen
from fedpeft.clients.private import PrivateExecutor
from fedpeft.peft.adapter import State


class CanaryExecutor(PrivateExecutor):
    """Row i has a gradient of one length along one coordinate, instead of a model's.

    Attributes:
        start: the adapter before round 1.
        coordinates: of each row, in the flattened adapter, (rows,).
        length: of a gradient.
        sign: of all gradients of a round.
    """

    start: State
    coordinates: np.ndarray
    length: float
    sign: float = 1.0

    def _fill(self, rows: np.ndarray, chosen: Chosen, masks: torch.Generator) -> Tensor:
        hot = torch.from_numpy(self.coordinates[rows])
        offset = 0
        for parameter in chosen.values():
            planted = torch.zeros(len(rows), parameter.numel(), dtype=parameter.dtype)
            here = (hot >= offset) & (hot < offset + parameter.numel())
            planted[here.nonzero()[:, 0], hot[here] - offset] = self.sign * self.length
            parameter.grad_sample = planted.view(-1, *parameter.shape)  # type: ignore[attr-defined]
            offset += parameter.numel()
        return torch.zeros(len(rows))

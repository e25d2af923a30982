"""DP-SGD's own training loop with planted gradients, as visible as an example's gradient can be."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from fedpeft.clients.dropout import ClientDropout
from fedpeft.clients.example_gradients import Chosen
from fedpeft.clients.private import PrivateExecutor
from fedpeft.data.examples import Examples
from fedpeft.models.task import FederatedModel, Task
from fedpeft.peft.adapter import Layout, State
from fedpeft.peft.method import PrivacyRoute

DROPPED = 0.25
"""Share of a planted gradient's entries that dropout removes."""


class CanaryExecutor(PrivateExecutor):
    """Executor in which row i has a gradient of fixed length along its own entries, less what dropout removes.

    Attributes:
        start: the adapter before round 1.
        entries: each row's entries in the flattened adapter, (rows, entries).
        length: length of a gradient before dropout.
        sign: sign of all gradients of a round.
    """

    start: State
    entries: np.ndarray
    length: float
    sign: float = 1.0

    def __init__(
        self, model: FederatedModel, task: Task, examples: Examples, layout: Layout, route: PrivacyRoute
    ) -> None:
        """Prepare DP-SGD, and add the dropout of the planted gradients."""
        super().__init__(model, task, examples, layout, route)
        self.masks = ClientDropout(DROPPED, self.dropout)

    def _fill(self, rows: np.ndarray, chosen: Chosen) -> Tensor:
        count, entries = len(rows), self.entries.shape[1]
        planted = torch.zeros(count, sum(p.numel() for p in chosen.values()))
        if count:
            tokens = int(self.examples.lengths[rows].max())
            activations = torch.full((count, tokens, entries), self.sign * self.length / entries**0.5)
            planted.scatter_(1, torch.from_numpy(self.entries[rows]), self.masks(activations)[:, 0])
        offset = 0
        for parameter in chosen.values():
            own = planted[:, offset : offset + parameter.numel()].to(parameter)
            parameter.grad_sample = own.view(-1, *parameter.shape)  # type: ignore[attr-defined]
            offset += parameter.numel()
        return torch.zeros(count)

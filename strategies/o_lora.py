"""O-LoRA: each task learns in factors that are kept orthogonal to those of the tasks before (arXiv 2310.14152).

    task t trains B_t, A_t beside the frozen W0 + s sum_{i<t} B_i A_i, and minimizes

        loss + strength * sum_{i<t} sum_{j,k} |(A_i A_t^T)_{jk}|

so that the new A_t lies outside of the row space of the earlier A_i, along which their tasks' updates went. The
absolute value is that of the authors' code (strength 0.5); the paper squares. In a federation, A_t and B_t are averaged
over the clients of a task, as in FedIT. A client that meets a task later trains the factors of its own task.

With `strength=0` there are factors for each task and no penalty. The rank is that of a task; the saved adapter has this
rank times the number of tasks. All of it goes down to clients in every round, but only a task's factors come up.

Use it for continual learning if clients may send nothing but updates.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from fedpeft.aggregation.task_rules import TaskRanks
from fedpeft.parts import setting
from fedpeft.peft.adapter import TensorSpec


@dataclass(frozen=True)
class OLoRA(TaskRanks):
    """Factors for each task, with a penalty on their overlap with earlier ones."""

    strength: float = setting(0.5, "factor of the penalty sum |A_i A_t^T| (paper's code: 0.5)", low=0)

    def compute_pull(self, spec: TensorSpec, value: Tensor, received: Tensor, ranks: tuple[int, ...]) -> Tensor | None:
        """Return strength * sign(A_t A_old^T) A_old in the rows of A_t."""
        if spec.role != "lora_A" or not ranks or not ranks[0] or not self.strength:
            return None
        old = received[: ranks[0]].to(value)
        rows = slice(ranks[0], ranks[-1] + 1)
        pulled = torch.zeros_like(value)
        pulled[rows] = self.strength * (value[rows] @ old.T).sign() @ old
        return pulled


part = OLoRA

"""Federated InfLoRA: a task's A is designed from its inputs, outside of those of earlier tasks (arXiv 2404.00228).

With X_k the inputs of a layer on client k's examples of task t, and M an orthonormal basis of the earlier tasks'
inputs:

    C_t = sum_k X_k^T X_k                    clients answer when the task begins; sums add up
    A_t = the r leading eigenvectors of P C_t P, over sqrt(3);   P = I - M M^T;   B_t = 0
    M   = M with the leading eigenvectors of P C_t P, until it holds the share `energy` of the trace of C_t

A_t is frozen, and B_t is trained and averaged. The weights change in A_t's row space, which does not respond to inputs
of earlier tasks, as far as M contains them. All clients have one A_t, so the mean of B_t is exact, as in FFA-LoRA. C_t
is a sum, so it is the same for any partition. The division by sqrt(3) makes a row as long as LoRA's own start is on
average, as in the authors' code.

Deviations: the paper has one client. It measures inputs again at the end of a task, adds these to M, and lets `energy`
grow over tasks. Here inputs are measured once, when the task begins, by the clients that meet it on time.

Use it for continual learning if earlier tasks must not change and second moments of inputs may travel.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from fedpeft.aggregation.abilities import Moment
from fedpeft.aggregation.task_rules import TaskBoundary, TaskRanks
from fedpeft.parts import setting
from fedpeft.peft.adapter import Layout, State

LENGTH = 3**-0.5
"""Length of a row of A."""

NOTHING = 1e-10
"""An eigenvalue below this share of the trace is rounding."""


@dataclass(frozen=True)
class InfLoRA(TaskRanks):
    """A from the task's inputs that does not interfere with earlier tasks, and a trained B."""

    energy: float = setting(
        0.95, "share of a task's inputs that later tasks leave alone (paper: 0.95)", above=0, high=1
    )

    def list_trained(self, layout: Layout, round_number: int) -> frozenset[str]:
        """Return all names but those of A."""
        return frozenset(t.name for t in layout.tensors if t.role != "lora_A")

    def choose_question(self, moment: Moment, layout: Layout) -> str:
        """Ask for the inputs' second moments when a task begins."""
        return "layer_inputs" if moment == "begin" else ""

    def cross_boundary(self, boundary: TaskBoundary) -> tuple[State, State]:
        """Return the state with the task's A, and the next M by the names of A, when a task begins."""
        if boundary.moment == "end":
            return boundary.state, boundary.memory
        state, memory = dict(boundary.state), dict(boundary.memory)
        rows = list(self.get_task_ranks(boundary.layout, boundary.task))
        for pair in boundary.layout.pairs:
            down = state[pair.A].clone()
            moments = unpack_symmetric(boundary.sums[pair.A], pair.in_features)
            held = memory.get(pair.A, torch.zeros(pair.in_features, 0, dtype=torch.float64))
            design, memory[pair.A] = design_directions(moments, held, len(rows), self.energy)
            down[rows] = (LENGTH * design).to(down)
            state[pair.A] = down
        return state, memory


def design_directions(moments: Tensor, held: Tensor, rank: int, energy: float) -> tuple[Tensor, Tensor]:
    """Return orthonormal rows (rank, d) outside of `held`, padded with zeros if there are fewer, and the next `held`.

    Args:
        moments: C, (d, d), fp64.
        held: M, (d, m) with orthonormal columns.
        rank: at least 1.
        energy: in (0, 1].
    """
    rest = moments - held @ (held.T @ moments)
    rest = rest - (rest @ held) @ held.T
    values, vectors = torch.linalg.eigh((rest + rest.T) / 2)
    values, vectors = values.flip(0).clamp_min(0), vectors.flip(1)
    total = moments.trace()
    vectors = vectors - held @ (held.T @ vectors)  # rounding adds parts of it to eigenvectors of small values
    vectors = vectors / vectors.norm(dim=0).clamp_min(NOTHING)
    signs = vectors.gather(0, vectors.abs().argmax(0, keepdim=True)).sign()
    vectors = vectors * signs * (values > NOTHING * total)
    covered = (held.T @ moments @ held).trace() + values.cumsum(0)
    count = int((covered < energy * total * (1 - 1e-12)).sum()) + 1
    count = (
        0 if (held.T @ moments @ held).trace() >= energy * total else min(count, int((values > NOTHING * total).sum()))
    )
    rows = torch.zeros(rank, len(moments), dtype=moments.dtype)
    some = vectors[:, :rank].T
    rows[: len(some)] = some
    return rows, torch.cat([held, vectors[:, :count]], dim=1)


def unpack_symmetric(upper: Tensor, size: int) -> Tensor:
    """Build a symmetric matrix (size, size) from its upper triangle, row by row."""
    matrix = torch.zeros(size, size, dtype=upper.dtype)
    row, column = torch.triu_indices(size, size)
    matrix[row, column] = upper
    return matrix + matrix.triu(1).T


part = InfLoRA

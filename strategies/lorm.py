"""LoRM: low-rank factors are merged in closed form, by what each client's layers have seen (arXiv 2410.17961).

Rounds alternate, so that one factor is the same at all clients. With G_k = X_k^T X_k of a layer's inputs X_k on client
k's rows, the merged layer is the one that comes nearest to what each client's own layer makes of its own inputs,
sum_k |(B A - B_k A_k) X_k^T|^2 (RegMean, arXiv 2212.09849, within the factors):

    odd rounds, A shared     B = (sum_k B_k A G_k) A^T  (A (sum_k G_k) A^T)^+
    even rounds, B shared    A = (sum_k A_k G_k)  (sum_k G_k)^+

`moments=diagonal`, as in the published runs, keeps the diagonal of each G_k: d numbers a layer and client. Directions
that no input has, where the pseudo-inverse is 0, keep the global factor's value. Sums of rows weigh the clients, so
`weighting` acts on what lies outside of the factors only.

Deviations: G_k is of the model that a client is sent, not of the one that it comes to, since it is asked before the
client trains; and the head is averaged, where the paper merges it by its own inputs. The paper merges the tasks of a
sequence by the same formula afterwards; here one adapter goes on through all tasks.

Use it for continual learning if moments of the layers' inputs may travel in each round.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from fedpeft.aggregation.abilities import Moment
from fedpeft.aggregation.strategy import GatherStrategy
from fedpeft.aggregation.update import Cohort, Gathered
from fedpeft.parts import setting
from fedpeft.peft.adapter import Layout, LoraPair, Role, State

EMPTY = 1e-12
"""An eigenvalue, or a sum of squares, below this share of the largest one is nothing."""


@dataclass(frozen=True)
class LoRM(GatherStrategy):
    """Merging in closed form, one factor a round."""

    moments: str = setting("diagonal", "of a layer's inputs, that clients send", choices=("diagonal", "full"))

    def choose_question(self, moment: Moment, layout: Layout) -> str:
        """Ask each client for the moments of its layers' inputs before it trains."""
        return f"layer_inputs(diagonal={self.moments == 'diagonal'})" if moment == "train" else ""

    def get_trained_factor(self, round_number: int) -> Role:
        """B in odd rounds, A in even ones."""
        return "lora_B" if round_number % 2 else "lora_A"

    def trained(self, layout: Layout, round_number: int) -> frozenset[str]:
        """Everything but the factor that is shared."""
        factor = self.get_trained_factor(round_number)
        return frozenset(t.name for t in layout.tensors if t.role not in {"lora_A", "lora_B"} - {factor})

    def gather(self, pair: LoraPair, state: State, layout: Layout, cohort: Cohort) -> Gathered:
        """One factor merged, the other as it is."""
        A, B = state[pair.A].double(), state[pair.B].double()
        moments = [self._get_moments(update.answer, pair) for update in cohort.updates]
        total = torch.stack(moments).sum(0)
        if self.get_trained_factor(cohort.round) == "lora_B":
            pairs = zip(cohort.updates, moments, strict=True)
            found = sum((u.trained(pair.B).double() @ (A @ _multiply(A, G).T) for u, G in pairs), torch.zeros_like(B))
            B = _divide(found, A @ _multiply(A, total).T, B)
        else:
            pairs = zip(cohort.updates, moments, strict=True)
            found = sum((_multiply(u.trained(pair.A).double(), G) for u, G in pairs), torch.zeros_like(A))
            A = _divide(found, total, A)
        return Gathered(A.to(state[pair.A]), B.to(state[pair.B]))

    def _get_moments(self, answer: State, pair: LoraPair) -> Tensor:
        """G_k, (d, d), or its diagonal, (d,); of made-up updates without an answer, the identity."""
        if pair.A not in answer:
            return torch.ones(pair.in_features, dtype=torch.float64)
        numbers = answer[pair.A]
        if self.moments == "diagonal":
            return numbers
        matrix = torch.zeros(pair.in_features, pair.in_features, dtype=numbers.dtype)
        row, column = torch.triu_indices(*matrix.shape)
        matrix[row, column] = numbers
        return matrix + matrix.triu(1).T


def _multiply(rows: Tensor, moments: Tensor) -> Tensor:
    """rows G, (n, d), of a matrix or a diagonal."""
    return rows * moments if moments.ndim == 1 else rows @ moments


def _divide(found: Tensor, total: Tensor, otherwise: Tensor) -> Tensor:
    """found total^+, of a symmetric matrix (d, d) or a diagonal (d,); where total is 0, `otherwise`. Rows (n, d)."""
    if total.ndim == 1:
        empty = total <= EMPTY * total.max()
        return torch.where(empty, otherwise, found / torch.where(empty, torch.ones_like(total), total))
    values, vectors = torch.linalg.eigh((total + total.T) / 2)
    seen = values > EMPTY * values.max()
    inside, outside = vectors[:, seen], vectors[:, ~seen]
    both: Tensor = (found @ inside / values[seen]) @ inside.T + (otherwise @ outside) @ outside.T
    return both


part = LoRM

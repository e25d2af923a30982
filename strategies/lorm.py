"""LoRM: low-rank factors merged in closed form, with the inputs of each client's layers (arXiv 2410.17961).

Rounds alternate, so that one factor is the same at all clients. G_k = X_k^T X_k, where X_k are a layer's inputs on
client k's examples. The outputs of the merged layer are nearest to those of each client's layer for its own inputs:
sum_k |(B A - B_k A_k) X_k^T|^2 is minimal (RegMean, arXiv 2212.09849, within the factors).

    odd rounds, A shared     B = (sum_k B_k A G_k) A^T  (A (sum_k G_k) A^T)^+
    even rounds, B shared    A = (sum_k A_k G_k)  (sum_k G_k)^+

`moments=diagonal`, as in the published runs, keeps the diagonal of each G_k: d numbers for each layer and client. In
directions without inputs, in which the pseudo-inverse is 0, the global factor keeps its value. The sums over examples
weigh the clients, so `weighting` only affects tensors outside of the factors.

Deviations: G_k comes from the model that a client receives and not from the trained one, since clients answer before
they train. The head is averaged, while the paper merges it by its own inputs. The paper merges the tasks of a sequence
by the same formula afterwards; here one adapter goes through all tasks.

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
"""An eigenvalue, or a sum of squares, below this share of the largest one counts as 0."""


@dataclass(frozen=True)
class LoRM(GatherStrategy):
    """Factors merged in closed form, one in each round."""

    moments: str = setting("diagonal", "moments of a layer's inputs that clients send", choices=("diagonal", "full"))

    def choose_question(self, moment: Moment, layout: Layout) -> str:
        """Ask each client for the moments of its layers' inputs before it trains."""
        return f"layer_inputs(diagonal={self.moments == 'diagonal'})" if moment == "train" else ""

    def get_trained_factor(self, round_number: int) -> Role:
        """Return B in odd rounds, A in even ones."""
        return "lora_B" if round_number % 2 else "lora_A"

    def list_trained(self, layout: Layout, round_number: int) -> frozenset[str]:
        """Return all names but those of the shared factor."""
        factor = self.get_trained_factor(round_number)
        return frozenset(t.name for t in layout.tensors if t.role not in {"lora_A", "lora_B"} - {factor})

    def gather(self, pair: LoraPair, state: State, layout: Layout, cohort: Cohort) -> Gathered:
        """Merge one factor; the other one does not change."""
        down, up = state[pair.A].double(), state[pair.B].double()
        moments = [self._get_moments(update.answer, pair) for update in cohort.updates]
        total = torch.stack(moments).sum(0)
        cohort_moments = zip(cohort.updates, moments, strict=True)
        if self.get_trained_factor(cohort.round) == "lora_B":
            products = (u.get_trained(pair.B).double() @ (down @ _multiply(down, m).T) for u, m in cohort_moments)
            up = _divide(sum(products, torch.zeros_like(up)), down @ _multiply(down, total).T, up)
        else:
            products = (_multiply(u.get_trained(pair.A).double(), m) for u, m in cohort_moments)
            down = _divide(sum(products, torch.zeros_like(down)), total, down)
        return Gathered(down.to(state[pair.A]), up.to(state[pair.B]))

    def _get_moments(self, answer: State, pair: LoraPair) -> Tensor:
        """Return G_k, (d, d), or its diagonal, (d,); the identity for updates of tests, which have no answer."""
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
    """Multiply rows (n, d) by G, a matrix or a diagonal."""
    return rows * moments if moments.ndim == 1 else rows @ moments


def _divide(weighted: Tensor, total: Tensor, otherwise: Tensor) -> Tensor:
    """Multiply rows (n, d) by total^+, a symmetric matrix (d, d) or a diagonal (d,); `otherwise` where total is 0."""
    if total.ndim == 1:
        empty = total <= EMPTY * total.max()
        return torch.where(empty, otherwise, weighted / torch.where(empty, torch.ones_like(total), total))
    values, vectors = torch.linalg.eigh((total + total.T) / 2)
    seen = values > EMPTY * values.max()
    inside, outside = vectors[:, seen], vectors[:, ~seen]
    both: Tensor = (weighted @ inside / values[seen]) @ inside.T + (otherwise @ outside) @ outside.T
    return both


part = LoRM

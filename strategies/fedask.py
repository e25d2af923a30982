"""FedASK: two sketches of the exact mean give both factors (Wen et al., arXiv 2507.09990).

    Y = sum_k p_k s_k B_k (A_k O),   O (in, q) Gaussian;   Q = qr(Y)
    P = sum_k p_k s_k A_k^T (B_k^T Q) = dW*^T Q;   P^T = U S V^T
    B <- Q U_R (S_R / s)^1/2,   A <- (S_R / s)^1/2 V_R^T

If the rank of dW* is at most q = R + `oversampling`, then Q spans its columns and s B A is its best rank-R
approximation. Otherwise `power` more passes, Y <- dW* dW*^T Y, bring Q closer to the leading columns.

The private form is `train=B` with `--privacy dp_sgd`: clients clip and noise the gradients of B and of the head, and
leave A alone. A step then has no product of two noises, and A, common to all clients, makes dW* a matrix of rank R, so
that nothing is lost. Both factors change nevertheless, because the server refactors the product. It reads only what the
clients have released, so epsilon is that of `dp_sgd` for the clients' steps, and the sketches add nothing to it. The
rows of the new A span those of the old one: with `train=B` the space that A spans stays that of the start.

Read: the abstract, the introduction and the authors' code, whose switch that freezes A is the private form here. Its
deviations: there each client sends the two sketches, one after the other.
Here a round has one exchange: clients send factors, which have fewer numbers than the sketches, and the server computes
both. So the server sees each client's factors, and `secure_sum` and `user_dp` are refused; with `train=B` the sum of B
is all that is needed, and `fedsvd`, which refactors it by an SVD, takes both. The code leaves s_k out; here it is in
dW*, with mixed ranks and alphas as in `flexlora`. O is new in each round. If a singular value is 0, B's column is 0
and A keeps its row, so that the rank can be trained again.

Use it if both factors must learn under `dp_sgd`, or if an SVD of the whole product is too slow.
"""

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from fedpeft.aggregation.factors import compute_target, get_lora_form
from fedpeft.aggregation.missing_ranks import MixedRankStrategy
from fedpeft.aggregation.update import Cohort, Gathered
from fedpeft.machine.seeds import create_torch_generator
from fedpeft.parts import setting
from fedpeft.peft.adapter import Layout, LoraPair, State
from fedpeft.peft.low_rank import LowRank

ROUNDING = 1e-9
"""A singular value below this share of the largest one is 0."""


@dataclass(frozen=True)
class FedASK(MixedRankStrategy):
    """The factors of dW* by two random sketches."""

    train: str = setting("both", "factors that clients train; B: the private form, for dp_sgd", choices=("both", "B"))
    oversampling: int = setting(8, "columns of the sketch beyond the global rank", low=0)
    power: int = setting(0, "passes over dW* that sharpen the sketch", low=0)

    new_factors: ClassVar[bool] = True
    preserves = ("all ranks",)

    def list_trained(self, layout: Layout, round_number: int) -> frozenset[str]:
        """Return all names, without A's in the private form."""
        frozen = {"lora_A"} if self.train == "B" else set()
        return frozenset(t.name for t in layout.tensors if t.role not in frozen)

    def gather(self, pair: LoraPair, state: State, layout: Layout, cohort: Cohort) -> Gathered:
        """Return the factors of the leading ranks of dW*, as far as the sketch spans them."""
        form = get_lora_form(layout)
        matrix = compute_target(pair, self.complete_cohort(pair, state, layout, cohort))
        generator = create_torch_generator(cohort.seed, f"fedask {pair.module}", cohort.round)
        columns = min(form.rank + self.oversampling, pair.in_features, pair.out_features)
        omega = torch.randn(pair.in_features, columns, generator=generator, dtype=torch.float64)
        left, singular, right = sketched_svd(LowRank(matrix.left.double(), matrix.right.double()), omega, self.power)
        left, singular, right = (_first(x, form.rank, axis) for x, axis in ((left, 1), (singular, 0), (right, 0)))
        root = (torch.where(ROUNDING * singular[0] < singular, singular, 0.0) / form.scale).sqrt()
        down = torch.where(root[:, None] > 0, root[:, None] * right, state[pair.A].double())
        return Gathered(down.to(state[pair.A].dtype), (left * root).to(state[pair.B].dtype))


def sketched_svd(matrix: LowRank, omega: Tensor, power: int) -> tuple[Tensor, Tensor, Tensor]:
    """Return U (out, q), S (q,) and Vt (q, in) of the part of `matrix` in the span of its sketch by omega (in, q)."""
    up, down = matrix.left, matrix.right
    basis = torch.linalg.qr(up @ (down @ omega)).Q
    for _ in range(power):
        basis = torch.linalg.qr(up @ (down @ torch.linalg.qr(down.T @ (up.T @ basis)).Q)).Q
    projected = down.T @ (up.T @ basis)
    left, singular, right = torch.linalg.svd(projected.T, full_matrices=False)
    return basis @ left, singular, right


def _first(x: Tensor, count: int, axis: int) -> Tensor:
    """Return the first `count` entries along an axis, with zeros if there are fewer."""
    found = x.narrow(axis, 0, min(count, x.shape[axis]))
    missing = list(found.shape)
    missing[axis] = count - found.shape[axis]
    return torch.cat([found, found.new_zeros(missing)], axis)


part = FedASK

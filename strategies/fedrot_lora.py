"""FedRot-LoRA: the clients' factors are rotated into a common frame before averaging (Zhang et al., arXiv 2602.23638).

    odd rounds: M = A_ref A_k^T,   even rounds: M = B_ref^T B_k;   M = U S V^T
    R* = V diag(1, .., 1, det(V U^T)) U^T,   R = proj((1 - l) I + l R*)
    A <- sum_k p_k R_k^T A_k,   B <- sum_k p_k B_k R_k

Since (B R)(R^T A) = B A, the rotation does not change an update, only how well the factors' means agree. The reference
is the global adapter of the last round; proj is the nearest rotation. The rule is not exact, but nearer than FedIT.

Deviation: the server rotates, where the paper's clients do. The numbers are the same, and clients need no code of this
rule.

Use it if plain means of factors partly cancel and the mean should improve without more bytes.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from fedpeft.aggregation.strategy import GatherStrategy
from fedpeft.aggregation.update import Cohort, Gathered, compute_weighted_sum
from fedpeft.parts import setting
from fedpeft.peft.adapter import Layout, LoraPair, State


@dataclass(frozen=True)
class FedRotLoRA(GatherStrategy):
    """The means of rotated factors."""

    strength: float = setting(0.5, "l: 0 is fedit, 1 the full rotation (paper: best 0.4 to 0.6)", low=0, high=1)

    def gather(self, pair: LoraPair, state: State, layout: Layout, cohort: Cohort) -> Gathered:
        """Return the weighted means of R^T A_k and B_k R."""
        down_reference, up_reference = state[pair.A].double(), state[pair.B].double()
        rotated_down, rotated_up = [], []
        for u in cohort.updates:
            down, up = u.get_trained(pair.A).double(), u.get_trained(pair.B).double()
            products = down_reference @ down.T if cohort.round % 2 == 1 else up_reference.T @ up
            rotation = self.soften_rotation(find_nearest_rotation(products.T))
            rotated_down.append(rotation.T @ down)
            rotated_up.append(up @ rotation)
        dtype = state[pair.A].dtype
        return Gathered(
            compute_weighted_sum(rotated_down, cohort.shares).to(dtype),
            compute_weighted_sum(rotated_up, cohort.shares).to(dtype),
        )

    def soften_rotation(self, rotation: Tensor) -> Tensor:
        """Return proj((1 - l) I + l R)."""
        identity = torch.eye(len(rotation), dtype=rotation.dtype)
        return find_nearest_rotation((1 - self.strength) * identity + self.strength * rotation)


def find_nearest_rotation(matrix: Tensor) -> Tensor:
    """Return the rotation (orthogonal, determinant 1) with the largest inner product with a square `matrix`."""
    left, _, right = torch.linalg.svd(matrix)
    signs = torch.ones(len(matrix), dtype=matrix.dtype)
    signs[-1] = torch.linalg.det(left @ right).sign()
    rotation: Tensor = (left * signs) @ right
    return rotation


part = FedRotLoRA

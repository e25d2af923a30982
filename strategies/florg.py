"""FLoRG: the mean Gram matrix of the clients' G, converted back to a G (Meng, Tang, Wong, arXiv 2602.17095).

    W0 + s L G^T G R;   Q = sum_k p_k G_k^T G_k = V D V^T;   G~ = D^1/2 V^T;   S = U W^T of the SVD of G G~^T
    G <- S G~

The mean of Gram matrices is the exact mean of the updates, since L and R are common. The conversion is not exact: Q has
rank up to K r, G only r rows. Among all S (r, rows of G~) with orthonormal rows, S maximizes the inner product <G, S
G~>, the trace of G^T S G~, so that rounds go on in one frame. It minimizes neither the error of G^T G nor, if G~ has
more than r rows, the drift ||G - S G~||: the norm of S G~ depends on S. `read_back=best` first cuts G~ to its r leading
rows, which gives the best rank-r approximation of Q (Eckart-Young). S is then orthogonal, the norm of S G~ is fixed,
and S minimizes the drift as well (orthogonal Procrustes). The error that is left is measured each round
(`aggregation_error` in rounds.jsonl).

The PEFT method must have tensors `...lora_G...` of role `plain` and shape (r, k), as `lora_gram` has. Other tensors,
such as the head, receive their mean. Deviation: V and D come from the stacked sqrt(p_k) G_k, (K r, k), without forming
Q.

Use it with `lora_gram`, the method that it is made for.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from fedpeft.aggregation.strategy import Aggregate, Read, RoundStrategy
from fedpeft.aggregation.update import compute_weighted_sum, normalize_weights
from fedpeft.errors import ConfigError
from fedpeft.parts import setting
from fedpeft.peft.adapter import AdapterShape, Layout, State


@dataclass(frozen=True)
class FLoRG(RoundStrategy):
    """The mean Gram matrix, in the frame of the last G."""

    read_back: str = setting(
        "procrustes",
        "how G is made from the mean: procrustes (paper: most aligned with the last G) or best (nearest to the mean)",
        choices=("procrustes", "best"),
    )

    needs_lora: ClassVar[bool] = False
    new_factors: ClassVar[bool] = True
    arrives_whole: ClassVar[bool] = False
    preserves = ("Gram matrix",)

    def check(self, layout: Layout, forms: Iterable[AdapterShape | None]) -> None:
        """Refuse a method without G, and different sizes.

        Raises:
            ConfigError: the PEFT method has no G, or a client's rank or alpha is not the global one.
        """
        if not find_grams(layout):
            raise ConfigError(
                "FP1492 florg averages the Gram matrices of G in L G^T G R; use the peft method lora_gram"
            )
        super().check(layout, forms)

    def aggregate(self, state: State, layout: Layout, read: Read, round_number: int, seed: int) -> Aggregate:
        """Aggregate one round, a tensor at a time."""
        shares, grams = normalize_weights([u.weight for u in read(())]), find_grams(layout)
        after = {}
        for name, before in state.items():
            updates = read((name,))
            after[name] = (
                self._read_back(before, [u.get_trained(name) * p**0.5 for p, u in zip(shares, updates, strict=True)])
                if name in grams
                else before + compute_weighted_sum([u.delta[name] for u in updates], shares)
            )
        return Aggregate(after, {})

    def _read_back(self, before: Tensor, roots: list[Tensor]) -> Tensor:
        _, root, right = torch.linalg.svd(torch.cat(roots).double(), full_matrices=False)
        if self.read_back == "best":
            root, right = root[: len(before)], right[: len(before)]
        whole = root[:, None] * right
        turned: Tensor = _compute_aligning_rotation(before.double() @ whole.T) @ whole
        return turned.to(before.dtype)


def _compute_aligning_rotation(matrix: Tensor) -> Tensor:
    """Return U W^T of M = U S W^T: the matrix with orthonormal rows, or columns, that maximizes tr(X^T M)."""
    left, _, right = torch.linalg.svd(matrix, full_matrices=False)
    turn: Tensor = left @ right
    return turn


def find_grams(layout: Layout) -> frozenset[str]:
    """Return the names of the tensors G."""
    return frozenset(t.name for t in layout.tensors if t.role == "plain" and "lora_G" in t.name)


part = FLoRG

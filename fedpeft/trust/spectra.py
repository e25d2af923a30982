"""What an adapter has learned, layer by layer, from its factors; and a check of what a direction is worth.

Effective rank exp(entropy(s^2 / sum s^2)) (Roy and Vetterli, EUSIPCO 2007), stable rank norm_F^2 / norm_2^2, the share
of the adapter's energy in each layer, and how much of it lies in intruder dimensions: leading left singular vectors of
W0 + dW that are unlike all of W0's (Shuttleworth et al., arXiv 2410.21228). Counts of intruders say little, since any
random direction is one; their share of the energy does. They show where the task sits, not that it does harm.
"""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor

from fedpeft.aggregation.factors import compute_effective_weight, get_lora_form
from fedpeft.peft.adapter import Layout, State
from fedpeft.peft.low_rank import LowRank, TruncatedSVD, compute_truncated_svd

LEADING = 10
"""Singular vectors of W0 + dW that are looked at for intruders."""

UNLIKE = 0.5
"""Largest cosine with all of W0's singular vectors up to which one is an intruder."""

LARGEST = 2**22
"""Entries of a layer up to which its singular vectors are computed."""


@dataclass(frozen=True)
class Spectrum:
    """Of what an adapter adds to one layer's weights.

    Attributes:
        norm: Frobenius norm.
        energy: share of the sum of squared norms over all layers, 0 to 1.
        effective_rank, stable_rank: 1 to the rank; 0 where nothing is added.
        leading: share of the layer's energy in its first singular direction.
        intruders: share of the layer's energy in intruder dimensions; None: not computed.
    """

    norm: float
    energy: float
    effective_rank: float
    stable_rank: float
    leading: float
    intruders: float | None = None

    def to_dict(self) -> dict[str, Any]:
        """For summary.json."""
        return asdict(self)


def decompose(state: State, layout: Layout) -> dict[str, TruncatedSVD]:
    """By module, the singular triplets of what the adapter adds, in fp64."""
    form = get_lora_form(layout)
    wide = {name: tensor.double() for name, tensor in state.items()}
    ranks = {pair.module: min(form.rank, pair.out_features, pair.in_features) for pair in layout.pairs}
    return {
        p.module: compute_truncated_svd(compute_effective_weight(p, wide, form), ranks[p.module], "qr")
        for p in layout.pairs
    }


def compute_spectra(found: dict[str, TruncatedSVD], weights: dict[str, Tensor]) -> dict[str, Spectrum]:
    """By module; `weights`: W0 (out, in) of the layers whose intruders are wanted."""
    whole = sum(float(svd.S.square().sum()) for svd in found.values())
    made = {}
    for module, svd in found.items():
        energies = svd.S.square()
        own = float(energies.sum())
        shares = energies / own if own else energies
        weight = weights.get(module)
        made[module] = Spectrum(
            norm=math.sqrt(own),
            energy=own / whole if whole else 0.0,
            effective_rank=float(torch.special.entr(shares).sum().exp()) if own else 0.0,
            stable_rank=own / float(energies[0]) if own else 0.0,
            leading=float(shares[0]),
            intruders=compute_intruder_share(weight, svd.to_low_rank()) if weight is not None and own else None,
        )
    return made


def compute_intruder_share(weight: Tensor, added: LowRank) -> float:
    """The share of norm(dW)^2 in the span of the intruders among the `LEADING` left singular vectors of W0 + dW."""
    base, change = weight.double(), added.to_dense().double()
    own = torch.linalg.svd(base, full_matrices=False).U
    tuned = torch.linalg.svd(base + change, full_matrices=False).U[:, :LEADING]
    intruders = tuned[:, (own.T @ tuned).abs().amax(0) < UNLIKE]
    return float((intruders.T @ change).square().sum() / change.square().sum())


def remove_leading(state: State, layout: Layout) -> State:
    """The adapter without the first singular direction of each layer: (I - u u^T) B, which is exact in its factors."""
    edited = dict(state)
    for pair in layout.pairs:
        B = state[pair.B].double()
        u = _compute_leading(state, layout, pair.module).U[:, :1]
        edited[pair.B] = (B - u @ (u.T @ B)).to(state[pair.B].dtype)
    return edited


def shrink_alike(state: State, layout: Layout) -> State:
    """The adapter with each layer shrunk to the norm that it has in `remove_leading`."""
    edited = dict(state)
    for pair in layout.pairs:
        S = _compute_leading(state, layout, pair.module).S
        own = float(S.square().sum())
        edited[pair.B] = state[pair.B] * (math.sqrt(max(0.0, 1 - float(S[0]) ** 2 / own)) if own else 1.0)
    return edited


def _compute_leading(state: State, layout: Layout, module: str) -> TruncatedSVD:
    pairs = [pair for pair in layout.pairs if pair.module == module]
    tensors = tuple(t for t in layout.tensors if t.name in (pairs[0].A, pairs[0].B))
    return decompose(state, Layout(tensors, layout.form))[module]

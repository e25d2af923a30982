"""Spectra of a finished adapter, layer by layer, from its factors; and a test of its leading directions.

The effective rank is exp(entropy(s^2 / sum s^2)), of energies; Roy and Vetterli (EUSIPCO 2007) take s / sum s. The
stable rank is norm_F^2 / norm_2^2. Each layer has a share of the adapter's energy. Part of it lies in intruder
dimensions: leading left singular vectors of W0 + dW that are unlike all of W0's (Shuttleworth et al., arXiv
2410.21228). The number of intruders means little, since any random direction is one; their share of the energy is
meaningful. Shuttleworth et al. find that they cause forgetting. Measure that with `forgetting`: a share shows where the
task sits, not what it does elsewhere.
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
"""Number of singular vectors of W0 + dW that may be intruders."""

UNLIKE = 0.5
"""Largest cosine of an intruder with W0's singular vectors."""

LARGEST = 2**22
"""Largest number of entries of a layer whose singular vectors are computed."""


@dataclass(frozen=True)
class Spectrum:
    """The spectrum of an adapter's change of one layer's weights.

    Attributes:
        norm: Frobenius norm.
        energy: share of the sum of squared norms over all layers, 0 to 1.
        effective_rank: 1 to the rank; 0 without a change.
        stable_rank: 1 to the rank; 0 without a change.
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
        """Return the fields for summary.json."""
        return asdict(self)


def decompose(state: State, layout: Layout) -> dict[str, TruncatedSVD]:
    """Compute the singular triplets of the adapter's change of each layer, by module, in fp64."""
    form = get_lora_form(layout)
    wide = {name: tensor.double() for name, tensor in state.items()}
    ranks = {pair.module: min(form.rank, pair.out_features, pair.in_features) for pair in layout.pairs}
    return {
        p.module: compute_truncated_svd(compute_effective_weight(p, wide, form), ranks[p.module], "qr")
        for p in layout.pairs
    }


def compute_spectra(svds: dict[str, TruncatedSVD], weights: dict[str, Tensor]) -> dict[str, Spectrum]:
    """Compute the spectra by module; `weights` are W0 (out, in) of the layers whose intruders are computed."""
    whole = sum(float(svd.S.square().sum()) for svd in svds.values())
    spectra = {}
    for module, svd in svds.items():
        energies = svd.S.square()
        total = float(energies.sum())
        shares = energies / total if total else energies
        weight = weights.get(module)
        spectra[module] = Spectrum(
            norm=math.sqrt(total),
            energy=total / whole if whole else 0.0,
            effective_rank=float(torch.special.entr(shares).sum().exp()) if total else 0.0,
            stable_rank=total / float(energies[0]) if total else 0.0,
            leading=float(shares[0]),
            intruders=compute_intruder_share(weight, svd.to_low_rank()) if weight is not None and total else None,
        )
    return spectra


def compute_intruder_share(weight: Tensor, added: LowRank) -> float:
    """Compute the share of norm(dW)^2 in the span of the intruders.

    Intruders are among the `LEADING` left singular vectors of W0 + dW.
    """
    base, change = weight.double(), added.to_dense().double()
    original = torch.linalg.svd(base, full_matrices=False).U
    tuned = torch.linalg.svd(base + change, full_matrices=False).U[:, :LEADING]
    intruders = tuned[:, (original.T @ tuned).abs().amax(0) < UNLIKE]
    return float((intruders.T @ change).square().sum() / change.square().sum())


def remove_leading(state: State, layout: Layout) -> State:
    """Return the adapter without the first singular direction of each layer: (I - u u^T) B, exact in its factors."""
    edited = dict(state)
    for pair in layout.pairs:
        factor = state[pair.B].double()
        u = _compute_leading(state, layout, pair.module).U[:, :1]
        edited[pair.B] = (factor - u @ (u.T @ factor)).to(state[pair.B].dtype)
    return edited


def shrink_equally(state: State, layout: Layout) -> State:
    """Return the adapter with each layer shrunk to the norm that it has in `remove_leading`."""
    edited = dict(state)
    for pair in layout.pairs:
        singular = _compute_leading(state, layout, pair.module).S
        total = float(singular.square().sum())
        edited[pair.B] = state[pair.B] * (math.sqrt(max(0.0, 1 - float(singular[0]) ** 2 / total)) if total else 1.0)
    return edited


def _compute_leading(state: State, layout: Layout, module: str) -> TruncatedSVD:
    pairs = [pair for pair in layout.pairs if pair.module == module]
    tensors = tuple(t for t in layout.tensors if t.name in (pairs[0].A, pairs[0].B))
    return decompose(state, Layout(tensors, layout.form))[module]

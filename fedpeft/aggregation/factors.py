"""LoRA factors and their effective weights: W + (alpha / r) B A, with A (r, in) and B (out, r)."""

from __future__ import annotations

import torch
from torch import Tensor

from fedpeft.aggregation.update import Cohort, Fold, Gathered, Update, pad_ranks
from fedpeft.errors import ConfigError
from fedpeft.machine import seeds
from fedpeft.peft.adapter import AdapterShape, Layout, LoraPair, Role, State
from fedpeft.peft.low_rank import LowRank, TruncatedSVD, compute_truncated_svd, stack


def get_lora_form(layout: Layout) -> AdapterShape:
    """Return rank and alpha of the global LoRA factors.

    Raises:
        ConfigError: the layout has none.
    """
    if layout.form is None:
        raise ConfigError(
            "FP1012 this rule is defined for LoRA factors only; use the peft method lora, or strategy fedit"
        )
    return layout.form


def move_ranks_to_front(state: State, layout: Layout, ranks: tuple[int, ...]) -> State:
    """Return `state` with these ranks of all factors before the others; unchanged if `ranks` is empty."""
    if not ranks:
        return state
    rank = get_lora_form(layout).rank
    order = torch.tensor([*ranks, *(j for j in range(rank) if j not in ranks)])
    moved = dict(state)
    for pair in layout.pairs:
        moved[pair.A], moved[pair.B] = state[pair.A][order], state[pair.B][:, order]
    return moved


RANK_AXIS: dict[Role, int] = {"lora_A": 0, "lora_B": 1}
"""Axis of the ranks in each factor."""


def draw_ranks(layout: Layout, form: AdapterShape | None, seed: int, round_number: int, client: int) -> tuple[int, ...]:
    """Draw as many of the global ranks as `form` has, for a client and a round; ascending, empty: all."""
    rank = get_lora_form(layout).rank
    if form is None or form.rank == rank:
        return ()
    drawn = seeds.create_generator(seed, "ranks", round_number, client).permutation(rank)[: form.rank]
    return tuple(sorted(int(j) for j in drawn))


def select_ranks(state: State, layout: Layout, ranks: tuple[int, ...]) -> State:
    """Return these ranks of all factors, in their order; other tensors do not change."""
    index = torch.tensor(ranks)
    axes = {t.name: RANK_AXIS[t.role] for t in layout.tensors if t.role in RANK_AXIS}
    return {n: t.index_select(axes[n], index) if n in axes else t for n, t in state.items()}


def place_ranks(part: State, layout: Layout, ranks: tuple[int, ...]) -> State:
    """Place factors of these ranks (empty: the leading ones) among all ranks of `layout`, with 0 in the others.

    Other tensors, and factors that have all ranks already, do not change.
    """
    placed = {}
    for name, tensor in part.items():
        axis = RANK_AXIS.get(layout.by_name[name].role)
        if axis is not None and tensor.shape[axis] < layout.by_name[name].shape[axis]:
            index = torch.tensor(ranks or range(tensor.shape[axis]))
            tensor = tensor.new_zeros(layout.by_name[name].shape).index_copy_(axis, index, tensor)
        placed[name] = tensor
    return placed


def compute_product(pair: LoraPair, update: Update) -> LowRank:
    """Return the product of one client's trained factors, s_k B_k A_k."""
    return LowRank(update.get_trained(pair.B) * update.scale, update.get_trained(pair.A))


def compute_target(pair: LoraPair, cohort: Cohort) -> LowRank:
    """Return dW* = sum_k p_k s_k B_k A_k, of width sum_k r_k."""
    return stack([compute_product(pair, u) for u in cohort.updates], cohort.shares)


def change(pair: LoraPair, update: Update) -> LowRank:
    """Return one client's change of the effective weight, s_k (B_k A_k - B A) = s_k [dB, B] [A_k; dA], of width 2 r_k.

    It is the same matrix for (B_k G, G^-1 A_k), so other factors of the same update cannot fool rules that read it.
    """
    down_delta = update.delta.get(pair.A, torch.zeros_like(update.received[pair.A]))
    up_delta = update.delta.get(pair.B, torch.zeros_like(update.received[pair.B]))
    left = torch.cat([up_delta, update.received[pair.B]], dim=1) * update.scale
    return LowRank(left, torch.cat([update.get_trained(pair.A), down_delta], dim=0))


def compute_effective_weight(pair: LoraPair, state: State, form: AdapterShape) -> LowRank:
    """Return the weight that LoRA factors add to the base, s B A."""
    return LowRank(state[pair.B] * form.scale, state[pair.A])


def compute_mean_factors(pair: LoraPair, state: State, layout: Layout, cohort: Cohort) -> tuple[Tensor, Tensor]:
    """Return the means (A-bar, B-bar) of the zero-padded factors, with B_k in the unit of the global scale, s_k / s."""
    s = get_lora_form(layout).scale
    total = Fold()
    for share, u in zip(cohort.shares, cohort.updates, strict=True):
        down, up = u.get_trained(pair.A), u.get_trained(pair.B) * (u.scale / s)
        total.add({"A": pad_ranks(down, state[pair.A]), "B": pad_ranks(up, state[pair.B])}, share)
    mean = total.mean()
    return mean["A"], mean["B"]


def compute_best_factors(
    pair: LoraPair,
    matrix: LowRank,
    state: State,
    layout: Layout,
    method: str,
    keep_remainder: bool = False,
    energy: float = 1.0,
) -> Gathered:
    """Return the factors of the best approximation U S V^T at the global rank: B = U S / s, A = V^T.

    If a singular value is 0 or does not count, B's column is 0 and A keeps its present row. A rank that is 0 in both
    factors would have no gradient and would never train again.

    Args:
        pair: the layer.
        matrix: the matrix to approximate.
        state: the global state, with the present A.
        layout: the trainable tensors.
        method: of the SVD, one of `fedpeft.peft.low_rank.METHODS`.
        keep_remainder: whether the exact difference is returned as the residual.
        energy: share of the matrix' squared norm, in (0, 1], that the first ranks must contain. Others do not count.
    """
    form = get_lora_form(layout)
    svd = compute_truncated_svd(matrix, form.rank, method)
    if energy < 1:
        svd = select_leading_triplets(svd, energy * matrix.norm() ** 2)
    down = torch.where(svd.S[:, None] > 0, svd.Vt, state[pair.A].to(svd.Vt.dtype))
    up = svd.U * svd.S / form.scale
    remainder = stack([matrix, svd.to_low_rank().scale(-1.0)]) if keep_remainder else None
    return Gathered(down, up, remainder)


def select_leading_triplets(svd: TruncatedSVD, energy: float) -> TruncatedSVD:
    """Keep the fewest leading triplets, at least one, whose squared singular values add up to `energy`; zero others."""
    reached = svd.S.double().square().cumsum(0)
    counts = (reached - svd.S.double().square() < energy).to(svd.S.dtype)
    counts[0] = 1.0
    return TruncatedSVD(svd.U * counts, svd.S * counts, svd.Vt * counts[:, None])

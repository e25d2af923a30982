"""FSLoRA: federated sketching. Each client trains random ranks of the global factors (Fang et al., arXiv 2501.19389).

    client k holds s B S_k A,   S_k = (r / r_k) sum_{j in I_k} e_j e_j^T,   I_k: r_k of the r ranks, drawn each round
    A <- A + sum_k p_k S(dA_k),   B <- B + sum_k p_k S(dB_k),   S puts what was trained back to the ranks I_k

E[S_k] is the identity, so what clients hold is unbiased, and every rank is trained by everyone in turn: no SVD, no
truncation, and a client of rank r_k holds, computes and sends that many ranks only. A rank counts as unchanged for
those who don't hold it (the mean is over all clients). With equal ranks it is fedit. Not exact: a mean of factors.

Under one alpha for all, the scale alpha / r_k of a client's own form is the sketch's r / r_k; other alphas are made up
for in B. Deviations: weights p_k, where the paper has equal ones; AdamW and SGD step on B as the client holds it, where
the authors' code multiplies B by the sketch and its gradient by the square; in that code, as it is published, the
comparison with names of tensors never matches, so that it sketches nothing.

Use it if clients have different ranks and each rank should be trained by everyone in turn.
"""

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from fedpeft.aggregation.factors import draw_ranks, get_lora_form, select_leading_ranks
from fedpeft.aggregation.strategy import LinearStrategy
from fedpeft.aggregation.update import Update
from fedpeft.peft.adapter import AdapterShape, Layout, State


@dataclass(frozen=True)
class FSLoRA(LinearStrategy):
    """The mean of the changes of random ranks."""

    mixed_ranks: ClassVar[bool] = True

    def choose_ranks(
        self, layout: Layout, form: AdapterShape | None, seed: int, round_number: int, client: int
    ) -> tuple[int, ...]:
        """Return I_k in ascending order."""
        return draw_ranks(layout, form, seed, round_number, client)

    def dispatch(self, state: State, layout: Layout, form: AdapterShape | None, round_number: int) -> State:
        """The leading ranks, which are those of the client, and B times r / r_k."""
        sent = select_leading_ranks(state, layout, form)
        for pair in layout.pairs:
            sent[pair.B] = sent[pair.B] * _sketch(layout, form)
        return sent

    def contribution(self, update: Update, state: State, layout: Layout) -> State:
        """The changes of the client's ranks in the unit of the global factors, and 0 elsewhere."""
        unit = update.scale / get_lora_form(layout).scale / _sketch(layout, update.form)
        axes = {"lora_A": 0, "lora_B": 1}
        result = {}
        for name, delta in update.delta.items():
            role = layout.by_name[name].role
            in_unit = delta * unit if role == "lora_B" else delta
            result[name] = _place_ranks(in_unit, update.ranks, axes[role], state[name]) if role in axes else in_unit
        return result


def _sketch(layout: Layout, form: AdapterShape | None) -> float:
    return 1.0 if form is None else get_lora_form(layout).rank / form.rank


def _place_ranks(part: Tensor, ranks: tuple[int, ...], axis: int, like: Tensor) -> Tensor:
    index = torch.tensor(ranks or range(part.shape[axis]))
    return part.new_zeros(like.shape).index_copy_(axis, index, part)


part = FSLoRA

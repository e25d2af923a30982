"""FSLoRA: federated sketching. Each client trains random ranks of the global factors (Fang et al., arXiv 2501.19389).

    client k holds s B S_k A,   S_k = (r / r_k) sum_{j in I_k} e_j e_j^T,   I_k: r_k of the r ranks, drawn each round
    A <- A + sum_k p_k S(dA_k),   B <- B + sum_k p_k S(dB_k),   S puts what was trained back to the ranks I_k

E[S_k] is the identity, so the clients' factors are unbiased, and everyone trains every rank in turn, without SVD or
truncation. A client of rank r_k holds, computes and sends only r_k ranks. A rank counts as unchanged for clients that
do not hold it (the mean is over all clients). With equal ranks it is fedit. The rule is not exact, because it averages
factors.

With one alpha for all, the scale alpha / r_k of a client's own form is the sketch's r / r_k; B compensates for other
alphas. Deviations: weights are p_k, where the paper has equal ones. AdamW and SGD step on the client's B. The authors'
code multiplies B by the sketch and its gradient by the square; in the published version, its comparison of tensor names
never matches, so it sketches nothing.

Use it if clients have different ranks and each rank should be trained by everyone in turn.
"""

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from fedpeft.aggregation.factors import draw_ranks, get_lora_form
from fedpeft.aggregation.strategy import LinearStrategy
from fedpeft.aggregation.update import Update, select_leading_ranks
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
        """Return the leading ranks, which are the client's, with B times r / r_k."""
        sent = select_leading_ranks(state, layout, form)
        for pair in layout.pairs:
            sent[pair.B] = sent[pair.B] * _sketch(layout, form)
        return sent

    def contribution(self, update: Update, state: State, layout: Layout) -> State:
        """Return the changes of the client's ranks in the unit of the global factors, with 0 elsewhere."""
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

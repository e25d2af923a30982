"""What a client of lower rank says about the ranks that it was not sent.

    zero:  nothing is there; its factors are padded with zeros, as dW* = sum_k p_k s_k B_k A_k has it
    keep:  they are as they were; the ranks beyond r_k of the global s B A belong to its share of the update

With `zero` a round in which nobody trains anything still changes the global weight: clients of low rank hand back what
they were sent, which is cut off, and "exact" means only that this dW* is hit. Three clients of one weight with ranks 1,
2 and 4 (random factors of rank 4) change it so by 39 % of its norm, under `hetlora` by 48 %. With `keep` such a round
changes nothing (to 1e-15). `raflora` and the robust rules, which count owners or changes, have no such loss.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, ClassVar

import torch
from torch import Tensor

from fedpeft.aggregation.factors import get_lora_form
from fedpeft.aggregation.strategy import GatherStrategy
from fedpeft.aggregation.update import Cohort, Update, pad_ranks
from fedpeft.parts import setting
from fedpeft.peft.adapter import Layout, LoraPair, State


def declare_missing_ranks() -> Any:
    """The setting `missing_ranks`, the same for all rules that have it."""
    return setting(
        "zero",
        "what a client of lower rank says about the ranks it lacks: zero (exact dW*) or keep (no change)",
        choices=("zero", "keep"),
    )


@dataclass(frozen=True)
class MixedRankStrategy(GatherStrategy):
    """A gathering rule in which clients of lower rank count as zero in the ranks they lack, or as unchanged."""

    missing_ranks: str = declare_missing_ranks()

    mixed_ranks: ClassVar[bool] = True

    def complete_cohort(self, pair: LoraPair, state: State, layout: Layout, cohort: Cohort) -> Cohort:
        """The cohort as the rule reads it: with `keep` every update in the global form."""
        if self.missing_ranks == "zero":
            return cohort
        return replace(cohort, updates=[complete_update(pair, update, state, layout) for update in cohort.updates])


def complete_update(pair: LoraPair, update: Update, state: State, layout: Layout) -> Update:
    """The update of one layer as that of a client of the global form which left the ranks beyond its own alone."""
    form = get_lora_form(layout)
    if update.form is None or update.form == form:
        return update
    unit, rank = update.scale / form.scale, update.form.rank
    A, B = state[pair.A], state[pair.B]
    received = {
        pair.A: torch.cat([update.received[pair.A], A[rank:]]),
        pair.B: torch.cat([update.received[pair.B] * unit, B[:, rank:]], dim=1),
    }
    in_global_unit: dict[str, Tensor] = {
        name: delta * unit if name == pair.B else delta
        for name, delta in update.delta.items()
        if name in (pair.A, pair.B)
    }
    delta = {name: pad_ranks(tensor, state[name]) for name, tensor in in_global_unit.items()}
    return replace(update, form=form, received=received, delta=delta)

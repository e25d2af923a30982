"""How rules count the ranks that a client of lower rank was not sent.

    zero:  as 0; the client's factors are padded with zeros, as in dW* = sum_k p_k s_k B_k A_k
    keep:  as unchanged; the ranks beyond r_k of the global s B A belong to the client's share of the update

With `zero`, a round without any training still changes the global weight, because clients of low rank return cut-off
factors. "Exact" only means that the result equals this dW*. Three clients with equal weights and ranks 1, 2 and 4
(random factors of rank 4) change the weight by 39 % of its norm, under `hetlora` by 48 %. With `keep`, such a round
changes nothing (to 1e-15). `raflora` and the robust rules count owners or changes and have no such loss.
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
    """Return the setting `missing_ranks`, the same for all rules that have it."""
    return setting(
        "zero",
        "how ranks count that a client lacks: zero (exact dW*) or keep (no change)",
        choices=("zero", "keep"),
    )


@dataclass(frozen=True)
class MixedRankStrategy(GatherStrategy):
    """A gathering rule that counts the ranks that a client lacks as zero or as unchanged."""

    missing_ranks: str = declare_missing_ranks()

    mixed_ranks: ClassVar[bool] = True

    def complete_cohort(self, pair: LoraPair, state: State, layout: Layout, cohort: Cohort) -> Cohort:
        """Return the cohort that the rule reads: with `keep`, all updates have the global form."""
        if self.missing_ranks == "zero":
            return cohort
        return replace(cohort, updates=[complete_update(pair, update, state, layout) for update in cohort.updates])


def complete_update(pair: LoraPair, update: Update, state: State, layout: Layout) -> Update:
    """Convert the update of one layer to that of a client of the global form that leaves its further ranks alone."""
    form = get_lora_form(layout)
    if update.form is None or update.form == form:
        return update
    unit, rank = update.scale / form.scale, update.form.rank
    down, up = state[pair.A], state[pair.B]
    received = {
        pair.A: torch.cat([update.received[pair.A], down[rank:]]),
        pair.B: torch.cat([update.received[pair.B] * unit, up[:, rank:]], dim=1),
    }
    in_global_unit: dict[str, Tensor] = {
        name: delta * unit if name == pair.B else delta
        for name, delta in update.delta.items()
        if name in (pair.A, pair.B)
    }
    delta = {name: pad_ranks(tensor, state[name]) for name, tensor in in_global_unit.items()}
    return replace(update, form=form, received=received, delta=delta)

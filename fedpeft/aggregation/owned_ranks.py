"""Rules whose clients hold all ranks of the global factors and train some of them: each rank is its owners' mean.

    a_j <- a_j + sum_{k: j in K_k} p_k da_kj / sum_{k: j in K_k} p_k,   b_j likewise; j that nobody trains stays

with K_k the ranks of client k in the round (`RankSchedule`), as many as its form has. A client also computes with the
other ranks, but its steps leave them alone.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import ClassVar

import torch

from fedpeft.aggregation.factors import get_lora_form, place_ranks, select_ranks
from fedpeft.aggregation.strategy import LinearStrategy, Strategy
from fedpeft.aggregation.update import Fold, Update
from fedpeft.peft.adapter import AdapterShape, Layout, State


@dataclass(frozen=True)
class OwnedRanks(LinearStrategy, ABC):
    """The mean of each rank over the clients that trained it."""

    mixed_ranks: ClassVar[bool] = True

    @abstractmethod
    def choose_ranks(
        self, layout: Layout, form: AdapterShape | None, seed: int, round_number: int, client: int
    ) -> tuple[int, ...]:
        """Return K_k in ascending order; empty: all ranks. See `RankSchedule`."""

    def fold(self, total: Fold, update: Update, state: State, layout: Layout) -> None:
        """Add the changes of the client's ranks with its weight, and the weight to each of these ranks."""
        unit = update.scale / get_lora_form(layout).scale
        delta = {n: d * unit if layout.by_name[n].role == "lora_B" else d for n, d in update.delta.items()}
        owned = {name: torch.ones_like(tensor) for name, tensor in update.delta.items()}
        if update.ranks:  # the update contains all ranks, or the client's alone
            owned = place_ranks(select_ranks(owned, layout, find_owned_ranks(update)), layout, update.ranks)
        else:
            owned = place_ranks(owned, layout, ())
        total.add_owned(place_ranks(delta, layout, update.ranks), owned, update.weight)

    def pseudo_gradient(self, total: Fold, layout: Layout) -> State:
        """Return the sums over the owners' weights."""
        return total.compute_owner_mean()


def get_held_form(strategy: Strategy, layout: Layout, form: AdapterShape | None) -> AdapterShape | None:
    """Return the form in which a client that trains a `form` holds the global factors: with `OwnedRanks`, all ranks."""
    return layout.form if isinstance(strategy, OwnedRanks) else form


def find_owned_ranks(update: Update) -> tuple[int, ...]:
    """Return the positions of the client's ranks in the factors of the update: the first ones, or in all ranks."""
    form = update.form
    return update.ranks if form is None or form.rank > len(update.ranks) else tuple(range(len(update.ranks)))

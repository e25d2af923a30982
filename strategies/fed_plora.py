"""Fed-PLoRA: a rank-R adapter as R parallel adapters of rank 1, of which each client trains some (arXiv 2602.16936).

    client k holds  W0 + s sum_{j=1..R} b_j a_j^T   and trains the r_k modules j in K_k, drawn anew each round
    a_j <- a_j + sum_{k: j in K_k} p_k da_kj / sum_{k: j in K_k} p_k,   b_j likewise; j that nobody trains stays

*Select N, fold*: the modules outside K_k are part of the client's frozen weights, so nobody starts from a truncated
model, whatever rank it can train; r_k of R modules are sent up, all R come down. With equal ranks it is fedit. Not
exact, as a mean of factors. Written from a description of the paper, without its code.

Folding is done by holding the other modules and leaving them alone: the same numbers as adding them to W0, and exact
in any precision of the base. All clients have the global scale alpha / R. Weights are p_k among a module's owners,
where the paper has equal ones (weighting=uniform).
"""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import ClassVar

import torch

from fedpeft import seeds
from fedpeft.aggregation.factors import lora_form, ranks_of, ranks_placed
from fedpeft.aggregation.strategy import LinearStrategy
from fedpeft.aggregation.update import Fold, Update
from fedpeft.peft.adapter import ClientForm, Layout, State

OWNED = "owned/"
"""Before the names of the sums of the owners' weights."""


@dataclass(frozen=True)
class FedPLoRA(LinearStrategy):
    """The mean of each rank over the clients that trained it."""

    mixed_ranks: ClassVar[bool] = True
    moves_ranks: ClassVar[bool] = True

    def check(self, layout: Layout, forms: Iterable[ClientForm | None]) -> None:
        """Refuse what has no factors.

        Raises:
            ConfigError: the PEFT method has none, or a client's rank exceeds the global one.
        """
        lora_form(layout)
        super().check(layout, forms)

    def ranks(self, layout: Layout, form: ClientForm | None, seed: int, round: int, client: int) -> tuple[int, ...]:
        """K_k, in ascending order."""
        rank = lora_form(layout).rank
        if form is None or form.rank == rank:
            return ()
        drawn = seeds.generator(seed, "ranks", round, client).permutation(rank)[: form.rank]
        return tuple(sorted(int(j) for j in drawn))

    def held_form(self, layout: Layout, form: ClientForm | None) -> ClientForm | None:
        """All ranks, whatever it trains."""
        return layout.form

    def fold(self, total: Fold, update: Update, state: State, layout: Layout) -> None:
        """The changes of the client's ranks, and whose they are."""
        unit = update.scale / lora_form(layout).scale
        delta = {n: d * unit if layout.by_name[n].role == "lora_B" else d for n, d in update.delta.items()}
        owned = {name: torch.ones_like(tensor) for name, tensor in update.delta.items()}
        if update.ranks:  # of those that are in the update, or of all that are in it
            owned = ranks_placed(ranks_of(owned, layout, own_of(update)), layout, update.ranks)
        else:
            owned = ranks_placed(owned, layout, ())
        contribution = ranks_placed(delta, layout, update.ranks)
        total.add(contribution | {OWNED + name: tensor for name, tensor in owned.items()}, update.weight)

    def pseudo_gradient(self, total: Fold, layout: Layout) -> State:
        """Sums over the owners' weights."""
        return {
            name: (total.sums[name] / total.sums[OWNED + name].clamp_min(1e-30)).to(total.dtypes[name])
            for name in layout.names
            if name in total.sums
        }


def own_of(update: Update) -> tuple[int, ...]:
    """Where in the update's factors its ranks stand: in front, or, where it holds all ranks, in their places."""
    form = update.form
    return update.ranks if form is None or form.rank > len(update.ranks) else tuple(range(len(update.ranks)))


part = FedPLoRA

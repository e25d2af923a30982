"""The mean over owners: each entry is averaged over the clients that hold it, by how much they have trained it.

    x_j <- x_j + sum_k p_k o_kj delta_kj / sum_k p_k o_kj

For prompts and prefixes of different lengths: a client of length n_k holds the first n_k positions, of which o_kj = 1,
and of the others 0. For adamix o_kj is the share of the client's passes that have drawn the expert, so that an expert
is averaged by how often it was trained; that is drawn from the run's seed, and the server knows it without being told.
Where all hold all, it is the plain mean (FedAvg). Own rule; the idea is that of raflora's rank slices, and an entry
that nobody in the cohort has trained stays as it is.

Use it for prompts or prefixes of different lengths, and with `adamix`.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from fedpeft.aggregation.strategy import LinearStrategy
from fedpeft.aggregation.update import Fold, Update, pad_ranks
from fedpeft.errors import ConfigError
from fedpeft.peft.adapter import AdapterShape, Layout, State


@dataclass(frozen=True)
class OwnedMean(LinearStrategy):
    """The mean of each entry over the clients that hold it."""

    needs_lora: ClassVar[bool] = False
    mixed_ranks: ClassVar[bool] = True
    counts_owned: ClassVar[bool] = True

    def check(self, layout: Layout, forms: Iterable[AdapterShape | None]) -> None:
        """Refuse LoRA factors, whose ranks raflora treats so.

        Raises:
            ConfigError: the PEFT method has factors, or a client is longer than the global prompt.
        """
        if layout.pairs:
            raise ConfigError("FP1493 owned_mean is for prompts and prefixes; raflora does the same for LoRA ranks")
        super().check(layout, forms)

    def contribution(self, update: Update, state: State, layout: Layout) -> State:
        """The delta by how much it is the client's, with zeros where it holds nothing."""
        return {
            name: pad_ranks(delta * _get_share(update, name, delta), state[name])
            for name, delta in update.delta.items()
        }

    def fold(self, total: Fold, update: Update, state: State, layout: Layout) -> None:
        """The contribution, and who made it."""
        owned = {
            name: pad_ranks(torch.ones_like(d) * _get_share(update, name, d), state[name])
            for name, d in update.delta.items()
        }
        total.add_owned(self.contribution(update, state, layout), owned, update.weight)

    def pseudo_gradient(self, total: Fold, layout: Layout) -> State:
        """Sums over the owners' weights."""
        return total.compute_owner_mean()


def _get_share(update: Update, name: str, like: Tensor) -> Tensor:
    return update.owned[name].to(like) if name in update.owned else like.new_ones(())


part = OwnedMean

"""The mean over owners: each entry is averaged over the clients that hold it, weighted by how much they trained it.

    x_j <- x_j + sum_k p_k o_kj delta_kj / sum_k p_k o_kj

With prompts and prefixes of different lengths, a client of length n_k holds the first n_k positions: o_kj = 1 for these
and 0 for the others. With adamix, o_kj is the share of the client's passes that drew the expert, so an expert is
averaged by how often it was trained. The draws depend on the run's seed, so the server computes o_kj without a message.
If all clients hold all entries, it is the plain mean (FedAvg). Own rule, with the idea of raflora's rank slices. An
entry that nobody in the cohort trained does not change.

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
        """Refuse LoRA factors, for which raflora does the same.

        Raises:
            ConfigError: the PEFT method has factors, or a client is longer than the global prompt.
        """
        if layout.pairs:
            raise ConfigError("FP1493 owned_mean is for prompts and prefixes; raflora does the same for LoRA ranks")
        super().check(layout, forms)

    def contribution(self, update: Update, state: State, layout: Layout) -> State:
        """Return the delta times the client's share of each entry, with zeros where it holds nothing."""
        return {
            name: pad_ranks(delta * _get_share(update, name, delta), state[name])
            for name, delta in update.delta.items()
        }

    def fold(self, total: Fold, update: Update, state: State, layout: Layout) -> None:
        """Add the contribution and the client's shares."""
        owned = {
            name: pad_ranks(torch.ones_like(d) * _get_share(update, name, d), state[name])
            for name, d in update.delta.items()
        }
        total.add_owned(self.contribution(update, state, layout), owned, update.weight)

    def pseudo_gradient(self, total: Fold, layout: Layout) -> State:
        """Return the sums over the owners' weights."""
        return total.compute_owner_mean()


def _get_share(update: Update, name: str, like: Tensor) -> Tensor:
    return update.owned[name].to(like) if name in update.owned else like.new_ones(())


part = OwnedMean

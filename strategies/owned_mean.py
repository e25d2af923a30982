"""The mean over owners: each position of a prompt is averaged over the clients that hold it.

    x_j <- x_j + sum_{k: n_k >= j} p_k delta_kj / sum_{k: n_k >= j} p_k

For prompts and prefixes of different lengths: a client of length n_k holds the first n_k positions. With equal lengths
it is the plain mean (FedAvg). Own rule; the idea is that of raflora's rank slices, and a position that nobody in the
cohort holds stays as it is.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import ClassVar

import torch

from fedpeft.aggregation.strategy import LinearStrategy
from fedpeft.aggregation.update import Fold, Update, padded
from fedpeft.errors import ConfigError
from fedpeft.peft.adapter import ClientForm, Layout, State

OWNED = "owned/"
"""Before the names of the sums of the owners' weights."""


@dataclass(frozen=True)
class OwnedMean(LinearStrategy):
    """The mean of each entry over the clients that hold it."""

    needs_lora: ClassVar[bool] = False
    mixed_ranks: ClassVar[bool] = True

    def check(self, layout: Layout, forms: Iterable[ClientForm | None]) -> None:
        """Refuse LoRA factors, whose ranks raflora treats so.

        Raises:
            ConfigError: the PEFT method has factors, or a client is longer than the global prompt.
        """
        if layout.pairs:
            raise ConfigError("owned_mean is for prompts and prefixes; raflora does the same for LoRA ranks")
        super().check(layout, forms)

    def contribution(self, update: Update, state: State, layout: Layout) -> State:
        """The delta, with zeros where the client holds nothing."""
        return {name: padded(delta, state[name]) for name, delta in update.delta.items()}

    def fold(self, total: Fold, update: Update, state: State, layout: Layout) -> None:
        """The contribution, and who made it."""
        owned = {OWNED + name: padded(torch.ones_like(d), state[name]) for name, d in update.delta.items()}
        total.add(self.contribution(update, state, layout) | owned, update.weight)

    def pseudo_gradient(self, total: Fold, layout: Layout) -> State:
        """Sums over the owners' weights."""
        return {
            name: (total.sums[name] / total.sums[OWNED + name].clamp_min(1e-30)).to(total.dtypes[name])
            for name in layout.names
            if name in total.sums
        }


part = OwnedMean

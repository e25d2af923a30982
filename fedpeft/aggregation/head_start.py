"""How the classification head starts: from nothing, or in closed form from statistics that add up over clients.

A zero head drifts under label skew: every client pulls it towards its own classes. Statistics of the frozen features
that are sums over rows give the head of the pooled data exactly, whatever the partition (the idea of FedNCM and
Fed3R), in one exchange before round 1. The statistics are payloads like any other: their bytes count.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import ClassVar

from torch import Tensor

from fedpeft.aggregation.whitening import Whitening
from fedpeft.errors import ConfigError
from fedpeft.parts import Family, name_of
from fedpeft.peft.adapter import State

VARIANCE = "variance"
"""Among the statistics of a bounded head: of the noise in each entry of the others, (1,). It adds up as they do."""


class HeadStart(ABC):
    """One way to start. Subclasses are frozen dataclasses; their fields are the user's settings."""

    exchanges: ClassVar[bool] = True
    """Whether the clients are asked for statistics."""

    bounded: ClassVar[bool] = False
    """Whether one row more or less changes the statistics by at most 1 in norm, all tensors but `VARIANCE` together, so
    that noise can hide it; what the sums hold of noise, `solve` is told by their `VARIANCE`."""

    codecs: ClassVar[Mapping[str, str]] = {"": "bf16"}
    """How the statistics are encoded in runs whose updates are lossy, by the preset of the updates; "": all others."""

    def codec(self, preset: str) -> str:
        """The codec of the statistics in a run whose updates are encoded by `preset`, or by no preset ("")."""
        return self.codecs.get(preset, self.codecs[""])

    def fitted(self, targets: str) -> HeadStart:
        """The same head for labels that are "numbers" or "labels", several a row, instead of classes; by default none.

        Raises:
            ConfigError: it starts from classes.
        """
        raise ConfigError(
            f"head={name_of(type(self))} starts from classes, and these rows have "
            f"{'numbers' if targets == 'numbers' else 'several labels each'}; take --head ridge or zero"
        )

    def compact(self) -> HeadStart:
        """The same head from statistics that bear such a codec; by default as it is."""
        return self

    @abstractmethod
    def shapes(self, width: int, classes: int, rows: int) -> dict[str, tuple[int, ...]]:
        """Shapes of the statistics of a client with `rows` rows, by name."""

    @abstractmethod
    def statistics(self, features: Tensor, labels: Tensor, classes: int) -> State:
        """Statistics of one client's rows: features (n, width), labels (n,), or what `fitted` has said they are, or
        targets (n, classes) to be met."""

    def importance(self, statistics: State) -> State:
        """How much an error in each entry matters, for the codec (see `Codec.encode`); by default all alike."""
        return {}

    def additive(self, statistics: State) -> State:
        """What of a client's statistics adds up over clients; by default they do themselves."""
        return statistics

    @abstractmethod
    def class_counts(self, total: State) -> Tensor:
        """Rows per class, (classes,), as the sums over all clients tell; empty where they don't."""

    def hidden(self, total: State) -> list[int]:
        """Classes of which the sums over all clients say nothing for noise; by default there is none."""
        return []

    @abstractmethod
    def solve(self, total: State, width: int, classes: int) -> State:
        """`head.weight` (classes, width) and `head.bias` (classes,), fp64, from the sums over all clients."""

    def whitened_directions(self, width: int) -> int:
        """In how many directions of features of this width its sums tell how they vary; by default in none."""
        return 0

    def whitening(self, total: State, width: int) -> Whitening:
        """How features are made to vary alike in these directions, from the sums over all clients.

        Raises:
            ConfigError: they tell nothing of it.
        """
        raise ConfigError(f"head={name_of(type(self))} does not tell how features vary; take --head private_ridge")


HEADS: Family[HeadStart] = Family("fedpeft.aggregation.heads", "head", kind=HeadStart)
"""All ways, by file name."""

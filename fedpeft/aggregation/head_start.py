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
from fedpeft.families import HEADS as HEADS
from fedpeft.parts import name_of
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

    fits_labels: ClassVar[bool] = False
    """Whether it is the regression onto one-hot labels, which is weak for many classes."""

    codecs: ClassVar[Mapping[str, str]] = {"": "bf16"}
    """How the statistics are encoded in runs whose updates are lossy, by the preset of the updates; "": all others."""

    @property
    def predicts_targets(self) -> bool:
        """Whether the head's outputs are the regression values themselves, and not logits of classes."""
        return False

    def codec(self, preset: str) -> str:
        """The codec of the statistics in a run whose updates are encoded by `preset`, or by no preset ("")."""
        return self.codecs.get(preset, self.codecs[""])

    def fitted(self, targets: str) -> HeadStart:
        """The same head for labels that are "numbers" or "labels", several a row, instead of classes; by default none.

        Raises:
            ConfigError: it starts from classes.
        """
        raise ConfigError(
            f"FP1013 head={name_of(type(self))} starts from classes, and these rows have "
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
        raise ConfigError(
            f"FP1014 head={name_of(type(self))} does not tell how features vary; take --head private_ridge"
        )


def compute_statistics(head: HeadStart, features: Tensor, labels: Tensor, outputs: tuple[int, ...], rows: int) -> State:
    """The statistics of a client's rows; refuses those that are not what the head says of them.

    Args:
        head: which may be anybody's.
        features, labels: of the rows (`HeadStart.statistics`).
        outputs: shape of the model's head, (classes, width).
        rows: how many the client has.

    Raises:
        ConfigError: names the head and what is missing, of another shape, or not finite.
    """
    classes, width = outputs
    made, shapes = head.statistics(features, labels, classes), head.shapes(width, classes, rows)
    found = {name: tuple(tensor.shape) for name, tensor in made.items()}
    own = f"the head {name_of(type(head))} makes"
    for name in sorted(found.keys() | shapes.keys()):
        if found.get(name) != shapes.get(name):
            raise ConfigError(
                f"FP1015 {own} statistics whose {name} is {found.get(name, 'missing')}, and its shapes say "
                f"{shapes.get(name, 'nothing of it')}: statistics and shapes have to agree"
            )
        if not made[name].is_floating_point():
            raise ConfigError(f"FP1016 {own} statistics whose {name} is {made[name].dtype}: give numbers, by .float()")
        if not bool(made[name].isfinite().all()):
            raise ConfigError(f"FP1017 {own} statistics whose {name} is not finite: look at its statistics")
    return made


def check_solved(head: HeadStart, made: State, start: State) -> None:
    """Refuse a head that would fit by being stretched, leave a part as it was, or hold no numbers.

    Args:
        head: which may be anybody's.
        made: what it has solved for.
        start: the adapter's tensors before, with `head.weight` and, where there is one, `head.bias`.

    Raises:
        ConfigError: names the head and the tensor, and says what is wrong.
    """
    name = name_of(type(head))
    wanted = {tensor for tensor in ("head.weight", "head.bias") if tensor in start}
    if missing := sorted(wanted - made.keys()):
        raise ConfigError(
            f"FP1018 the head {name} leaves out {missing[0]}: solve has to give {' and '.join(sorted(wanted))}"
        )
    if more := sorted(made.keys() - wanted):
        raise ConfigError(
            f"FP1019 the head {name} makes {more[0]!r:.80}; solve has to give {' and '.join(sorted(wanted))}"
        )
    for tensor in sorted(wanted):
        if made[tensor].shape != start[tensor].shape:
            raise ConfigError(
                f"FP1020 the head {name} makes {tensor} of shape {tuple(made[tensor].shape)} where the model has "
                f"{tuple(start[tensor].shape)}"
            )
        if not bool(made[tensor].isfinite().all()):
            raise ConfigError(
                f"FP1021 the head {name} makes a {tensor} that is not finite: look at its solve, or take another --head"
            )

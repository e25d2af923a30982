"""Start of the classification head: zeros, or a closed form of statistics that add up over clients.

A zero head drifts under label skew, because every client pulls it towards its own classes. Sums over the examples'
frozen features give the head of the pooled data exactly, whatever the partition, in one exchange before round 1. (This
is the idea of FedNCM and Fed3R.) The statistics are payloads like any other, so their bytes count.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import ClassVar, Protocol, runtime_checkable

import torch
from torch import Tensor

from fedpeft.aggregation.whitening import Whitening
from fedpeft.errors import ConfigError
from fedpeft.parts import name_of
from fedpeft.peft.adapter import State

VARIANCE = "variance"
"""Name of a statistic of a bounded head: the variance of the noise in each entry of the others, (1,). It adds up."""


class HeadStart(ABC):
    """One start of the head. Subclasses are frozen dataclasses; their fields are the user's settings.

    What some heads do in addition are the protocols below. A head has such an ability if it defines the methods.
    """

    exchanges: ClassVar[bool] = True
    """Whether clients send statistics."""

    bounded: ClassVar[bool] = False
    """Whether one example changes the statistics by at most 1 in norm, so that noise can hide it.

    The norm is that of all tensors together, without `VARIANCE`, which tells `solve` how much noise the sums contain.
    """

    fits_labels: ClassVar[bool] = False
    """Whether the head is the regression onto one-hot labels, which is weak for many classes."""

    codecs: ClassVar[Mapping[str, str]] = {"": "bf16"}
    """Codec of the statistics in runs with lossy updates, by the preset of the updates; "": all other presets."""

    def codec(self, preset: str) -> str:
        """Return the codec of the statistics in a run whose updates are encoded by `preset`; "": by no preset."""
        return self.codecs.get(preset, self.codecs[""])

    def fit_to_targets(self, targets: str) -> HeadStart:
        """Return this head for other labels than classes: "numbers", or "labels", several for each example.

        Raises:
            ConfigError: the head starts from classes, as by default.
        """
        raise ConfigError(
            f"FP1013 head={name_of(type(self))} starts from classes, and these examples have "
            f"{'numbers' if targets == 'numbers' else 'several labels each'}; use --head ridge or zero"
        )

    def compact(self) -> HeadStart:
        """Return this head with statistics that tolerate a lossy codec; by default the head itself."""
        return self

    @abstractmethod
    def shapes(self, width: int, classes: int, rows: int) -> dict[str, tuple[int, ...]]:
        """Return the shapes of the statistics of a client with `rows` examples, by name."""

    @abstractmethod
    def statistics(self, features: Tensor, labels: Tensor, classes: int) -> State:
        """Compute the statistics of one client.

        Args:
            features: (n, width).
            labels: classes (n,), numbers (n,) or labels as in `fit_to_targets`, or targets (n, classes) of the outputs.
            classes: number of outputs.
        """

    def class_counts(self, total: State) -> Tensor:
        """Return the examples per class, (classes,), from the sums over all clients; by default empty: unknown."""
        return torch.zeros(0)

    @abstractmethod
    def solve(self, total: State, width: int, classes: int) -> State:
        """Compute `head.weight` (classes, width) and `head.bias` (classes,), fp64, from the sums over all clients."""


@runtime_checkable
class ConvertsStatistics(Protocol):
    """A client's statistics add up over clients only after a conversion."""

    def additive(self, statistics: State) -> State:
        """Convert a client's statistics to tensors that add up over clients."""


@runtime_checkable
class PredictsTargets(Protocol):
    """The head's outputs can be the regression values themselves, and not logits of classes."""

    @property
    def predicts_targets(self) -> bool:
        """Whether they are, with the head's settings."""


@runtime_checkable
class WeighsErrors(Protocol):
    """Errors in some entries of the statistics matter more to the codec than errors in others."""

    def importance(self, statistics: State) -> State:
        """Return how much an error in each entry matters (`Codec.encode`); missing tensors: all errors alike."""


@runtime_checkable
class HidesClasses(Protocol):
    """The noise of a private start can hide classes, which the head then begins without."""

    def find_hidden_classes(self, total: State) -> list[int]:
        """Return the classes that noise hides in the sums over all clients."""


@runtime_checkable
class DescribesVariation(Protocol):
    """The sums describe how features vary, so that a mechanism can whiten them."""

    def whitened_directions(self, width: int) -> int:
        """Return in how many directions the sums describe how features of this width vary."""

    def compute_whitening(self, total: State, width: int) -> Whitening:
        """Compute the map that makes features vary alike in these directions, from the sums over all clients."""


def convert_to_summands(head: HeadStart, statistics: State) -> State:
    """Return a client's statistics as tensors that add up over clients."""
    return head.additive(statistics) if isinstance(head, ConvertsStatistics) else statistics


def require_variation(head: HeadStart) -> DescribesVariation:
    """Return the head, whose sums must describe how features vary.

    Raises:
        ConfigError: they do not.
    """
    if not isinstance(head, DescribesVariation):
        raise ConfigError(
            f"FP1014 head={name_of(type(head))} does not measure how features vary, which whitening needs; use "
            "--head private_ridge"
        )
    return head


def compute_statistics(head: HeadStart, features: Tensor, labels: Tensor, outputs: tuple[int, ...], rows: int) -> State:
    """Compute the statistics of a client's examples, and refuse those that differ from the head's declaration.

    Args:
        head: the head start, which may be a plugin's.
        features: of the examples (`HeadStart.statistics`).
        labels: of the examples.
        outputs: shape of the model's head, (classes, width).
        rows: number of the client's examples.

    Raises:
        ConfigError: a statistic is missing, has another shape, or is not finite.
    """
    classes, width = outputs
    made, shapes = head.statistics(features, labels, classes), head.shapes(width, classes, rows)
    found = {name: tuple(tensor.shape) for name, tensor in made.items()}
    own = f"the head {name_of(type(head))} makes"
    for name in sorted(found.keys() | shapes.keys()):
        if found.get(name) != shapes.get(name):
            raise ConfigError(
                f"FP1015 {own} the statistic {name}: {found.get(name, 'missing')}, but its shapes() declares "
                f"{shapes.get(name, 'none')}; make both equal"
            )
        if not made[name].is_floating_point():
            raise ConfigError(f"FP1016 {own} the statistic {name} as {made[name].dtype}; convert it with .float()")
        if not bool(made[name].isfinite().all()):
            raise ConfigError(
                f"FP1017 {own} the statistic {name} with values that are not finite; correct its statistics()"
            )
    return made


def check_solved(head: HeadStart, made: State, start: State) -> None:
    """Refuse a solved head with missing or additional tensors, other shapes, or values that are not finite.

    Args:
        head: the head start, which may be a plugin's.
        made: the tensors that it solved for.
        start: the adapter's tensors before, with `head.weight` and, if the model has one, `head.bias`.

    Raises:
        ConfigError: names the head, the tensor and the fault.
    """
    name = name_of(type(head))
    wanted = {tensor for tensor in ("head.weight", "head.bias") if tensor in start}
    if missing := sorted(wanted - made.keys()):
        raise ConfigError(
            f"FP1018 the head {name} does not return {missing[0]}; its solve() must return "
            f"{' and '.join(sorted(wanted))}"
        )
    if more := sorted(made.keys() - wanted):
        raise ConfigError(
            f"FP1019 the head {name} returns {more[0]!r:.80}; its solve() must return {' and '.join(sorted(wanted))}"
        )
    for tensor in sorted(wanted):
        if made[tensor].shape != start[tensor].shape:
            raise ConfigError(
                f"FP1020 the head {name} returns {tensor} of shape {tuple(made[tensor].shape)}; its shape in "
                f"the model is {tuple(start[tensor].shape)}"
            )
        if not bool(made[tensor].isfinite().all()):
            raise ConfigError(
                f"FP1021 the head {name} returns values of {tensor} that are not finite; correct its solve(), "
                "or choose another --head"
            )

"""The best state of a run on the validation set, the start included.

A run that keeps it never ends below the start on this set.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Any

import torch

from fedpeft.peft.adapter import State
from fedpeft.reporting.observer import Metrics

A_ROW = 1.5
"""Difference in the number of correct examples that exceeds one, in floating point."""

CLEARLY_LOWER = 0.9
"""Ratio of two validation losses below which the lower one is lower by more than chance (`experiments/harm`)."""

_ROUND, _SINCE, _LOSS, _ACCURACY = "round", "since", "loss", "accuracy"


@dataclass(frozen=True)
class BestState:
    """A state with its validation metrics.

    Attributes:
        round: after which it was the global state; 0: the start.
        metrics: on the validation set.
        adapter: the global state.
        residual: what was in the base then, by module.
        since: evaluations after it that found nothing better.
    """

    round: int
    metrics: Metrics
    adapter: State
    residual: State
    since: int = 0

    def after(self, other: BestState, by_accuracy: bool) -> BestState:
        """Return the better of this and a later state: by accuracy and then loss, or by loss alone.

        By accuracy, a later state must beat the start clearly; see `_is_better_than_start`.
        """
        judged = by_accuracy and self.round == 0 and not math.isnan(self.metrics.accuracy)
        if judged and not _is_better_than_start(self.metrics, other.metrics):
            return replace(self, since=self.since + 1)
        if _get_quality(other.metrics, by_accuracy) > _get_quality(self.metrics, by_accuracy):
            return other
        return replace(self, since=self.since + 1)

    def to_tensors(self) -> State:
        """Return the state as tensors by name; copies, since a checkpoint also holds the last state."""
        numbers = {
            _ROUND: self.round,
            _SINCE: self.since,
            _LOSS: self.metrics.loss,
            _ACCURACY: self.metrics.accuracy,
        }
        state = {name: torch.tensor(number, dtype=torch.float64) for name, number in numbers.items()}
        state |= {f"adapter/{name}": tensor.clone() for name, tensor in self.adapter.items()}
        return state | {f"residual/{module}": tensor.clone() for module, tensor in self.residual.items()}

    @classmethod
    def from_tensors(cls, state: State) -> BestState | None:
        """Return the state that `to_tensors` has written; None: the tensors are empty."""
        if not state:
            return None
        parts: dict[str, State] = {"adapter": {}, "residual": {}}
        for name, tensor in state.items():
            kind, slash, rest = name.partition("/")
            if slash:
                parts[kind][rest] = tensor
        metrics = Metrics(float(state[_LOSS]), float(state[_ACCURACY]))
        return cls(int(state[_ROUND]), metrics, parts["adapter"], parts["residual"], int(state[_SINCE]))


def summarize_validation(best: BestState | None) -> dict[str, Any]:
    """Return the validation metrics of the state that a run keeps, for its summary; empty: it keeps the last one."""
    return {"validation_loss": best.metrics.loss, "validation_accuracy": best.metrics.accuracy} if best else {}


def _is_better_than_start(start: Metrics, later: Metrics) -> bool:
    """Return whether a later state is better than the start by more than chance.

    The start comes in closed form from all clients' examples. A later state replaces it if at least two more examples
    are right (one, if their number is not known). It also does so if no fewer are right and the loss is lower by at
    least a tenth. The standard error of a difference of one example is one example. States whose losses were lower by
    less than a tenth were right on fewer test examples (`experiments/harm`).
    """
    more = (later.accuracy - start.accuracy) * (later.predictions or math.inf)
    lower = later.loss < start.loss and later.loss <= CLEARLY_LOWER * start.loss
    return more > A_ROW or (later.accuracy >= start.accuracy and lower)


def _get_quality(metrics: Metrics, by_accuracy: bool) -> tuple[float, ...]:
    quality = (metrics.accuracy, -metrics.loss) if by_accuracy else (-metrics.loss,)
    return tuple(-math.inf if math.isnan(value) else value for value in quality)  # nothing compares as better than NaN

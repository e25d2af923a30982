"""What some tasks do beyond `Task`. Code asks for an ability, never for the name of a task.

A task has an ability if it defines the members; it need not inherit the protocol.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, Protocol, runtime_checkable

if TYPE_CHECKING:
    from torch import Tensor

    from fedpeft.data.examples import Batch
    from fedpeft.models.task import FederatedModel, RowLosses, Task


@runtime_checkable
class ComparesExamples(Protocol):
    """An example's loss depends on the others of its batch, and its evaluation on all examples."""

    def evaluate_losses(self, model: FederatedModel, batches: Iterable[Batch]) -> Iterator[RowLosses]:
        """Yield losses and correct predictions of all examples of the batches, in order, in one or several parts."""


@runtime_checkable
class StandardizesLabels(Protocol):
    """The model predicts labels in units of their deviation from their mean."""

    @property
    def known(self) -> bool:
        """Whether both were known beforehand and reveal nothing about the examples."""


@runtime_checkable
class PacksExamples(Protocol):
    """Several examples may share a sequence."""

    def packs(self, model: FederatedModel) -> bool:
        """Return whether they may, because `model`, tested on two, does not mix them."""


@runtime_checkable
class DescribesImages(Protocol):
    """The model describes an image, which it reads before the text, in words."""

    @property
    def extra_tokens(self) -> int:
        """Number of positions of an image."""

    def compute_regression_data(self, model: FederatedModel, batch: Batch) -> tuple[Tensor, Tensor]:
        """Compute features (B, width) and targets (B, outputs) of the regression that gives the head in closed form.

        For other tasks, the features are those of the frozen base, and the targets are classes, numbers or labels.
        """


@runtime_checkable
class ConvertsHead(Protocol):
    """The head's outputs need a conversion, which exported heads contain."""

    def export_head(self, head: dict[str, Tensor]) -> dict[str, Tensor]:
        """Convert a head, `weight` (outputs, width) and `bias` (outputs,), so that its outputs need no conversion."""


def count_extra_tokens(task: Task) -> int:
    """Return the number of positions of an example before its text."""
    return task.extra_tokens if isinstance(task, DescribesImages) else 0

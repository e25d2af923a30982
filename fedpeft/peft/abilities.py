"""What some PEFT methods do beyond `PeftMethod`. Code asks for an ability, never for the name of a method.

A method has an ability if it defines the members; it need not inherit the protocol.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar, Protocol, Self, runtime_checkable

from torch import Tensor

from fedpeft.data.examples import Examples
from fedpeft.peft.adapter import AdapterShape, Layout, State
from fedpeft.peft.factor_view import FactorView
from fedpeft.peft.low_rank import LowRank

if TYPE_CHECKING:
    from fedpeft.models.task import FederatedModel

WeightChanges = Callable[[State, AdapterShape | None], dict[str, Tensor]]
"""A function from a state and a client's shape (None: the method's own) to changes of the base's weights.

The changes are matrices (out, in) by module.
"""


@runtime_checkable
class ChangesWeights(Protocol):
    """The method's aggregation is not exact, so the server reports the aggregation error."""

    def weight_changes(self, model: FederatedModel) -> WeightChanges | None:
        """Return a function from states to changes of the base's weights; None: aggregation is exact after all."""


@runtime_checkable
class ViewedAsFactors(Protocol):
    """Strategies see LoRA factors that are computed from the trained tensors."""

    def create_factor_view(self, layout: Layout) -> FactorView:
        """Create the view of the tensors as LoRA factors."""


@runtime_checkable
class DrawsParts(Protocol):
    """A local step trains only a part of the entries, which the server can draw again."""

    def compute_owned_shares(self, layout: Layout, seed: int, round_number: int, client: int, steps: int) -> State:
        """Return the share of a client's local `steps` that trained each entry, by tensor name.

        Each share has a shape that broadcasts. A tensor that is not in the result was trained in all steps. The result
        is empty if `steps` is 0, which stands for an undisclosed number.
        """


@runtime_checkable
class NamesRuns(Protocol):
    """The method reads finished runs (`runs`). A real client has them in folders of its own, known by their digests."""

    def name_by_digests(self) -> Self:
        """Return the method with digests in `runs` instead of folders."""

    def names_digests(self) -> bool:
        """Return whether `runs` contains digests instead of folders."""

    def find_runs(self, folders: Sequence[Path]) -> Self:
        """Return the method with those of the `folders` that have the digests in `runs`."""


@runtime_checkable
class SavedAsLora(Protocol):
    """The finished adapter is saved as plain LoRA."""

    def changes(self, model: FederatedModel, state: State) -> dict[str, LowRank]:
        """Return what `state` adds to the weights of adapted layers, by module."""


@runtime_checkable
class SavedAsOther(Protocol):
    """The finished result is saved in the format of another method."""

    saved_as: ClassVar[str]
    """Name of that method."""

    def as_saved(self, model: FederatedModel, state: State) -> State:
        """Convert a finished `state` of `model` to the format of that method."""


@runtime_checkable
class SavesFrozen(Protocol):
    """The saved result contains tensors that are never trained."""

    def frozen(self, model: FederatedModel) -> State:
        """Return these tensors."""

    def attach_saved(self, model: FederatedModel, tensors: State) -> None:
        """Attach a finished result in fp32 whose saved `tensors` include the `frozen` ones."""


@runtime_checkable
class FitsWhenFinished(Protocol):
    """A finished model fits parts of itself on the validation set. Under privacy it does so only on public examples."""

    def fit_when_finished(self, model: FederatedModel, held: Examples) -> State:
        """Fit parts of a finished `model` on the `held` validation examples when a run ends.

        Returns:
            The fitted tensors by name, which the model keeps. They are `SavesFrozen.frozen` from then on.
        """

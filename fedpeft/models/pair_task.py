"""The common part of tasks on pairs: a loss between the rows of a batch, and evaluation among all rows."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import ClassVar

import torch
import torch.nn.functional as functional
from torch import Tensor

from fedpeft.data.examples import Batch
from fedpeft.errors import ConfigError
from fedpeft.models.pair_losses import PAIR_LOSSES
from fedpeft.models.ranking import PairSides
from fedpeft.models.task import GROUPS, FederatedModel, RowLosses, Task
from fedpeft.parts import setting


@dataclass(frozen=True)
class PairTask(Task):
    """Prediction of the document that belongs to a query; models return both sides of each row, (B, 2, d).

    A row is right if no document of another label is as near to its query: recall at 1.
    """

    metric = "accuracy"
    per_example: ClassVar[bool] = False
    per_example_missing: ClassVar[str] = "compares an example with the others of its batch"

    loss: str = setting("infonce", "infonce, or sigmoid: SigLIP's", choices=tuple(PAIR_LOSSES))
    scale: float = setting(20.0, "t, the factor of similarities", above=0.0, high=1000.0)
    bias: float | None = setting(
        None, "b of sigmoid, added to them; None: -log of an example's number of negatives", low=-1000.0, high=1000.0
    )

    def check(self, model: FederatedModel) -> None:
        """Refuse adapters that change the loss or copy examples.

        Raises:
            ConfigError: the model's adapter does.
        """
        if model.objective is not None or model.copies > 1:
            raise ConfigError(
                "FP1208 this adapter changes the loss of single examples, and tasks on pairs compare examples; "
                "use --peft lora, or adamix(consistency=0)"
            )

    def losses(self, logits: Tensor, batch: Batch) -> RowLosses:
        """Compute the losses of the sides (B, 2, d) of a batch.

        The batch has `labels` (B, 2) and, if several clients share it, `groups` (B,).
        """
        labels = batch["labels"][:, 0]
        unit = functional.normalize(logits, dim=-1)
        similarities = unit[:, 0] @ unit[:, 1].T
        negative = labels[:, None] != labels[None]
        if (groups := batch.get(GROUPS)) is not None:
            negative &= groups[:, None] == groups[None]
        sums = PAIR_LOSSES[self.loss](similarities, negative, self.scale, self.bias)
        nearest = similarities.masked_fill(~negative, -torch.inf).amax(1)
        return RowLosses(sums, torch.ones_like(sums), (similarities.diagonal() > nearest).to(sums.dtype))

    def evaluate_losses(self, model: FederatedModel, batches: Iterable[Batch]) -> Iterator[RowLosses]:
        """Compare each query with the documents of all batches at once."""
        sides, labels = [], []
        for batch in batches:
            sides.append(model(batch))
            labels.append(batch["labels"])
        if sides:
            yield self.losses(torch.cat(sides), {"labels": torch.cat(labels)})


def compute_sides(model: FederatedModel, batches: Iterable[Batch]) -> PairSides:
    """Compute both sides of all rows with a model of pairs, in the order of the batches, on the CPU."""
    sides, labels = [], []
    with torch.inference_mode():
        for batch in batches:
            sides.append(functional.normalize(model(batch), dim=-1).cpu())
            labels.append(batch["labels"][:, 0].cpu())
    both = torch.cat(sides)
    return PairSides(both[:, 0], both[:, 1], torch.cat(labels))

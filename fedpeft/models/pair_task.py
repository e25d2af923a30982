"""What tasks of pairs have in common: a loss between the rows of a batch, and a judgement among all rows."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from fedpeft.data.examples import Batch
from fedpeft.errors import ConfigError
from fedpeft.models.pair_losses import PAIR_LOSSES
from fedpeft.models.ranking import PairSides
from fedpeft.models.task import GROUPS, FederatedModel, RowLosses, Task
from fedpeft.parts import setting


@dataclass(frozen=True)
class PairTask(Task):
    """Which document belongs to which query; models give both sides of each row, (B, 2, d).

    A row counts as right where no document of another label is as near to its query: recall at 1.
    """

    metric = "accuracy"
    per_example: ClassVar[bool] = False
    per_example_missing: ClassVar[str] = "compares a row with the others of its batch"
    compares: ClassVar[bool] = True

    loss: str = setting("infonce", "infonce, or sigmoid: SigLIP's", choices=tuple(PAIR_LOSSES))
    scale: float = setting(20.0, "t, what similarities are multiplied by", above=0.0, high=1000.0)
    bias: float | None = setting(
        None, "b, of sigmoid: what is added to them then; None: -log of a row's negatives", low=-1000.0, high=1000.0
    )

    def check(self, model: FederatedModel) -> None:
        """Refuse adapters with a loss of their own.

        Raises:
            ConfigError: there is one.
        """
        if model.objective is not None or getattr(model, "copies", 1) > 1:
            raise ConfigError(
                "FP1208 this adapter adds to the loss of what is said of each row, and pairs compare rows; take "
                "--peft lora, or adamix(consistency=0)"
            )

    def losses(self, logits: Tensor, batch: Batch) -> RowLosses:
        """Of the sides (B, 2, d) of a batch; `labels` (B, 2), and where clients share the batch `groups` (B,)."""
        labels = batch["labels"][:, 0]
        unit = F.normalize(logits, dim=-1)
        similarities = unit[:, 0] @ unit[:, 1].T
        negative = labels[:, None] != labels[None]
        if (groups := batch.get(GROUPS)) is not None:
            negative &= groups[:, None] == groups[None]
        sums = PAIR_LOSSES[self.loss](similarities, negative, self.scale, self.bias)
        nearest = similarities.masked_fill(~negative, -torch.inf).amax(1)
        return RowLosses(sums, torch.ones_like(sums), (similarities.diagonal() > nearest).to(sums.dtype))

    def judged(
        self, model: FederatedModel, batches: Iterable[Batch], offsets: Tensor | None = None
    ) -> Iterator[RowLosses]:
        """All rows at once: each query among the documents of all batches; there are no classes to offset."""
        sides, labels = [], []
        for batch in batches:
            sides.append(model(batch))
            labels.append(batch["labels"])
        if sides:
            yield self.losses(torch.cat(sides), {"labels": torch.cat(labels)})


def compute_sides(model: FederatedModel, batches: Iterable[Batch]) -> PairSides:
    """What a model of pairs makes of rows, in the order of the batches; on the CPU."""
    found, labels = [], []
    with torch.inference_mode():
        for batch in batches:
            found.append(F.normalize(model(batch), dim=-1).cpu())
            labels.append(batch["labels"][:, 0].cpu())
    both = torch.cat(found)
    return PairSides(both[:, 0], both[:, 1], torch.cat(labels))

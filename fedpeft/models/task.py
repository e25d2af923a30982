"""The interface of a task: classify an example, predict its next tokens, or find its other half.

A `Task` converts examples to the model's input, builds the model around a frozen base, and defines the loss of an
example. Losses come as (sum, count) per example, never as a batch mean. The mean over a client's batch is sum(sums) /
sum(counts), and privacy per example needs the examples apart.

`Task` contains what all tasks have. What a few tasks do in addition is in `fedpeft.models.abilities`.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Literal

import numpy as np
import torch
from torch import Tensor, nn

from fedpeft.data.examples import Batch, Examples
from fedpeft.data.rows import Rows

Say = Callable[[str], None]
"""A function that shows a user one sentence about a checkpoint."""

GROUPS = "groups"
"""Name of the client of each example in a batch that clients share, (B,); -1 for padding."""


def ignore_message(_: str) -> None:
    """Ignore a message about a checkpoint that was shown before."""


@dataclass(frozen=True)
class RowLosses:
    """Losses per example: `sums` (B,) and `counts` (B,); counts are 1 for a class, predicted tokens for language."""

    sums: Tensor
    counts: Tensor
    correct: Tensor
    """Correct predictions per example, (B,), out of `counts`."""


Objective = Callable[["Task", "FederatedModel", Batch, Tensor | None], RowLosses]
"""A function from a task, a model, a batch and offsets of the logits to the losses that a step minimizes."""


Targets = Literal["", "classes", "numbers", "labels"]
"""Kind of the one prediction for a whole example: a class, a number, or any of several labels; "": another answer."""


class Task(ABC):
    """A type of prediction."""

    metric: str
    """Name of the headline number: "accuracy", "perplexity", "skill" or "label_accuracy"."""

    targets: ClassVar[Targets] = ""
    """Kind of an example's one prediction."""

    asks: ClassVar[bool] = False
    """Whether examples are questions with answers, so that prompts for the finished model have the same form."""

    per_example: ClassVar[bool] = True
    """Whether an example is one sequence of one pass, so that gradients per example can be computed."""

    per_example_missing: ClassVar[str] = ""
    """Why gradients per example can't be computed: the end of a sentence that begins with the task's name."""
    starts_above: ClassVar[bool] = True
    """Whether an example's loss can be computed from the hidden states that enter the lowest adapted block."""

    reference: ClassVar[bool] = False
    """Whether the loss compares with the base without adapter, so that residuals may not be put into the base."""

    encodes: ClassVar[bool] = False
    """Whether it reads an encoder's last hidden states, so that the activation cache is always used."""

    batched: ClassVar[bool] = True
    """Whether many clients can train in one pass."""

    translates: ClassVar[bool] = False
    """Whether an encoder reads one text of an example and a decoder writes the other."""

    least_loss: ClassVar[float] = 0.0
    """Lower bound of an example's loss; the server refuses a client that reports a mean below it."""

    def check(self, model: FederatedModel) -> None:  # noqa: B027
        """Refuse a model whose adapter is wrong for the loss, with ConfigError; by default accept all."""

    @abstractmethod
    def tokenise(self, rows: Rows, model_directory: Path, max_tokens: int) -> Examples:
        """Convert examples to the model's input, cut to `max_tokens`."""

    @abstractmethod
    def model(self, base: nn.Module, classes: int | None) -> FederatedModel:
        """Return the trainable model around `base`."""

    @abstractmethod
    def base(self, model_directory: Path, dtype: torch.dtype, say: Say = ignore_message, **options: Any) -> nn.Module:
        """Load the pretrained base model, frozen and in evaluation mode.

        Args:
            model_directory: the model's folder.
            dtype: dtype of the base.
            say: called with sentences about weights that are missing or left out.
            **options: further arguments of transformers' loader.

        Raises:
            ModelError: the model does not fit the task, or weights that the task uses are missing.
        """

    @abstractmethod
    def losses(self, logits: Tensor, batch: Batch) -> RowLosses:
        """Compute losses and correct predictions from the logits of a batch."""

    def row_losses(self, model: FederatedModel, batch: Batch, offsets: Tensor | None = None) -> RowLosses:
        """Compute losses and correct predictions on a batch; `offsets` (B, classes) are added to the logits."""
        logits = model(batch)
        return self.losses(logits if offsets is None else logits + offsets.to(logits), batch)

    def step_losses(self, model: FederatedModel, batch: Batch, offsets: Tensor | None = None) -> RowLosses:
        """Compute the losses that a local step minimizes: the adapter's objective if it has one, else `row_losses`."""
        if model.objective is None:
            return self.row_losses(model, batch, offsets)
        return model.objective(self, model, batch, offsets)

    def values(self, outputs: Tensor) -> Tensor:
        """Convert a model's outputs (..., outputs) to values for users: probabilities, or numbers in their unit."""
        return outputs.softmax(-1)

    def measures(self, outputs: np.ndarray, labels: np.ndarray, names: Sequence[str]) -> dict[str, Any]:
        """Compute further measures over all examples, for JSON; by default none.

        Args:
            outputs: the model's outputs, (rows, outputs).
            labels: labels in the form of the dataset, (rows,) or (rows, outputs).
            names: names of the outputs.
        """
        return {}


class FederatedModel(nn.Module):
    """A base model, perhaps with an adapter, and a head for classification; it maps a batch to logits.

    Attributes:
        copies: number of outputs that the base returns per example, (copies * B, T, d), side by side.
        shares: weights of the copies in the prediction, (copies,), with sum 1; None: equal weights.
    """

    base: nn.Module
    copies = 1
    shares: Tensor | None = None

    peft_task: ClassVar[str] = ""
    """The `peft` library's task type in saved files; "" for classifiers, because peft lacks their head."""

    pairs: ClassVar[bool] = False
    """Whether it returns the features of both sides of a pair."""

    objective: Objective | None = None
    """The objective of local steps; None: the loss of the model's outputs."""

    def forward(self, batch: Batch) -> Tensor:
        """Compute logits (B, classes) or (B, T, vocabulary), or both sides of pairs, (B, 2, d)."""
        raise NotImplementedError

    def split_by_copy(self, rows: Tensor) -> Tensor:
        """Reshape (copies * B, ...) to (B, copies, ...)."""
        return rows.reshape(-1, self.copies, *rows.shape[1:])

    def get_log_shares(self, like: Tensor) -> Tensor:
        """Return the logarithms of the copies' weights, (copies,), in the dtype of `like`."""
        shares = like.new_full((self.copies,), 1 / self.copies) if self.shares is None else self.shares
        return shares.to(like).log()

    def mix_copies(self, logits: Tensor) -> Tensor:
        """Compute log sum_j shares_j softmax(logits_j), (B, copies, ..., classes) to (B, ..., classes)."""
        log_shares = self.get_log_shares(logits).view(-1, *[1] * (logits.dim() - 2))
        return (logits.log_softmax(-1) + log_shares).logsumexp(1)


PEFT_PREFIX = "base_model.model."
"""The peft library's prefix of the names of the base model's modules."""


def get_canonical_name(name: str) -> str:
    """Return a parameter's canonical name, independent of wrappers and of peft's name of the adapter."""
    name = name.removeprefix("base.").removeprefix(PEFT_PREFIX)
    return name.replace(".default.", ".").removesuffix(".default").replace(".base_layer", "")


def find_trainable(model: nn.Module) -> dict[str, nn.Parameter]:
    """Return the trainable parameters by canonical name, in the model's order."""
    return {get_canonical_name(name): p for name, p in model.named_parameters() if p.requires_grad}

"""What the model is asked to do: classify a row, predict its next tokens, or find its other half.

A `Task` turns raw rows into model-ready ones, builds the model around a frozen base, and says what the loss of a row
is. Losses come as (sum, count) per row, never as a batch mean: the mean over a client's batch is
sum(sums) / sum(counts), and per-example privacy needs the rows apart.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Literal

import numpy as np
import torch
from torch import Tensor, nn

from fedpeft.data.examples import Batch, Examples
from fedpeft.data.rows import Rows
from fedpeft.families import TASKS as TASKS
from fedpeft.models.loading import Say, ignore_message

DTYPES = {"bf16": torch.bfloat16, "fp32": torch.float32, "fp64": torch.float64}
"""Fine-tuning precisions: the frozen base and the activations. Adapters and heads are held in fp32 (fp64 for fp64)."""


def get_adapter_dtype(dtype: str) -> torch.dtype:
    """The dtype in which trainable parameters are held."""
    return torch.float64 if dtype == "fp64" else torch.float32


def get_wide_dtype(beside: torch.dtype) -> torch.dtype:
    """The dtype of what is trained, or added up, beside tensors of this one: fp64 beside fp64, else fp32."""
    return torch.float64 if beside == torch.float64 else torch.float32


GROUPS = "groups"
"""In a batch that clients share, whose row each is, (B,); where rows are padding, -1."""


@dataclass(frozen=True)
class RowLosses:
    """Loss per row: `sums` (B,) and `counts` (B,): 1 for a class, the number of predicted tokens for language."""

    sums: Tensor
    counts: Tensor
    correct: Tensor
    """Correct predictions per row, (B,), out of `counts`."""


Objective = Callable[["Task", "FederatedModel", Batch, Tensor | None], RowLosses]
"""From a task, a model, a batch and what is added to logits to the losses that a step minimises."""


Targets = Literal["", "classes", "numbers", "labels"]
"""What one prediction for a whole row is: one of several classes, a number, or any of several labels; "": rows have
another kind of answer."""


class Task(ABC):
    """One kind of prediction."""

    metric: str
    """What the headline number is called: "accuracy", "perplexity", "skill" or "label_accuracy"."""

    targets: ClassVar[Targets] = ""
    """What a row's one prediction is."""

    asks: ClassVar[bool] = False
    """Whether rows are questions with answers, so that the finished model is asked as they are."""

    per_example: ClassVar[bool] = True
    """Whether a row is one sequence of one pass, of which gradients per example can be told."""

    per_example_missing: ClassVar[str] = ""
    """Where they can't: what it does instead, as the end of a sentence that begins with its name."""
    starts_above: ClassVar[bool] = True
    """Whether a row's loss can be told from the hidden states that enter the lowest adapted block."""

    reference: ClassVar[bool] = False
    """Whether the loss compares with the base without adapter, so that nothing may be put into the base."""

    compares: ClassVar[bool] = False
    """Whether the loss of a row depends on the other rows of its batch, and its judgement on all rows."""

    encodes: ClassVar[bool] = False
    """Whether it reads an encoder's last hidden states, so that what frozen blocks make of rows is always kept."""

    batched: ClassVar[bool] = True
    """Whether many clients can train in one pass."""

    describes: ClassVar[bool] = False
    """Whether it says of images what is to be seen, in words."""

    translates: ClassVar[bool] = False
    """Whether an encoder reads one text of a row and a decoder writes the other."""

    least_loss: ClassVar[float] = 0.0
    """Lower bound of an example's loss; the server refuses a client that states a mean below it."""

    @property
    def extra_tokens(self) -> int:
        """Positions that a row takes up before its text."""
        return 0

    def regressed(self, model: FederatedModel, batch: Batch) -> tuple[Tensor, Tensor]:
        """Features (B, width) and targets (B, outputs) that a head in closed form is the regression of, where it
        `describes`; elsewhere these are features of the frozen base, and classes."""
        raise NotImplementedError

    def check(self, model: FederatedModel) -> None:  # noqa: B027
        """Refuse a model with its adapter that the loss is not right for, or ConfigError; by default none."""

    @abstractmethod
    def tokenise(self, rows: Rows, model_directory: Path, max_tokens: int) -> Examples:
        """Model-ready rows, cut to `max_tokens`."""

    @abstractmethod
    def model(self, base: nn.Module, classes: int | None) -> FederatedModel:
        """The trainable model around `base`."""

    @abstractmethod
    def base(self, model_directory: Path, dtype: torch.dtype, say: Say = ignore_message, **options: Any) -> nn.Module:
        """The pretrained base model, in evaluation mode and frozen; `say` is told of weights missing or left out.

        Raises:
            ModelError: the model is not fit for the task, or weights that the task uses are missing.
        """

    @abstractmethod
    def losses(self, logits: Tensor, batch: Batch) -> RowLosses:
        """Losses and correct predictions of a batch."""

    def row_losses(self, model: FederatedModel, batch: Batch, offsets: Tensor | None = None) -> RowLosses:
        """Losses and correct predictions of `model` on a batch; `offsets` are added to its logits, (B, classes)."""
        logits = model(batch)
        return self.losses(logits if offsets is None else logits + offsets.to(logits), batch)

    def step_losses(self, model: FederatedModel, batch: Batch, offsets: Tensor | None = None) -> RowLosses:
        """What a local step minimises: `row_losses`, or what the model's adapter wants instead."""
        if model.objective is None:
            return self.row_losses(model, batch, offsets)
        return model.objective(self, model, batch, offsets)

    def judged(
        self, model: FederatedModel, batches: Iterable[Batch], offsets: Tensor | None = None
    ) -> Iterator[RowLosses]:
        """Losses and correct predictions of all rows of the batches, in their order, in one part or several.

        `offsets` (classes,) are added to logits.
        """
        for batch in batches:
            yield self.row_losses(model, batch, offsets)

    def values(self, outputs: Tensor) -> Tensor:
        """What a model's outputs (..., outputs) say, as users know it: numbers in their unit, or probabilities."""
        return outputs.softmax(-1)

    def measures(self, outputs: np.ndarray, labels: np.ndarray, names: Sequence[str]) -> dict[str, Any]:
        """What is told of all rows together beside the headline number, for JSON; by default nothing.

        Args:
            outputs: of the model, (rows, outputs).
            labels: of the rows as the data set has them, (rows,) or (rows, outputs).
            names: of the outputs.
        """
        return {}

    def told_head(self, head: dict[str, Tensor]) -> dict[str, Tensor]:
        """The head `weight` (outputs, width) and `bias` (outputs,) whose outputs need no more of the task; by default
        as it is."""
        return head

    def packs(self, model: FederatedModel) -> bool:
        """Whether rows may lie one behind the other in a sequence: `model`, tried on two, does not mix them."""
        return False


class FederatedModel(nn.Module):
    """A base model (perhaps with an adapter in it) and, for classification, a head; maps a batch to logits."""

    base: nn.Module

    peft_task: ClassVar[str] = ""
    """What the `peft` library calls what it does, where its files say so; "" of classifiers, whose head it lacks."""

    pairs: ClassVar[bool] = False
    """Whether it gives the features of both sides of a pair."""

    objective: Objective | None = None
    """What local steps minimise instead of the loss of what the model says; None: that loss."""

    def forward(self, batch: Batch) -> Tensor:
        """Logits: (B, classes) or (B, T, vocabulary); of pairs both sides, (B, 2, d)."""
        raise NotImplementedError


PEFT_PREFIX = "base_model.model."
"""What the peft library puts before the names of the base model's modules."""


def get_canonical_name(name: str) -> str:
    """The canonical name of a parameter: independent of how the base is wrapped and what peft calls the adapter."""
    name = name.removeprefix("base.").removeprefix(PEFT_PREFIX)
    return name.replace(".default.", ".").removesuffix(".default").replace(".base_layer", "")


def find_trainable(model: nn.Module) -> dict[str, nn.Parameter]:
    """The trainable parameters by canonical name, in the model's order."""
    return {get_canonical_name(name): p for name, p in model.named_parameters() if p.requires_grad}

"""Classification of a text or an image: mean pooling over the last hidden states, then one linear head.

The head is trained and federated with the adapter. The poolers of sentence encoders are worse than mean pooling.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
import torch.nn.functional as functional
from torch import Tensor, nn

from fedpeft.data.examples import Batch, Examples, ImageRows
from fedpeft.data.images import check_reads_texts, convert_images
from fedpeft.data.rows import Rows
from fedpeft.data.tokens import tokenize_texts
from fedpeft.errors import ConfigError
from fedpeft.models import encoders
from fedpeft.models.frozen_blocks import pool
from fedpeft.models.loading import load_base
from fedpeft.models.target_measures import measure_classes
from fedpeft.models.task import FederatedModel, RowLosses, Say, Targets, Task, ignore_message
from fedpeft.parts import name_of


def compute_hidden_states(base: nn.Module, inputs: Batch) -> Tensor:
    """Compute the last hidden states of a base, (B, T, d)."""
    hidden: Tensor = base(**inputs).last_hidden_state
    return hidden


class Classifier(FederatedModel):
    """Base, mean pooling, head; the head works on (..., d), so a stacked head for many clients can replace it."""

    def __init__(self, base: nn.Module, head: nn.Module) -> None:
        """Hold the base and the head."""
        super().__init__()
        self.base = base
        self.head = head

    def features(self, batch: Batch) -> Tensor:
        """Compute pooled features, (B, d); several copies are averaged."""
        pooled = self.compute_pooled(batch)
        return pooled if self.copies == 1 else self.split_by_copy(pooled).mean(1)

    def compute_pooled(self, batch: Batch) -> Tensor:
        """Compute the pooled features of each copy, (copies * B, d)."""
        hidden = compute_hidden_states(self.base, {name: tensor for name, tensor in batch.items() if name != "labels"})
        mask = batch.get("attention_mask")
        if mask is not None:
            hidden = hidden[:, -mask.shape[1] :]  # a prompt's positions come first and are not pooled
            mask = mask.repeat_interleave(self.copies, dim=0) if self.copies > 1 else mask
        return pool(hidden, mask)

    def forward(self, batch: Batch) -> Tensor:
        """Compute logits, (B, classes); for several copies, log probabilities of their mixture."""
        logits: Tensor = self.head(self.compute_pooled(batch))
        return logits if self.copies == 1 else self.mix_copies(self.split_by_copy(logits))


class RowTask(Task):
    """A task with one prediction for a whole example: an encoder, and a linear head on its mean hidden state."""

    encodes: ClassVar[bool] = True

    def labels(self, rows: Rows) -> np.ndarray:
        """Return the labels in the form of the loss: int64 or float32, (rows,) or (rows, outputs)."""
        return np.asarray(rows.labels, dtype=np.int64)

    def tokenise(self, rows: Rows, model_directory: Path, max_tokens: int) -> Examples:
        """Convert texts to token ids with the model's special tokens, or normalize images.

        Raises:
            ModelError: the model does not read such examples.
        """
        labels = self.labels(rows)
        if isinstance(rows.inputs, np.ndarray):
            pixels, tokens = convert_images(rows.inputs, model_directory)
            return ImageRows(pixels, labels, tokens)
        check_reads_texts(model_directory)
        return tokenize_texts(rows.inputs, labels, model_directory, max_tokens)

    def base(self, model_directory: Path, dtype: torch.dtype, say: Say = ignore_message, **options: Any) -> nn.Module:
        """Load the encoder (see `fedpeft.models.encoders`)."""
        return load_base(encoders.from_pretrained, model_directory, dtype, compute_hidden_states, say, **options)

    def model(self, base: nn.Module, classes: int | None) -> Classifier:
        """Return the encoder with a zero head of `classes` outputs."""
        return Classifier(base, encoders.create_zero_head(base, classes or 0))

    def check(self, model: FederatedModel) -> None:
        """Refuse adapters that mix class probabilities if the task has no classes.

        Raises:
            ConfigError: the model's adapter does.
        """
        if self.targets != "classes" and (model.copies != 1 or model.objective is not None):
            raise ConfigError(
                f"FP1217 this PEFT method mixes probabilities of classes, and {name_of(type(self))} has none; "
                "use --peft lora"
            )


@dataclass(frozen=True)
class Classification(RowTask):
    """Prediction of one class per example."""

    metric = "accuracy"
    targets: ClassVar[Targets] = "classes"

    def losses(self, logits: Tensor, batch: Batch) -> RowLosses:
        """Compute the cross-entropy per example."""
        labels = batch["labels"]
        sums = functional.cross_entropy(logits, labels, reduction="none")
        return RowLosses(sums, torch.ones_like(sums), (logits.argmax(-1) == labels).to(sums.dtype))

    def measures(self, outputs: np.ndarray, labels: np.ndarray, names: Sequence[str]) -> dict[str, Any]:
        """Measure each class (`fedpeft.models.target_measures.measure_classes`)."""
        return measure_classes(np.asarray(outputs).argmax(-1), np.asarray(labels), names)


part = Classification

"""Retrieval: find the text that belongs to another text.

retrieval                                 in-batch InfoNCE retrieval(loss=sigmoid, scale=20)         SigLIP's pairwise
loss

One encoder reads both texts. The vector of a text is the mean of its last hidden states, as MiniLM was trained. There
is no head, so only the adapter is trained.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor, nn

from fedpeft.data.examples import Batch, Examples, PairRows
from fedpeft.data.images import check_reads_texts
from fedpeft.data.rows import Rows
from fedpeft.data.text_pairs import SIDES
from fedpeft.data.tokens import tokenize_texts
from fedpeft.errors import DataError
from fedpeft.models import encoders
from fedpeft.models.frozen_blocks import pool
from fedpeft.models.loading import load_base
from fedpeft.models.pair_task import PairTask
from fedpeft.models.task import GROUPS, FederatedModel, Say, ignore_message
from fedpeft.models.tasks.classification import compute_hidden_states

NO_INPUT = ("labels", GROUPS)
"""Names of the tensors in a batch that the encoder does not read."""


class PairEncoder(FederatedModel):
    """One encoder for both sides."""

    pairs = True
    peft_task = "FEATURE_EXTRACTION"

    def __init__(self, base: nn.Module) -> None:
        """Hold the encoder."""
        super().__init__()
        self.base = base

    def forward(self, batch: Batch) -> Tensor:
        """Compute the pooled states of both sides, (B, 2, d), of a batch (B, 2, T)."""
        inputs = {name: tensor.flatten(0, 1) for name, tensor in batch.items() if name not in NO_INPUT}
        hidden = compute_hidden_states(self.base, inputs)
        mask = inputs["attention_mask"]
        pooled = pool(hidden[:, -mask.shape[1] :], mask)  # a prompt's positions come first and are skipped
        return pooled.view(-1, 2, pooled.shape[-1])


@dataclass(frozen=True)
class Retrieval(PairTask):
    """Prediction of the text that belongs to another."""

    encodes: ClassVar[bool] = True

    def tokenise(self, rows: Rows, model_directory: Path, max_tokens: int) -> Examples:
        """Convert both texts of each example to token ids; without labels each example is a pair of its own.

        Raises:
            DataError: the examples are not pairs of texts.
            ModelError: the model does not read texts.
        """
        if isinstance(rows.inputs, np.ndarray):
            raise DataError(
                "FP3171 retrieval needs pairs of texts, and this dataset contains images; use the task towers for "
                "images with texts"
            )
        check_reads_texts(model_directory)
        texts = (json.loads(row)[side] for row in rows.inputs for side in SIDES)
        labels = np.arange(len(rows)) if rows.labels is None else np.asarray(rows.labels, dtype=np.int64)
        return PairRows(tokenize_texts(texts, np.repeat(labels, 2), model_directory, max_tokens))

    def base(self, model_directory: Path, dtype: torch.dtype, say: Say = ignore_message, **options: Any) -> nn.Module:
        """Load the encoder (see `fedpeft.models.encoders`)."""
        return load_base(encoders.from_pretrained, model_directory, dtype, compute_hidden_states, say, **options)

    def model(self, base: nn.Module, classes: int | None) -> PairEncoder:
        """Return the encoder without a head."""
        return PairEncoder(base)


part = Retrieval

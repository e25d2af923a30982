"""Retrieval: of two texts that belong together, the one is to be found by the other.

retrieval                                 in-batch InfoNCE
retrieval(loss=sigmoid, scale=20)         SigLIP's pairwise loss

One encoder reads both texts; what it says of a text is the mean of its last hidden states, as MiniLM was trained. There
is no head: what is trained is the adapter alone.
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
from fedpeft.models.loading import Say, ignore_message, load_base
from fedpeft.models.pair_task import PairTask
from fedpeft.models.task import GROUPS, FederatedModel
from fedpeft.models.tasks.classification import compute_hidden_states

NO_INPUT = ("labels", GROUPS)
"""Of a batch, what the encoder does not read."""


class PairEncoder(FederatedModel):
    """One encoder for both sides."""

    pairs = True
    peft_task = "FEATURE_EXTRACTION"

    def __init__(self, base: nn.Module) -> None:
        super().__init__()
        self.base = base

    def forward(self, batch: Batch) -> Tensor:
        """Pooled states of both sides, (B, 2, d), of a batch of (B, 2, T)."""
        inputs = {name: tensor.flatten(0, 1) for name, tensor in batch.items() if name not in NO_INPUT}
        hidden = compute_hidden_states(self.base, inputs)
        mask = inputs["attention_mask"]
        pooled = pool(hidden[:, -mask.shape[1] :], mask)  # the positions of a prompt stand before the text's own
        return pooled.view(-1, 2, pooled.shape[-1])


@dataclass(frozen=True)
class Retrieval(PairTask):
    """Which text belongs to which."""

    encodes: ClassVar[bool] = True

    def tokenise(self, rows: Rows, model_directory: Path, max_tokens: int) -> Examples:
        """Token ids of both texts of each row; rows without labels are each a pair of their own.

        Raises:
            DataError: the rows are no pairs of texts.
            ModelError: the model reads no texts.
        """
        if isinstance(rows.inputs, np.ndarray):
            raise DataError(
                "FP3171 retrieval needs pairs of texts; this data set holds images, which the task towers reads"
            )
        check_reads_texts(model_directory)
        texts = (json.loads(row)[side] for row in rows.inputs for side in SIDES)
        labels = np.arange(len(rows)) if rows.labels is None else np.asarray(rows.labels, dtype=np.int64)
        return PairRows(tokenize_texts(texts, np.repeat(labels, 2), model_directory, max_tokens))

    def base(self, model_directory: Path, dtype: torch.dtype, say: Say = ignore_message, **options: Any) -> nn.Module:
        """The encoder (see `fedpeft.models.encoders`)."""
        return load_base(encoders.from_pretrained, model_directory, dtype, compute_hidden_states, say, **options)

    def model(self, base: nn.Module, classes: int | None) -> PairEncoder:
        """The encoder as it is."""
        return PairEncoder(base)


part = Retrieval

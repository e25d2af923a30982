"""Rows of which nothing is read but what the frozen model says of each as a whole: its pooled features.

Where all blocks are frozen and a head alone is trained, they are a row's width instead of its tokens times that, on the
disk and in each step.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn

from fedpeft.data.examples import Batch
from fedpeft.models.frozen_blocks import StoredRows, cut_below
from fedpeft.models.layers import find_blocks

if TYPE_CHECKING:
    from transformers.modeling_outputs import BaseModelOutput


@dataclass(frozen=True)
class PooledRows(StoredRows):
    """Batches carry a row's features as its only position."""

    @property
    def labels(self) -> np.ndarray:
        """The classes of the rows, (rows,)."""
        found: np.ndarray = self.store.examples.labels  # type: ignore[attr-defined]
        return found

    def batch(self, rows: Sequence[int] | np.ndarray) -> Batch:
        """inputs_embeds (B, 1, d), attention_mask (B, 1) of ones, and labels (B,)."""
        features = self.store.read_features(rows)
        ones = torch.ones(len(features), 1, dtype=torch.long)
        return {
            "inputs_embeds": features.unsqueeze(1),
            "attention_mask": ones,
            "labels": torch.from_numpy(self.labels[np.asarray(rows)]),
        }


def create_pass_through(base: nn.Module) -> nn.Module:
    """`base` as one that is fed features, and gives them back; it stays as it is."""
    from transformers.modeling_outputs import BaseModelOutput

    top = cut_below(base, len(find_blocks(base)[1]))

    def forward(inputs_embeds: Tensor, attention_mask: Tensor, **_: Any) -> BaseModelOutput:
        return BaseModelOutput(last_hidden_state=inputs_embeds)

    top.forward = forward
    return top

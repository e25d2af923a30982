"""Examples that are represented by the frozen model's pooled features alone.

If all blocks are frozen and only a head is trained, an example needs one vector instead of one per token, on the disk
and in each step.
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
    """Examples whose batches contain pooled features as their only position."""

    @property
    def labels(self) -> np.ndarray:
        """Classes of the examples, (rows,)."""
        labels: np.ndarray = self.store.examples.labels  # type: ignore[attr-defined]
        return labels

    def batch(self, rows: Sequence[int] | np.ndarray) -> Batch:
        """Return inputs_embeds (B, 1, d), attention_mask (B, 1) of ones, and labels (B,)."""
        features = self.store.read_features(rows)
        ones = torch.ones(len(features), 1, dtype=torch.long)
        return {
            "inputs_embeds": features.unsqueeze(1),
            "attention_mask": ones,
            "labels": torch.from_numpy(self.labels[np.asarray(rows)]),
        }


def create_pass_through(base: nn.Module) -> nn.Module:
    """Return a model like `base` that returns the features it is given; `base` stays as it is."""
    from transformers.modeling_outputs import BaseModelOutput

    top = cut_below(base, len(find_blocks(base)[1]))

    def forward(inputs_embeds: Tensor, attention_mask: Tensor, **_: Any) -> BaseModelOutput:
        return BaseModelOutput(last_hidden_state=inputs_embeds)

    top.forward = forward
    return top

"""Patch labels: a label for each patch of an image; the base, and one linear head on each patch.

A vision transformer returns a hidden state for each patch. The head reads them as that of `token_labels` reads a text's
tokens. A patch has the most frequent label of its pixels. Patches whose pixels are mostly void do not count.

Labels are as fine as patches. DINOv2 sees 4 x 4 patches of an image of up to 64 pixels a side, 8 x 8 at 112 pixels, and
16 x 16 at 224.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor, nn

from fedpeft.data.examples import MADE_UP_TOKENS, Batch, Examples, ImageRows
from fedpeft.data.images import convert_images, count_patches
from fedpeft.data.masks import label_patches
from fedpeft.data.rows import Rows
from fedpeft.errors import DataError, ModelError
from fedpeft.models import encoders
from fedpeft.models.loading import load_base
from fedpeft.models.task import Say, ignore_message
from fedpeft.models.tasks.classification import compute_hidden_states
from fedpeft.models.tasks.token_labels import TokenLabels


@dataclass(frozen=True)
class PatchLabels(TokenLabels):
    """Prediction of the patches' labels."""

    per_example_missing: ClassVar[str] = "has a head that reads the patches of all examples in one batch"

    def tokenise(self, rows: Rows, model_directory: Path, max_tokens: int) -> Examples:
        """Convert images to pixels, and masks to a label for each patch.

        Raises:
            DataError: the examples are not images with masks, or masks have fewer pixels than patches.
            ModelError: the model does not read images.
        """
        if not isinstance(rows.inputs, np.ndarray) or rows.masks is None:
            raise DataError(
                "FP3422 patch_labels needs images with masks; use scenes or file(path=FOLDER, task=patch_labels)"
            )
        across = count_patches(min(rows.inputs.shape[1:3]), model_directory)[0]
        pixels, tokens = convert_images(rows.inputs, model_directory)
        return ImageRows(pixels, label_patches(rows.masks, across), tokens)

    def base(self, model_directory: Path, dtype: torch.dtype, say: Say = ignore_message, **options: Any) -> nn.Module:
        """Load the encoder (see `fedpeft.models.encoders`).

        Raises:
            ModelError: it does not return a state for each patch.
        """
        return load_base(encoders.from_pretrained, model_directory, dtype, _compute_patch_states, say, **options)


def _compute_patch_states(base: nn.Module, inputs: Batch) -> Tensor:
    """Compute the last hidden states of a made-up example, (B, T, d), after a check that each patch has one.

    Raises:
        ModelError: some have none.
    """
    hidden = compute_hidden_states(base, inputs)
    if hidden.shape[1] < MADE_UP_TOKENS:
        raise ModelError(
            f"FP4285 {type(base).__name__} returns {hidden.shape[1]} vectors for an image of {MADE_UP_TOKENS} patches; "
            "choose a vision transformer that returns one for each, such as dinov2_small"
        )
    return hidden


part = PatchLabels

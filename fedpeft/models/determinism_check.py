"""Check that a base of a user's own code is deterministic in evaluation mode.

Otherwise features, probes and scores would be random, and the activation cache would keep the output of one pass.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import nn

from fedpeft.data.examples import Examples
from fedpeft.errors import ModelError
from fedpeft.models.frozen_blocks import AGREEMENT
from fedpeft.models.layers import get_reader
from fedpeft.parts.plugin_files import hash_own_code

ROWS = 4
"""Number of examples that are passed twice."""

READ = ("input_ids", "attention_mask", "pixel_values")
"""Names of the tensors in a batch that the base reads."""


def check_repeats(base: nn.Module, rows: Examples) -> None:
    """Pass a few examples twice through a base whose class is a user's own, and compare the outputs.

    Args:
        base: in evaluation mode. An encoder with a decoder is not checked, because it needs more than a batch contains.
        rows: examples of one sequence each.

    Raises:
        ModelError: the passes differ by more than rounding.
    """
    if (
        not hash_own_code(type(base))
        or not len(rows)
        or getattr(getattr(base, "config", None), "is_encoder_decoder", False)
    ):
        return
    batch, device = rows.batch(np.arange(min(ROWS, len(rows)))), next(base.parameters()).device
    inputs = {name: batch[name].to(device) for name in READ if name in batch}
    with torch.inference_mode():
        one, two = (get_reader(base)(**inputs).last_hidden_state for _ in range(2))
    if ((one - two).abs() > AGREEMENT.get(one.dtype, 1e-4) * one.abs().amax(-1, keepdim=True)).any():
        raise ModelError(
            f"FP4041 {type(base).__name__} gives different outputs for the same examples, so results would be random; "
            "turn off dropout and noise in its evaluation mode: F.dropout(x, p, training=self.training)"
        )

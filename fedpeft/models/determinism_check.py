"""Whether a base of a user's own code says the same of the same rows twice: else features, probes and scores are drawn
by chance, and what is kept of rows is what one pass happened to give."""

from __future__ import annotations

import numpy as np
import torch
from torch import nn

from fedpeft.data.examples import Examples
from fedpeft.errors import ModelError
from fedpeft.models.frozen_blocks import AGREEMENT
from fedpeft.models.layers import get_reader
from fedpeft.plugin_files import hash_own_code

ROWS = 4
"""That are passed twice."""

READ = ("input_ids", "attention_mask", "pixel_values")
"""What of a batch the base reads."""


def check_repeats(base: nn.Module, rows: Examples) -> None:
    """Pass a few rows twice through a base whose class is a user's own.

    Args:
        base: in evaluation mode; one of an encoder with a decoder needs more than a batch holds, and is let through.
        rows: each one sequence.

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
            f"FP4041 {type(base).__name__} makes something else of the same rows in each pass, so what is measured "
            "would be chance; switch off in its evaluation mode what is drawn: F.dropout(x, p, "
            "training=self.training), no noise"
        )

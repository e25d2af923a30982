"""The encoder that classification reads: an encoder, the encoder of an encoder-decoder, or one tower of two.

T5, BART          the encoder; the decoder is left out CLIP, SigLIP      the vision tower; the text tower is left out
Swin, ConvNeXt    refused: their blocks lie in stages of unequal width
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from torch import nn

from fedpeft.data.images import check_vision, get_vision_config
from fedpeft.data.model_config import load_model_config
from fedpeft.models.dtypes import get_wide_dtype
from fedpeft.models.readout import get_width


def from_pretrained(directory: str, **options: Any) -> tuple[Any, dict[str, Any]]:
    """Load model and loading report, as `AutoModel.from_pretrained(..., output_loading_info=True)`.

    Raises:
        ModelError: the model's blocks lie in stages, or config.json can't be used.
        OSError, ValueError: there are no weights.
    """
    from transformers import AutoModel

    from fedpeft.models.modeling_mean_pooled import remove_decoder

    config = load_model_config(Path(directory))
    if (vision := get_vision_config(config)) is not config:
        options["config"] = vision
    check_vision(vision, Path(directory))
    model, report = AutoModel.from_pretrained(directory, **options)
    if model.config.is_encoder_decoder:
        remove_decoder(model)
        report["missing_keys"] = {name for name in report["missing_keys"] if not name.startswith("decoder.")}
    return model, report


def create_zero_head(base: nn.Module, classes: int) -> nn.Linear:
    """Create a head of zeros (classes, width) on the device of `base`; it is fp32, or fp64 beside an fp64 base."""
    parameter = next(base.parameters())
    dtype = get_wide_dtype(parameter.dtype)
    head = nn.Linear(get_width(base), classes, dtype=dtype, device=parameter.device)
    nn.init.zeros_(head.weight)
    nn.init.zeros_(head.bias)
    return head

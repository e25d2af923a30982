"""A base model whose linear layers are held in few bits: what a client with little memory can load.

    nf4    blocks of 64 weights, 4 bits each, on the quantiles of a normal distribution, scales quantized again (QLoRA:
           Dettmers et al., arXiv 2305.14314); bitsandbytes' layer
    int8   one scale per output row: W ~ scale * round(W / scale), scale = max |row| / 127

The layers inside the transformer blocks are replaced; embeddings, norms, output layers and heads keep their precision.
Merging an update into such weights would lose it (it is below their resolution), so adapters stay beside them.
"""

from __future__ import annotations

import importlib.util
import logging
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fedpeft.errors import ConfigError
from fedpeft.layers import linear_layers

Precision = Literal["", "nf4", "int8"]
"""Of the base's linear layers; empty: as the run's dtype says."""

PRECISIONS: tuple[Precision, ...] = ("nf4", "int8")


class Int8Linear(nn.Linear):
    """A frozen linear layer with int8 weights (out, in) and one scale per row, computed in the precision of its input.

    A subclass of `nn.Linear`, so that adapters find and wrap it.
    """

    scale: Tensor

    def __init__(self, layer: nn.Linear) -> None:
        nn.Module.__init__(self)
        self.in_features, self.out_features = layer.in_features, layer.out_features
        rows, scale = _int8(layer.weight.detach())
        self.weight = nn.Parameter(rows, requires_grad=False)
        self.register_buffer("scale", scale, persistent=False)
        self.bias = layer.bias

    def forward(self, x: Tensor) -> Tensor:
        """(..., in) to (..., out)."""
        return F.linear(x, self.weight.to(x.dtype) * self.scale.to(x.dtype), self.bias)


def quantize(base: nn.Module, precision: Precision) -> None:
    """Replace the frozen linear layers inside the blocks of `base`, in place; nothing where `precision` is empty.

    Raises:
        ConfigError: bitsandbytes is missing, or it has no such precision.
    """
    if not precision:
        return
    from fedpeft.stacked import replace

    make = {"nf4": _nf4_linear, "int8": Int8Linear}.get(precision)
    if make is None:
        raise ConfigError(f"unknown base precision {precision!r}; legal: {', '.join(PRECISIONS)}")
    for path, layer in linear_layers(base).items():
        replace(base, path, make(layer))


def dequantized(weight: Tensor, precision: Precision) -> Tensor:
    """The values (out, in) that a layer of `weight` computes with once it is quantized, in the dtype of `weight`."""
    if precision == "nf4":
        functional = _bitsandbytes().functional
        packed, state = functional.quantize_4bit(
            weight.detach().contiguous(), quant_type="nf4", compress_statistics=True
        )
        values: Tensor = functional.dequantize_4bit(packed, state)
        return values.to(weight.dtype)
    if precision == "int8":
        rows, scale = _int8(weight.detach())
        return rows.to(weight.dtype) * scale.to(weight.dtype)
    return weight


def weight_of(layer: nn.Module) -> Tensor:
    """The weights (out, in) that a linear layer computes with, quantized or not."""
    weight: Any = layer.weight
    state = getattr(weight, "quant_state", None)
    if state is not None:
        values: Tensor = _bitsandbytes().functional.dequantize_4bit(weight.data, state)
        return values
    if isinstance(layer, Int8Linear):
        return layer.weight.to(layer.scale.dtype) * layer.scale
    plain: Tensor = weight.detach()
    return plain


def _int8(weight: Tensor) -> tuple[Tensor, Tensor]:
    scale = weight.abs().amax(dim=1, keepdim=True).clamp_min(torch.finfo(weight.dtype).tiny) / 127
    return (weight / scale).round().to(torch.int8), scale


def _nf4_linear(layer: nn.Linear) -> nn.Module:
    library = _bitsandbytes()
    dtype = layer.weight.dtype
    packed = library.nn.Linear4bit(
        layer.in_features, layer.out_features, layer.bias is not None, compute_dtype=dtype, quant_type="nf4"
    )
    packed.weight = library.nn.Params4bit(
        layer.weight.detach().contiguous(), requires_grad=False, quant_type="nf4", compress_statistics=True
    )
    if layer.bias is not None:
        packed.bias = nn.Parameter(layer.bias.detach(), requires_grad=False)
    packed = packed.to(layer.weight.device)  # this is what quantizes
    # An evaluation would repack the weights into a form that the next training step can't read.
    packed.support_avx512bf16_for_cpu = False
    module: nn.Module = packed
    return module


def _bitsandbytes() -> Any:
    if importlib.util.find_spec("bitsandbytes") is None:
        raise ConfigError(
            "a 4-bit base needs the package bitsandbytes; install it with: pip install 'fedpeft[quantized]'"
        )
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)
    import bitsandbytes

    return bitsandbytes

"""A base model whose linear layers are held in few bits, for clients with little memory.

    nf4    blocks of 64 weights, 4 bits each, on the quantiles of a normal distribution, scales quantized again (QLoRA:
           Dettmers et al., arXiv 2305.14314), by bitsandbytes
    int8   one scale per output row: W ~ scale * round(W / scale), scale = max |row| / 127

The layers inside the transformer blocks are replaced; embeddings, norms, output layers and heads keep their precision.
An update is below the resolution of such weights, so merging would lose it. Adapters therefore stay beside the weights,
and so do residuals of exact rules (`fedpeft.communication.base_residual`).

bitsandbytes' own layer has two faults, so it is not used. On a CPU, an evaluation repacks its weights into a form that
the next training step can't read. And version 0.50 decodes rows wrongly if their length is not a multiple of 64.
"""

from __future__ import annotations

import importlib.util
from typing import Any, Literal

import torch
import torch.nn.functional as functional
from torch import Tensor, nn

from fedpeft.errors import ConfigError
from fedpeft.models.layers import find_linear_layers, replace

Precision = Literal["", "nf4", "int8"]
"""Precision of the base's linear layers; empty: the run's dtype."""

PRECISIONS: tuple[Precision, ...] = ("nf4", "int8")

NF4_BLOCK = 64


class QuantizedLinear(nn.Linear):
    """A frozen linear layer (out, in) in few bits, decoded for each pass and computed in the precision of its input.

    It is a subclass of `nn.Linear`, so that adapters find and wrap it. Its `weight` holds codes, which only `state` can
    decode.

    Attributes:
        precision: "nf4" or "int8".
        before: dtype of the original weights.
        state: bitsandbytes' state (nf4), or the rows' scales (out, 1).
        residual: (out, in), added to the decoded weights; None: nothing.
    """

    residual: Tensor | None = None

    def __init__(self, layer: nn.Linear, precision: Precision) -> None:
        """Encode the weights of `layer` in `precision`."""
        nn.Module.__init__(self)
        self.in_features, self.out_features = layer.in_features, layer.out_features
        codes, self.state = _encode_weight(layer.weight.detach(), precision)
        self.precision, self.before = precision, layer.weight.dtype
        self.weight = nn.Parameter(codes, requires_grad=False)
        self.bias = layer.bias

    def values(self) -> Tensor:
        """Return the weights that the layer computes with, (out, in)."""
        plain = _decode_weight(self.weight.data, self.state, (self.out_features, self.in_features), self.precision)
        return plain if self.residual is None else fold_residual(plain, self.residual)

    def forward(self, x: Tensor) -> Tensor:
        """(..., in) to (..., out)."""
        y: Tensor = _Product.apply(x, self)  # type: ignore[no-untyped-call]
        return y


class _Product(torch.autograd.Function):
    """x W^T + b; W is decoded again for the backward pass, so that no decoded weight outlives a layer's pass."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, layer: QuantizedLinear) -> Tensor:
        ctx.layer = layer
        bias = None if layer.bias is None else layer.bias.to(x.dtype)
        return functional.linear(x, layer.values().to(x.dtype), bias)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        return gradients[0] @ ctx.layer.values().to(gradients[0].dtype), None


def check_available(precision: Precision) -> None:
    """Raise ConfigError if `precision` needs bitsandbytes and it is not installed."""
    if precision == "nf4":
        _import_bitsandbytes()


def quantize(base: nn.Module, precision: Precision) -> None:
    """Replace the frozen linear layers inside the blocks of `base`, in place; an empty `precision` changes nothing.

    Raises:
        ConfigError: the precision is unknown, or bitsandbytes is missing.
    """
    if precision:
        for path, layer in find_linear_layers(base).items():
            replace(base, path, QuantizedLinear(layer, precision))


def round_to_quantized(weight: Tensor, precision: Precision) -> Tensor:
    """Return the values (out, in) of a `weight` after quantization, in the dtype of `weight`.

    Raises:
        ConfigError: as `quantize`.
    """
    if not precision:
        return weight
    codes, state = _encode_weight(weight.detach(), precision)
    return _decode_weight(codes, state, (weight.shape[0], weight.shape[1]), precision).to(weight.dtype)


def get_weight_dtype(layer: nn.Module) -> torch.dtype:
    """Return the dtype of a linear layer's weights, as before quantization."""
    linear: Any = layer
    dtype: torch.dtype = linear.before if isinstance(layer, QuantizedLinear) else linear.weight.dtype
    return dtype


def _encode_weight(weight: Tensor, precision: str) -> tuple[Tensor, Any]:
    if precision == "nf4":
        weight = weight.float() if weight.dtype == torch.float64 else weight
        flat = functional.pad(weight.flatten(), (0, -weight.numel() % NF4_BLOCK)).view(-1, NF4_BLOCK).contiguous()
        codes, state = _import_bitsandbytes().functional.quantize_4bit(flat, quant_type="nf4", compress_statistics=True)
        return codes, state
    if precision == "int8":
        scale = weight.abs().amax(dim=1, keepdim=True).clamp_min(torch.finfo(weight.dtype).tiny) / 127
        return (weight / scale).round().to(torch.int8), scale
    raise ConfigError(f"FP1209 unknown base precision {precision!r}; legal: {', '.join(PRECISIONS)}")


def _decode_weight(codes: Tensor, state: Any, shape: tuple[int, int], precision: str) -> Tensor:
    if precision == "int8":
        scale: Tensor = state
        return codes.to(scale.dtype) * scale
    flat: Tensor = _import_bitsandbytes().functional.dequantize_4bit(codes, state)
    return flat.flatten()[: shape[0] * shape[1]].view(shape)


def _import_bitsandbytes() -> Any:
    if importlib.util.find_spec("bitsandbytes") is None:
        raise ConfigError("FP1210 a 4-bit base needs bitsandbytes; install it with: pip install 'fedpeft[quantized]'")
    import bitsandbytes

    return bitsandbytes


def fold_residual(weight: Tensor, residual: Tensor) -> Tensor:
    """Compute W0 + R in the precision of R, rounded once to that of the base."""
    return (weight.to(residual.dtype) + residual.to(weight.device)).to(weight.dtype)

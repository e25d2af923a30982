"""Kernels for frozen matrix products. The choice changes rounding, so the processor's type decides, and not a clock."""

from __future__ import annotations

import platform
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import torch
import torch.nn.functional as functional
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from fedpeft.machine.hardware import has_fast_bf16
from fedpeft.models.layers import find_linear_layers, replace
from fedpeft.models.quantized_base import QuantizedLinear

X86 = ("x86_64", "AMD64")
"""Names of 64-bit x86 machines."""


def get_cpu_name() -> str:
    """Return the CPU's model name."""
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()


def list_kernels(dtype: torch.dtype) -> tuple[Kernel, ...]:
    """Return the kernels that this machine can run in `dtype`, torch's own first, and the preferred one last.

    On an AMD EPYC (Zen 4), `experiments/speed` measured oneDNN 5 % faster than torch's own in fp32, and 1 % in bf16. On
    other processors than x86 nothing was measured.
    """
    if dtype == torch.bfloat16 and not has_fast_bf16("cpu"):
        return ("native", "widened")
    if dtype == torch.float64 or not torch._C._has_mkldnn or platform.machine() not in X86:
        return ("native",)
    return ("native", "onednn")


def choose(dtype: torch.dtype) -> Kernel:
    """Return the kernel for frozen products in `dtype` on this machine.

    It depends on the processor's type alone: a choice by time would depend on what else runs, and so would the last
    bits of a result.
    """
    return list_kernels(dtype)[-1]


Kernel = Literal["native", "onednn", "widened"]
"""How frozen products are computed.

- native: by torch's own `functional.linear`.
- onednn: by oneDNN directly, on weights that are packed once (CPU only).
- widened: bf16 is multiplied in fp32 and the result is rounded, for CPUs without bf16 instructions.
"""


_onednn: Callable[..., Tensor] = torch.ops.mkldnn._linear_pointwise
_packed: Callable[..., Tensor] = torch.ops.mkldnn._reorder_linear_weight

_new_view: Callable[..., Tensor] = torch.ops.aten._unsafe_view
"""Reshapes a tensor that nobody else holds. Autograd does not treat the result as a view, so that a model may write
into it, as DeBERTa does."""

USUAL_TOKENS = 1024
"""Tokens of a usual pass; oneDNN packs weights for a product of about this size."""


class FrozenLinear(nn.Module):
    """A frozen linear layer (out, in).

    With oneDNN its weights are packed once, for both directions, instead of in each product.
    """

    def __init__(self, layer: nn.Linear, kernel: Kernel) -> None:
        """Hold the weights of `layer` in the form that `kernel` reads."""
        super().__init__()
        self.in_features, self.out_features = layer.in_features, layer.out_features
        self.bias = None if layer.bias is None else layer.bias.detach()
        self.kernel = kernel
        self.set_weight(layer.weight.detach())

    def set_weight(self, weight: Tensor) -> None:
        """Replace the weight by `weight` (out, in)."""
        if self.kernel == "onednn":
            self._held = _packed(weight.contiguous(), USUAL_TOKENS)
            self._transposed = _packed(weight.t().contiguous(), USUAL_TOKENS)
        else:
            self._held = weight

    @property
    def weight(self) -> Tensor:
        """Weight (out, in); a copy if weights are packed."""
        return self._held.to_dense() if self.kernel == "onednn" else self._held

    def forward(self, x: Tensor) -> Tensor:
        """(..., in) to (..., out)."""
        if torch.is_grad_enabled() and x.requires_grad:
            y: Tensor = _FrozenProduct.apply(x, self)  # type: ignore[no-untyped-call]
            return y
        return self.product(x)

    def product(self, x: Tensor) -> Tensor:
        """Compute (..., in) to (..., out) as a new tensor, without autograd."""
        if self.kernel == "onednn":
            return _onednn(x, self._held, self.bias, "none", [], "")
        if self.kernel == "widened":
            return apply_wide_linear(x, self._held, self.bias)
        flat = functional.linear(x.reshape(-1, x.shape[-1]), self._held, self.bias)
        return _new_view(flat, [*x.shape[:-1], self.out_features])

    def compute_input_gradient(self, gradient: Tensor) -> Tensor:
        """Compute the gradient of the input (..., in), a new tensor, from that of the output (..., out), contiguous."""
        if self.kernel == "onednn":
            return _onednn(gradient, self._transposed, None, "none", [], "")
        if self.kernel == "widened":
            return apply_wide_linear(gradient, self._held.t(), None)
        return gradient @ self._held


class _FrozenProduct(torch.autograd.Function):
    """y = x W^T + b with a frozen W; only x gets a gradient."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, layer: FrozenLinear) -> Tensor:
        ctx.layer = layer
        return layer.product(x)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        return ctx.layer.compute_input_gradient(gradient.contiguous()), None


def install_fast_linears(base: nn.Module, kernel: Kernel) -> None:
    """Replace every frozen linear layer inside the transformer blocks of `base` by a fast one, in place.

    Layers in nf4 or int8 stay and are decoded for each pass.
    """
    for path, layer in find_linear_layers(base).items():
        if not isinstance(layer, QuantizedLinear):
            replace(base, path, FrozenLinear(layer, kernel))


def apply_wide_linear(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """Compute x weight^T + bias, (..., out), in fp32 and round it to the dtype of x.

    Args:
        x: (..., in).
        weight: (out, in).
        bias: (out,); None: no bias.
    """
    return functional.linear(x.float(), weight.float(), None if bias is None else bias.float()).to(x.dtype)


class WidenedLinear(nn.Linear):
    """A linear layer in bf16, (out, in), that multiplies and adds in fp32."""

    def forward(self, x: Tensor) -> Tensor:
        """(..., in) to (..., out)."""
        return apply_wide_linear(x, self.weight, self.bias)


def widen(model: nn.Module) -> None:
    """Make every plain linear layer of `model` a `WidenedLinear`, in place; parameters and names stay."""
    for module in model.modules():
        if type(module) is nn.Linear:
            module.__class__ = WidenedLinear

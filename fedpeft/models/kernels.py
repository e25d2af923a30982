"""How frozen matrix products are computed, and which way is faster on this CPU: probed once per machine and remembered.

The choice is remembered in the cache, so that two runs on one machine make the same one: it changes rounding.
"""

from __future__ import annotations

import json
import os
import platform
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any, Literal

import torch
import torch.nn.functional as F
from filelock import FileLock
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from fedpeft.errors import AssetError
from fedpeft.machine import files
from fedpeft.machine.cache import get_cache_directory
from fedpeft.machine.hardware import has_fast_bf16
from fedpeft.models.layers import find_linear_layers, replace
from fedpeft.models.quantized import QuantizedLinear

TOKENS, OUT, IN = 512, 1536, 384
"""The product that is timed: as in a small encoder's feed-forward layer."""

REPEATS = 15
GAIN = 1.05
"""Another kernel must be faster than torch's own by this factor to be chosen."""


def get_cpu_name() -> str:
    """The CPU's model name."""
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()


def list_kernels(dtype: torch.dtype) -> tuple[Kernel, ...]:
    """The kernels that this machine can run in `dtype`."""
    if dtype == torch.float64 or not torch._C._has_mkldnn:
        return ("native",)
    if dtype == torch.bfloat16 and not has_fast_bf16("cpu"):
        return ("native", "widened")
    return ("native", "onednn")


def measure_gemm_rates(dtype: torch.dtype) -> dict[Kernel, float]:
    """GFLOP/s of one thread for each kernel (median over interleaved repeats, forward product)."""
    layer = torch.nn.Linear(IN, OUT).to(dtype).requires_grad_(False)
    x = torch.randn(TOKENS, IN).to(dtype)
    kernels = list_kernels(dtype)
    layers = {kernel: FrozenLinear(layer, kernel) for kernel in kernels}
    seconds: dict[Kernel, list[float]] = {kernel: [] for kernel in kernels}
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        with torch.no_grad():
            for repeat in range(REPEATS + 2):
                for kernel, module in layers.items():
                    started = time.thread_time()
                    module(x)
                    if repeat >= 2:
                        seconds[kernel].append(time.thread_time() - started)
    finally:
        torch.set_num_threads(threads)
    return {kernel: 2 * TOKENS * OUT * IN / median(times) / 1e9 for kernel, times in seconds.items()}


def choose(dtype: torch.dtype) -> Kernel:
    """The kernel for frozen products in `dtype` on this machine.

    Raises:
        AssetError: the cache can't be written.
    """
    able = list_kernels(dtype)
    if len(able) == 1:
        return "native"
    key = f"{get_cpu_name()} / torch {torch.__version__} / {dtype} / packed weights"
    file = get_cache_directory() / "kernels.json"
    chosen = _load_choices(file).get(key)
    if chosen in able:
        return chosen
    try:
        with FileLock(file.with_name(f"kernels-{os.geteuid()}.lock")):  # runs that begin together compute alike
            known = _load_choices(file)
            chosen = known.get(key)
            if chosen not in able:
                rates = measure_gemm_rates(dtype)
                fastest = max(rates, key=lambda kernel: rates[kernel])
                chosen = fastest if rates[fastest] > GAIN * rates["native"] else "native"
                files.replace(file, json.dumps({**known, key: chosen}, indent=2).encode())
    except OSError as error:
        raise AssetError(f"FP2039 can't write {file}: {error}; set FEDPEFT_CACHE to another directory") from error
    return chosen


def _load_choices(file: Path) -> dict[str, Kernel]:
    """Choices of before; none where there is no such file, or it holds something else."""
    try:
        found = files.read_json(file)
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


Kernel = Literal["native", "onednn", "widened"]
"""How frozen products are computed: `native` is torch's own `F.linear`; `onednn` calls oneDNN directly, on weights
that were packed once (CPU only); `widened` multiplies bf16 in fp32 and rounds the result, for CPUs that have no bf16
instructions."""


_onednn: Callable[..., Tensor] = torch.ops.mkldnn._linear_pointwise
_packed: Callable[..., Tensor] = torch.ops.mkldnn._reorder_linear_weight

_new_view: Callable[..., Tensor] = torch.ops.aten._unsafe_view
"""Of a tensor that nobody else holds; to autograd no view, so that a model may write into it (DeBERTa does)."""

USUAL_TOKENS = 1024
"""Of a pass: oneDNN arranges packed weights for a product of about this size."""


class FrozenLinear(nn.Module):
    """A frozen linear layer, (out, in); with oneDNN its weights are arranged once as the library's products read them,
    for both directions, instead of in each product."""

    def __init__(self, layer: nn.Linear, kernel: Kernel) -> None:
        super().__init__()
        self.in_features, self.out_features = layer.in_features, layer.out_features
        self.bias = None if layer.bias is None else layer.bias.detach()
        self.kernel = kernel
        self.set_weight(layer.weight.detach())

    def set_weight(self, weight: Tensor) -> None:
        """Take `weight` (out, in) instead of the present one."""
        if self.kernel == "onednn":
            self._held = _packed(weight.contiguous(), USUAL_TOKENS)
            self._transposed = _packed(weight.t().contiguous(), USUAL_TOKENS)
        else:
            self._held = weight

    @property
    def weight(self) -> Tensor:
        """(out, in); a copy where weights are packed."""
        return self._held.to_dense() if self.kernel == "onednn" else self._held

    def forward(self, x: Tensor) -> Tensor:
        """(..., in) to (..., out)."""
        if torch.is_grad_enabled() and x.requires_grad:
            y: Tensor = _FrozenProduct.apply(x, self)  # type: ignore[no-untyped-call]
            return y
        return self.product(x)

    def product(self, x: Tensor) -> Tensor:
        """(..., in) to (..., out), a new tensor; autograd does not see it."""
        if self.kernel == "onednn":
            return _onednn(x, self._held, self.bias, "none", [], "")
        if self.kernel == "widened":
            return apply_wide_linear(x, self._held, self.bias)
        flat = F.linear(x.reshape(-1, x.shape[-1]), self._held, self.bias)
        return _new_view(flat, [*x.shape[:-1], self.out_features])

    def compute_input_gradient(self, gradient: Tensor) -> Tensor:
        """Of the output (..., out), contiguous, to that of the input (..., in), a new tensor."""
        if self.kernel == "onednn":
            return _onednn(gradient, self._transposed, None, "none", [], "")
        if self.kernel == "widened":
            return apply_wide_linear(gradient, self._held.t(), None)
        return gradient @ self._held


class _FrozenProduct(torch.autograd.Function):
    """y = x W^T + b with a frozen W: the only gradient is that of x."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, layer: FrozenLinear) -> Tensor:
        ctx.layer = layer
        return layer.product(x)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        return ctx.layer.compute_input_gradient(gradient.contiguous()), None


def install_fast_linears(base: nn.Module, kernel: Kernel) -> None:
    """Replace every frozen linear layer inside the transformer blocks of `base` by a fast one, in place; those in few
    bits stay, and are decoded for each pass."""
    for path, layer in find_linear_layers(base).items():
        if not isinstance(layer, QuantizedLinear):
            replace(base, path, FrozenLinear(layer, kernel))


def apply_wide_linear(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """x (..., in), weight (out, in), bias (out,) or None: x weight^T + bias, (..., out), rounded to the dtype of x."""
    return F.linear(x.float(), weight.float(), None if bias is None else bias.float()).to(x.dtype)


class WidenedLinear(nn.Linear):
    """A linear layer in bf16, (out, in), that multiplies and adds in fp32."""

    def forward(self, x: Tensor) -> Tensor:
        """(..., in) to (..., out)."""
        return apply_wide_linear(x, self.weight, self.bias)


def widen(model: nn.Module) -> None:
    """Let every plain linear layer of `model` compute so, in place; parameters and names stay."""
    for module in model.modules():
        if type(module) is nn.Linear:
            module.__class__ = WidenedLinear

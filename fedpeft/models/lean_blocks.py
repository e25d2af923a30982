"""Normalization and gated layers of language models that store less for the backward pass.

Autograd stores what each of its operations read. With frozen weights, half of that is not needed:

    y = w x / rms(x)          y and 1 / rms(x), since d x = (w d y - y / w mean(y d y)) / rms(x). Adapters of the next
                              layers keep y anyway; x is not kept, nor its copy in fp32
    h = act(gate) up          gate and up; act(gate) is computed again

Outputs are those of transformers' own modules. A module is changed only if it computes one of these on made-up input.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from fedpeft.models.layers import find_blocks

AGREEMENT = {torch.bfloat16: 0.02, torch.float32: 1e-5, torch.float64: 1e-12}
"""Largest allowed relative difference between a module and its assumed formula.

It is relative to each entry for a norm, and to a token's largest entry for a gated layer.
"""


def keep_less(base: nn.Module) -> None:
    """Make norms and gated layers in the blocks of `base` store less, in place; their outputs stay the same.

    They can be differentiated once, and not by their weights. A norm with a trained weight is computed as before.
    """
    parameter = next(base.parameters())
    for module in find_blocks(base)[1].modules():
        for kind in (LeanNorm, LeanGated):
            of: Any = type(module)
            if not isinstance(module, kind) and kind.can_replace(module, parameter.dtype, parameter.device):
                module.__class__ = _create_lean_class(kind, of)


@cache
def _create_lean_class(kind: type, of: type) -> type:
    return type(of.__name__, (kind, of), {})


def _is_equivalent(
    module: nn.Module, width: int, dtype: torch.dtype, device: torch.device, meant: Any, each: bool = False
) -> bool:
    """Return whether `module` computes `meant` on made-up tokens.

    The tokens are small, usual and large, so that caps would show.

    Args:
        module: the module of the base.
        width: width of the tokens.
        dtype: dtype of the tokens.
        device: device of the module.
        meant: the assumed formula.
        each: whether each entry must agree relative to itself, so that large weights do not hide the others.
    """
    x = torch.randn(1, 3, width, generator=torch.Generator().manual_seed(0)) * torch.tensor([[0.01], [1.0], [100.0]])
    x = x.to(device, dtype)
    with torch.no_grad():
        try:
            actual, expected = module(x), meant(x)
        except (TypeError, ValueError, RuntimeError, AttributeError, IndexError):
            return False
    if not isinstance(actual, Tensor) or actual.shape != expected.shape:
        return False
    off, largest = ((t.abs() if each else t.abs().amax(-1)) for t in (actual - expected, expected))
    return bool((off <= AGREEMENT.get(dtype, 0.0) * largest).all())


def _get_epsilon(module: Any) -> float | None:
    epsilon = getattr(module, "variance_epsilon", getattr(module, "eps", None))
    return float(epsilon) if isinstance(epsilon, int | float) else None


def _compute_inverse_rms(x: Tensor, epsilon: float) -> Tensor:
    """Compute 1 / rms of tokens (..., d), as (..., 1), in at least fp32."""
    wide = x if x.dtype == torch.float64 else x.float()
    squares: Tensor = torch.linalg.vector_norm(wide, dim=-1, keepdim=True).square_()
    return (squares / x.shape[-1] + epsilon).rsqrt_()


def _compute_factor(weight: Tensor, added: float) -> Tensor:
    """Return the factor of a norm, in at least fp32."""
    wide = weight if weight.dtype == torch.float64 else weight.float()
    return wide + added if added else wide


class LeanNorm(nn.Module):
    """A root mean square norm of tokens (..., d) with a frozen weight w or 1 + w."""

    @classmethod
    def can_replace(cls, module: nn.Module, dtype: torch.dtype, device: torch.device) -> bool:
        """Return whether `module` is such a norm; store in it whether the weight is w or 1 + w."""
        weight, epsilon = getattr(module, "weight", None), _get_epsilon(module)
        if "RMSNorm" not in type(module).__name__ or not isinstance(weight, nn.Parameter) or epsilon is None:
            return False
        for more in (0.0, 1.0):
            factor = _compute_factor(weight.detach(), more)

            def meant(x: Tensor, factor: Tensor = factor) -> Tensor:
                return x * _compute_inverse_rms(x, epsilon) * factor

            if bool(factor.all()) and _is_equivalent(module, len(weight), dtype, device, meant, each=True):
                module._added = more  # type: ignore[assignment]
                return True
        return False

    def forward(self, x: Tensor) -> Tensor:
        """(..., d) to (..., d)."""
        usual: Callable[[Tensor], Tensor] = super().forward
        if not (torch.is_grad_enabled() and x.requires_grad) or self.weight.requires_grad:
            return usual(x)
        y: Tensor = _NormFunction.apply(x, self.weight, self._added, _get_epsilon(self), usual)  # type: ignore[no-untyped-call]
        return y


class _NormFunction(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, added: float, epsilon: float, usual: Any) -> Tensor:
        y: Tensor = usual(x)
        ctx.save_for_backward(y, weight, _compute_inverse_rms(x, epsilon))
        ctx.added = added
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None, None, None]:
        y, weight, inverse = ctx.saved_tensors
        factor, wide, of_y = _compute_factor(weight, ctx.added), y.to(inverse.dtype), gradient.to(inverse.dtype)
        along = (of_y * wide).mean(-1, keepdim=True)
        of_x = torch.addcmul(of_y * factor, wide / factor, along, value=-1).mul_(inverse)
        return of_x.to(y.dtype), None, None, None, None


class LeanGated(nn.Module):
    """down(act(gate(x)) up(x)) on tokens (..., d), as in Llama and most later models.

    Adapters may be put into any of the three layers.
    """

    @classmethod
    def can_replace(cls, module: nn.Module, dtype: torch.dtype, device: torch.device) -> bool:
        """Return whether `module` is such a layer."""
        parts: list[Any] = [getattr(module, n, None) for n in ("gate_proj", "up_proj", "down_proj", "act_fn")]
        if not all(map(callable, parts)) or not isinstance(getattr(parts[0], "in_features", None), int):
            return False
        gate, up, down, act = parts
        return _is_equivalent(module, gate.in_features, dtype, device, lambda x: down(act(gate(x)) * up(x)))

    def forward(self, x: Tensor) -> Tensor:
        """(..., d) to (..., d)."""
        this: Any = self
        if not torch.is_grad_enabled():
            usual: Tensor = super().forward(x)
            return usual
        gated: Tensor = _GatedFunction.apply(this.gate_proj(x), this.up_proj(x), this.act_fn)  # type: ignore[no-untyped-call]
        y: Tensor = this.down_proj(gated)
        return y


class _GatedFunction(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, gate: Tensor, up: Tensor, act: Callable[[Tensor], Tensor]) -> Tensor:
        ctx.save_for_backward(gate, up)
        ctx.act = act
        acted = act(gate)
        return acted * up if acted.data_ptr() == gate.data_ptr() else acted.mul_(up)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, Tensor, None]:
        gate, up = ctx.saved_tensors
        with torch.enable_grad():
            entering = gate.detach().requires_grad_()
            acted = ctx.act(entering)
        (of_gate,) = torch.autograd.grad(acted, entering, gradient * up)
        return of_gate, gradient * acted.detach(), None

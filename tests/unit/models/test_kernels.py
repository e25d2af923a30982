"""Every way of computing a frozen product gives torch's own result, and the choice suits the machine."""

from __future__ import annotations

import pytest
import torch
from fedpeft.clients.batched import BatchedExecutor

from fedpeft.models import kernels
from fedpeft.models.base_model import resolve_model
from fedpeft.models.kernels import FrozenLinear, WidenedLinear
from fedpeft.parts.families import PEFT_METHODS, TASKS


def products(kernel, dtype):
    """Output and gradient of the input, for one layer and one batch."""
    torch.manual_seed(0)
    layer = torch.nn.Linear(48, 80).to(dtype).requires_grad_(False)
    x = torch.randn(3, 7, 48).to(dtype).requires_grad_()
    y = FrozenLinear(layer, kernel)(x)
    y.backward(torch.randn(3, 7, 80).to(dtype))
    return y.detach(), x.grad


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_kernels_of_this_machine_agree(dtype):
    """The gradient too: to the last bits of fp32, to bf16's rounding of an fp32 sum."""
    usual, gradient = products("native", dtype)
    tolerance = 2**-7 if dtype == torch.bfloat16 else 1e-6
    for kernel in kernels.list_kernels(dtype):
        y, g = products(kernel, dtype)
        assert y.dtype == g.dtype == dtype
        assert (y - usual).abs().max() <= tolerance * usual.abs().max(), kernel
        assert (g - gradient).abs().max() <= tolerance * gradient.abs().max(), kernel


def test_widened_products_are_rounded_once():
    """bf16 numbers multiplied and added in fp32, then rounded: the exact product's nearest bf16, or its neighbour."""
    torch.manual_seed(0)
    layer = torch.nn.Linear(64, 32).to(torch.bfloat16).requires_grad_(False)
    x = torch.randn(5, 64).to(torch.bfloat16)
    y = FrozenLinear(layer, "widened")(x)
    exact = torch.nn.functional.linear(x.double(), layer.weight.double(), layer.bias.double())
    assert ((y.double() - exact).abs() <= exact.abs() * 2**-8 + 1e-5).all()


@pytest.mark.parametrize("kernel", kernels.list_kernels(torch.bfloat16))
def test_a_residual_is_added_in_full_and_rounded_once(kernel):
    """Clients train on W0 + R in the base's own precision, whichever kernel multiplies it; without R on W0 again."""
    task, folder, method = TASKS.build("classification"), resolve_model("tiny"), PEFT_METHODS.build("lora(layers=1)")
    model = task.model(task.base(folder, torch.bfloat16), 2)
    method.attach(model, "bf16")
    layout = method.layout(model)
    module = layout.pairs[0].module
    before = task.base(folder, torch.bfloat16).get_submodule(module).weight.detach()
    plain = task.model(task.base(folder, torch.bfloat16), 2)
    executor = BatchedExecutor(plain, task, method, None, layout, 2, kernel)
    residual = 1e-3 * torch.randn(before.shape, generator=torch.Generator().manual_seed(0))
    executor.set_residual({module: residual})
    layer = executor.get_frozen_layer(module)
    assert layer.kernel == kernel
    assert torch.equal(layer.weight, (before.float() + residual).to(torch.bfloat16))
    executor.set_residual({})
    assert torch.equal(layer.weight, before)


@pytest.mark.parametrize(
    ("machine", "bf16", "chosen"),
    [
        ("x86_64", True, ["onednn", "onednn", "native"]),
        ("x86_64", False, ["onednn", "widened", "native"]),
        ("aarch64", True, ["native", "native", "native"]),
        ("aarch64", False, ["native", "widened", "native"]),
    ],
)
def test_the_processor_alone_decides_on_the_kernel(monkeypatch, machine, bf16, chosen):
    monkeypatch.setattr("platform.machine", lambda: machine)
    monkeypatch.setattr(kernels, "has_fast_bf16", lambda device: bf16)
    assert [kernels.choose(dtype) for dtype in (torch.float32, torch.bfloat16, torch.float64)] == chosen


def test_a_whole_base_in_bf16_computes_the_same_without_bf16_arithmetic(monkeypatch):
    """In fp32 inside each product: closer to the exact model than bf16 sums are, or as close."""
    task, folder = TASKS.build("classification"), resolve_model("tiny")
    ids = torch.arange(2, 22).reshape(2, 10)
    outputs = {}
    for fast in (True, False):
        monkeypatch.setattr("fedpeft.models.loading.has_fast_bf16", lambda device, fast=fast: fast)
        base = task.base(folder, torch.bfloat16)
        assert any(type(m) is WidenedLinear for m in base.modules()) != fast
        outputs[fast] = base(input_ids=ids).last_hidden_state
        assert outputs[fast].dtype == torch.bfloat16
    exact = task.base(folder, torch.float64)(input_ids=ids).last_hidden_state
    usual, widened = ((outputs[fast].double() - exact).norm() / exact.norm() for fast in (True, False))
    assert widened < 0.02
    assert widened <= 1.5 * usual

"""Norms and gated layers that keep less: the same outputs and gradients as the modules that they were."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn
from transformers.models.gemma3.modeling_gemma3 import Gemma3RMSNorm
from transformers.models.llama.modeling_llama import LlamaMLP, LlamaRMSNorm

from fedpeft.models.base_model import resolve_model
from fedpeft.models.lean_blocks import LeanGated, LeanNorm, keep_less
from fedpeft.models.tasks.causal_lm import CausalLM

WIDTH = 24


class RMSNormOfFp64(nn.Module):
    """Llama's, in the dtype that it is given."""

    def __init__(self, width, eps=1e-6):
        super().__init__()
        self.weight, self.eps = nn.Parameter(torch.ones(width)), eps

    def forward(self, x):
        return self.weight * (x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + self.eps))


class Mlp(nn.Module):
    def __init__(self, act):
        super().__init__()
        self.gate_proj, self.up_proj = nn.Linear(WIDTH, 40), nn.Linear(WIDTH, 40)
        self.down_proj, self.act_fn = nn.Linear(40, WIDTH), act

    def forward(self, x):
        return self.down_proj(self.act_fn(self.gate_proj(x)) * self.up_proj(x))


def pair(module, dtype):
    """Return a module unchanged, and one that keeps less, each in a base of one block."""
    torch.manual_seed(0)
    for parameter in module.parameters():
        parameter.data.add_(0.3 * torch.randn(parameter.shape))
    usual = nn.Sequential(nn.ModuleList([module.to(dtype).requires_grad_(False)]))
    lean = copy.deepcopy(usual)
    keep_less(lean)
    return usual[0][0], lean[0][0]


def passed(module, dtype, scale=1.0):
    random = torch.Generator().manual_seed(1)
    x = (scale * torch.randn(2, 5, WIDTH, generator=random)).to(dtype).requires_grad_()
    y = module(x)
    y.backward(torch.randn(y.shape, generator=random).to(dtype))
    return y.detach(), x.grad


NEAR = {torch.float64: 1e-12, torch.float32: 1e-5, torch.bfloat16: 0.02}
MODULES = {
    "llama's norm": lambda: LlamaRMSNorm(WIDTH),
    "gemma's norm": lambda: Gemma3RMSNorm(WIDTH),
    "norm of fp64": lambda: RMSNormOfFp64(WIDTH),
    "silu": lambda: Mlp(nn.SiLU()),
    "gelu": lambda: Mlp(nn.GELU(approximate="tanh")),
    "identity": lambda: Mlp(nn.Identity()),  # which must not be written into
    "sigmoid": lambda: Mlp(nn.Sigmoid()),  # whose gradient is made from its output
}


@pytest.mark.parametrize("scale", [1e-3, 1.0, 100.0])
@pytest.mark.parametrize("dtype", NEAR)
@pytest.mark.parametrize("name", MODULES)
def test_outputs_and_gradients_are_those_of_the_module(name, dtype, scale):
    usual, lean = pair(MODULES[name](), dtype)
    in_fp32 = dtype == torch.float64 and name in ("llama's norm", "gemma's norm")
    assert isinstance(lean, LeanNorm | LeanGated) is not in_fp32, "norms that compute fp64 in fp32 are left as they are"
    (y, of_x), (expected, of_expected) = passed(lean, dtype, scale), passed(usual, dtype, scale)
    assert torch.equal(y, expected)
    assert (of_x - of_expected).abs().max() <= NEAR[dtype] * of_expected.abs().max()


def test_what_gemma_adds_to_its_weight_is_not_rounded_away():
    """1 + w of a small w is 1 in bf16."""
    norm = Gemma3RMSNorm(WIDTH)
    norm.weight.data.fill_(0.003)
    lean = nn.Sequential(nn.ModuleList([norm.to(torch.bfloat16).requires_grad_(False)]))
    keep_less(lean)
    seen = []
    x = torch.randn(1, 64, WIDTH, generator=torch.Generator().manual_seed(1)).bfloat16().requires_grad_()
    for module in (lean[0][0], copy.deepcopy(norm).float()):
        given = x if not seen else x.detach().float().requires_grad_()
        module(given).backward(torch.ones_like(given))
        seen.append(given.grad.float())
    assert abs(float((seen[0] * seen[1]).sum() / seen[1].square().sum()) - 1) < 1e-3


def test_large_weights_of_a_norm_do_not_hide_what_small_ones_are():
    """A weight w and 1 + w agree to a percent if w is 100, but not if it is 0.003."""
    norm = Gemma3RMSNorm(WIDTH)
    norm.weight.data.fill_(0.003)[WIDTH // 2 :] = 100.0
    usual = nn.Sequential(nn.ModuleList([norm.to(torch.bfloat16).requires_grad_(False)]))
    lean = copy.deepcopy(usual)
    keep_less(lean)
    of_x = []
    for base in (usual, lean):
        x = torch.randn(1, 5, WIDTH, generator=torch.Generator().manual_seed(1)).bfloat16().requires_grad_()
        base[0][0](x)[..., : WIDTH // 2].sum().backward()
        of_x.append(x.grad.float())
    assert isinstance(lean[0][0], LeanNorm)
    assert (of_x[1] - of_x[0]).abs().max() <= 0.02 * of_x[0].abs().max()


def test_names_and_copies_stay():
    _, lean = pair(LlamaRMSNorm(WIDTH), torch.float32)
    assert type(lean).__name__ == "LlamaRMSNorm"
    assert isinstance(lean, LlamaRMSNorm)
    twin = copy.deepcopy(lean)
    twin.weight.data.mul_(2)
    assert torch.equal(passed(twin, torch.float32)[0], 2 * passed(lean, torch.float32)[0])


def test_a_weight_that_is_trained_gets_its_gradient():
    usual, lean = pair(LlamaRMSNorm(WIDTH), torch.float32)
    for module in (usual, lean):
        module.weight.requires_grad_(True)
        passed(module, torch.float32)
    assert torch.equal(lean.weight.grad, usual.weight.grad)


class OtherMlp(Mlp):
    def forward(self, x):
        return super().forward(x) + x


class CappedMlp(Mlp):
    def forward(self, x):
        return self.down_proj(self.act_fn(self.gate_proj(x).clamp(max=30)) * self.up_proj(x))


def test_what_computes_something_else_is_left_as_it_is():
    for kind in (OtherMlp, CappedMlp):
        assert not isinstance(pair(kind(nn.SiLU()), torch.float32)[1], LeanGated)
    norm = LlamaRMSNorm(WIDTH)
    norm.weight.data.zero_()
    base = nn.Sequential(nn.ModuleList([norm.requires_grad_(False)]))
    keep_less(base)
    assert type(base[0][0]) is LlamaRMSNorm, "its input can't be had from its output"


def test_a_language_model_does_not_keep_its_activated_gates():
    kept = {}
    for lean in (False, True):
        base = CausalLM().base(resolve_model("tiny_lm"), torch.float32).requires_grad_(False)
        if lean:
            keep_less(base)
            assert sum(isinstance(m, LeanGated) for m in base.modules()) == 2
            assert any(isinstance(m, LlamaMLP) for m in base.modules())
        found = kept[lean] = {}

        def keep(tensor, found=found):
            found[tensor.untyped_storage().data_ptr()] = tensor
            return tensor

        hidden = torch.randn(4, 64, base.config.hidden_size).requires_grad_()
        with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
            base.model(inputs_embeds=hidden, use_cache=False)
    sizes = {lean: sum(t.untyped_storage().nbytes() for t in found.values()) for lean, found in kept.items()}
    gates = 4 * 4 * 64 * base.config.intermediate_size * len(base.model.layers)
    assert 0.95 * gates < sizes[False] - sizes[True] < 1.05 * gates

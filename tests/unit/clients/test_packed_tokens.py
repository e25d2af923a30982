"""Rows without padding, and the products of many clients' thin factors: the same numbers, sooner."""

from __future__ import annotations

from copy import deepcopy

import numpy as np
import pytest
import torch
from fedpeft.clients.batched import BatchedExecutor
from transformers import AutoConfig, AutoModel, AutoModelForCausalLM

from fedpeft.data.examples import LENGTH_STEP
from fedpeft.models.conv1d import replace_conv1d
from fedpeft.models.dtypes import DTYPES
from fedpeft.models.frozen_blocks import ActivationCache, cut_below
from fedpeft.models.kernels import FrozenLinear
from fedpeft.models.packed_tokens import PackedTokens, _has_attention_windows, can_pack_tokens
from fedpeft.models.packing import STEP, Packing
from fedpeft.parts.families import PEFT_METHODS
from fedpeft.peft.adapter import AdapterShape
from fedpeft.peft.stacked_products import Factors, add_low_rank, split_evenly
from tests.unit.clients.test_executors import SHARDS, build, jobs, worst
from tests.unit.clients.test_packing import TASK as LANGUAGE
from tests.unit.clients.test_packing import jobs as language_jobs
from tests.unit.clients.test_packing import made_rows

PACKED = ["lora(rank=4, layers=0)", "lora(rank=4, layers=1, targets=('query', 'value'))", "rslora(rank=4)"]
PADDED = [
    "lora(rank=4, dropout=0.2)",
    "lora_fa(rank=4)",
    "lora_sb(rank=4)",
    "ia3",
    "bitfit",
    "bottleneck(dim=4)",
    "bottleneck(dim=4, place='parallel')",
    "prefix_tuning(length=3)",
    "prefix_tuning_plus",
    "prompt_tuning(length=3)",
    "lora(rank=4) + bitfit",
    "lora(rank=4) + ia3",
    "lora(rank=4) + bottleneck(dim=4)",
    "prefix_tuning(length=3) + lora(rank=4)",
]


@pytest.fixture(autouse=True)
def _pack_every_pass(monkeypatch):
    """Pack every pass, although these examples are too short to gain from packing."""
    monkeypatch.setattr("fedpeft.models.packed_tokens.WORTH", -STEP)


@pytest.mark.medium
@pytest.mark.parametrize("spec", PACKED + PADDED)
def test_every_method_trains_as_one_client_after_another(tiny, spec):
    """Packed where that is right, and else padded: clients of unequal length, rank and number of steps in one pass."""
    sequential, batched, layout, start = build(tiny, spec, "fp64")
    assert (batched.packed is not None) == (spec in PACKED)
    work = jobs(layout, start, batch_size=3)
    one, other = list(sequential.train(work)), list(batched.train(work))
    assert worst(one, other, work) < 1e-10
    rows = np.arange(60)
    assert batched.evaluate(start, rows).loss == pytest.approx(sequential.evaluate(start, rows).loss, rel=1e-12)


@pytest.mark.medium
@pytest.mark.parametrize("batch_size", [1, 4, 8])
def test_packed_and_padded_passes_agree(tiny, batch_size, monkeypatch):
    """The code before packed nothing."""
    forms = [AdapterShape(r, a) for r, a in ((2, 4), (6, 12), (3, 1), (1, 8), (6, 3), (4, 4))]
    _, packed, layout, start = build(tiny, "lora(rank=6, alpha=12, layers=0)", "fp64")
    monkeypatch.setattr("fedpeft.clients.batched.can_pack_tokens", lambda base: False)
    _, padded, *_ = build(tiny, "lora(rank=6, alpha=12, layers=0)", "fp64")
    assert packed.packed is not None
    assert padded.packed is None
    work = jobs(layout, start, forms=forms, batch_size=batch_size)
    assert worst(list(padded.train(work)), list(packed.train(work)), work) < 1e-10


def test_the_same_seed_gives_the_same_bits(tiny):
    """Whatever the executor has done before."""
    _, batched, layout, start = build(tiny, "lora(rank=4, layers=0)", "fp32")
    work = jobs(layout, start)
    first, again = list(batched.train(work)), list(batched.train(work))
    _, other, *_ = build(tiny, "lora(rank=4, layers=0)", "fp32")
    for a, b, c in zip(first, again, other.train(work), strict=True):
        assert all(torch.equal(a.state[n], b.state[n]) and torch.equal(a.state[n], c.state[n]) for n in a.state)


@pytest.mark.parametrize("dtype", ["fp32", "bf16"])
def test_the_frozen_part_is_kept_as_padded_rows_give_it(tiny, tmp_path, dtype):
    task, rows, folder, _ = tiny
    base = task.base(folder, DTYPES[dtype])
    assert can_pack_tokens(base) == (dtype == "fp32")
    hidden = []
    for name in ("padded", "packed"):
        store = ActivationCache(tmp_path / name, rows, 1, base.config.hidden_size, DTYPES[dtype])
        missing = store.find_missing_tiles()
        if name == "packed":
            with PackedTokens(base):
                store.fill(missing[0], base)
        else:
            store.fill(missing[0], base)
        some = store.tiles[0]
        hidden.append((store.read_hidden(some, 32), store.read_features(some)))
    for padded, packed in zip(*hidden, strict=True):
        assert torch.allclose(packed, padded, rtol=0, atol=(1e-5 if dtype == "fp32" else 0.05) * padded.abs().max())
    assert base.config._attn_implementation != "sdpa_fp32" or dtype == "bf16", "it is put back"


MODERN = {"intermediate_size": 32, "local_attention": 128, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2,
          "cls_token_id": 1, "sep_token_id": 2}  # fmt: skip


@pytest.mark.parametrize(
    ("kind", "settings", "whole", "upper"),
    [
        ("bert", {"intermediate_size": 32}, True, True),
        ("electra", {"intermediate_size": 32}, True, False),  # the part above has a projection in it
        ("distilbert", {"hidden_dim": 32}, True, True),
        ("roberta", {"intermediate_size": 32}, False, True),  # its positions do not start at 0
        ("modernbert", MODERN, False, False),  # two of three layers see a window, which short rows do not show
    ],
)
def test_only_models_that_compute_the_same_are_packed(kind, settings, whole, upper):
    sizes = {"hidden_size": 16, "num_hidden_layers": 3, "num_attention_heads": 2, "vocab_size": 30}
    torch.manual_seed(0)
    base = AutoModel.from_config(AutoConfig.for_model(kind, **sizes, **settings)).eval()
    assert can_pack_tokens(base) == whole
    assert can_pack_tokens(cut_below(base, 1)) == upper


def test_bases_that_would_ignore_the_packing_are_not_packed(tiny):
    """Other attention functions see all rows as one."""
    task, _, folder, _ = tiny
    assert not can_pack_tokens(task.base(folder, torch.float32, attn_implementation="eager"))


def test_a_base_whose_upper_part_is_packed_stays_as_it_is(tiny):
    task, _, folder, _ = tiny
    base = task.base(folder, torch.float32)
    with PackedTokens(cut_below(base, 1)):
        assert not base._forward_pre_hooks
        assert not base._forward_hooks


@pytest.mark.parametrize("clients", [1, 2, 4])
def test_packing_keeps_every_token_and_whose_it_is(clients):
    lengths = torch.tensor([5, 5, 2, 8, 3, 4, 6, 7])
    mask = torch.arange(8) < lengths[:, None]
    packing = Packing.from_mask(mask, clients)
    assert packing.size % STEP == 0
    x = torch.randn(8, 8, 3)
    packed = packing.pack(x)
    assert torch.equal(packing.pad(packed), x * mask[..., None])
    assert not packed[0, int(lengths.sum()) :].any()
    assert [(rows, tokens) for rows, tokens in packing.runs][:2] == [(2, 5), (1, 2)]
    totals = lengths.view(clients, -1).sum(1).tolist()
    found = [
        (tokens.stop - tokens.start) // (whose.stop - whose.start)
        for whose, tokens in packing.groups
        for _ in range(whose.stop - whose.start)
    ]
    assert found == totals
    assert packing.groups[-1][1].stop == sum(totals)


def before(y, x, factors, clients):
    """Return the sum as the first implementation computed it."""
    lora_a, lora_b = factors.A[:clients].to(x.dtype), (factors.B * factors.scales)[:clients].to(x.dtype)
    hidden = torch.bmm(x.reshape(clients, -1, x.shape[-1]), lora_a.transpose(1, 2))
    return torch.baddbmm(y.reshape(clients, -1, y.shape[-1]), hidden, lora_b.transpose(1, 2)).view_as(y)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
@pytest.mark.parametrize("with_layer", [True, False])
@pytest.mark.parametrize("clients", [3, 2])
def test_the_fused_sum_and_its_gradients_are_those_of_plain_products(dtype, with_layer, clients):
    """Of clients that are done the gradient is zero."""
    torch.manual_seed(0)
    held = torch.float64 if dtype == torch.float64 else torch.float32
    factors = Factors(
        torch.randn(3, 4, 24, dtype=held, requires_grad=True),
        torch.randn(3, 40, 4, dtype=held, requires_grad=True),
        torch.tensor([0.5, 2.0, 1.0], dtype=held).view(3, 1, 1),
    )
    layer = FrozenLinear(torch.nn.Linear(24, 40).to(dtype).requires_grad_(False), "native")
    x = torch.randn(2 * clients, 5, 24).to(dtype).requires_grad_()
    found = []
    for fused in (True, False):
        for tensor in (x, factors.A, factors.B):
            tensor.grad = None
        if not fused:
            y = before(layer(x), x, factors, clients)
        elif with_layer:
            y = add_low_rank(None, x, factors, split_evenly(clients, x), layer)
        else:
            y = add_low_rank(layer(x), x, factors, split_evenly(clients, x))
        torch.manual_seed(1)
        y.backward(torch.randn(y.shape).to(dtype))
        found.append([y.detach(), x.grad, factors.A.grad, factors.B.grad])
    tolerance = {torch.float64: 1e-13, torch.float32: 1e-5, torch.bfloat16: 2e-2}[dtype]
    for one, other in zip(*found, strict=True):
        assert one.dtype == other.dtype
        assert (one - other).norm() <= tolerance * other.norm()
    assert not found[0][2][clients:].any()
    assert not found[0][3][clients:].any()


def test_an_input_that_is_no_block_of_memory_has_its_gradient():
    torch.manual_seed(0)
    factors = Factors(torch.randn(2, 4, 24), torch.randn(2, 40, 4), torch.ones(2, 1, 1))
    x = torch.randn(5, 4, 24).transpose(0, 1).requires_grad_()
    (found,) = torch.autograd.grad(
        add_low_rank(torch.zeros(4, 5, 40), x, factors, split_evenly(2, x)).square().sum(), x
    )
    (plain,) = torch.autograd.grad(before(torch.zeros(4, 5, 40), x, factors, 2).square().sum(), x)
    assert plain.any()
    assert torch.allclose(found, plain, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("worth", [1, 40, 10_000])
def test_a_pass_does_without_padding_where_it_is_worth_it(tiny, monkeypatch, worth):
    """The frozen products see as many tokens as there are, filled up to a step."""
    monkeypatch.setattr("fedpeft.models.packed_tokens.WORTH", worth)
    _, batched, layout, start = build(tiny, "lora(rank=4, layers=0)", "fp32")
    seen = []
    layer = next(m for m in batched.model.base.modules() if isinstance(m, FrozenLinear))
    product = layer.product
    layer.product = lambda x: seen.append(x.shape[0] * x.shape[1]) or product(x)
    work = jobs(layout, start, SHARDS[:1], batch_size=7)
    list(batched.train(work))
    expected = []
    for rows in work[0].create_batches(batched.examples.lengths):
        lengths = batched.examples.lengths[rows]
        padded = -(-int(lengths.max()) // LENGTH_STEP) * LENGTH_STEP * len(rows)
        packed = -(-int(lengths.sum()) // STEP) * STEP
        expected.append(packed if padded - packed >= worth else padded)
    assert seen == expected


SIZES = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "vocab_size": 90, "pad_token_id": 0}
LLAMA = {"intermediate_size": 48, "num_key_value_heads": 2}


@pytest.mark.parametrize("dtype", ["fp64", "bf16"])
@pytest.mark.parametrize(
    ("kind", "settings"),
    [
        ("llama", LLAMA),
        ("qwen3", LLAMA | {"head_dim": 8}),
        ("gpt_neox", {"intermediate_size": 48}),
        ("gpt2", {}),  # hands its tokens on without a name
    ],
)
def test_language_models_train_without_padding_as_with_it(kind, settings, dtype):
    """Attention is row by row: no mask of all tokens by all tokens is made."""
    torch.manual_seed(0)
    base = AutoModelForCausalLM.from_config(AutoConfig.for_model(kind, **SIZES, **settings))
    base = base.to(DTYPES[dtype]).eval().requires_grad_(False)
    replace_conv1d(base)
    method = PEFT_METHODS.build("lora(rank=2, layers=0)")
    reference = LANGUAGE.model(deepcopy(base), None)
    method.attach(reference, dtype)
    layout, rows, masks = method.layout(reference), made_rows(90), set()
    start = {name: t + 0.1 * torch.randn_like(t) for name, t in method.start(reference, 0).items()}
    packed, padded = (
        BatchedExecutor(LANGUAGE.model(deepcopy(base), None), LANGUAGE, method, rows, layout, 3, "native")
        for _ in range(2)
    )
    padded.packed.worth = 10**9
    for module in packed.model.modules():
        if type(module).__name__.endswith("Attention"):
            module.register_forward_pre_hook(lambda _, __, n: masks.add(n["attention_mask"].numel()), with_kwargs=True)
    work = language_jobs(layout, start)
    one, other = list(packed.train(work)), list(padded.train(work))
    assert masks == {1}
    assert (padded.packed.packing, packed.packed.packing is not None) == (None, True)
    assert worst(one, other, work) < (1e-9 if dtype == "fp64" else 0.2)
    assert [t.loss for t in one] == pytest.approx([t.loss for t in other], rel=1e-10 if dtype == "fp64" else 2e-3)


def test_windows_of_a_language_model_are_padded():
    config = AutoConfig.for_model("mistral", **SIZES, **LLAMA, sliding_window=4)
    assert not can_pack_tokens(AutoModelForCausalLM.from_config(config).eval())


def test_windows_of_a_text_model_inside_another_are_seen():
    assert _has_attention_windows(AutoConfig.for_model("gemma3"))
    assert not _has_attention_windows(AutoConfig.for_model("llama"))


@pytest.mark.parametrize("dtype", ["fp32", "bf16"])
def test_a_model_with_an_attention_of_its_own_is_padded(dtype):
    """Of two short rows rounding hides what it makes of packed ones."""
    torch.manual_seed(0)
    base = AutoModelForCausalLM.from_config(AutoConfig.for_model("falcon", **SIZES)).to(DTYPES[dtype]).eval()
    assert not can_pack_tokens(base)

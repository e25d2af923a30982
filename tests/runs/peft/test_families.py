"""Families of language models, each a tiny one of random weights: trained either way, saved, merged, asked."""

from __future__ import annotations

import json

import pytest
import torch
import transformers
from fedpeft.clients.sequential import SequentialExecutor
from transformers import AutoModelForCausalLM

from fedpeft.models.base_model import resolve_model
from fedpeft.models.frozen_blocks import can_start_at, cut_below
from fedpeft.models.layers import find_blocks
from fedpeft.models.quantized_base import quantize
from fedpeft.parts.families import PEFT_METHODS
from fedpeft.peft import saved_adapter
from tests.refusals import refuses
from tests.unit.clients.test_packing import TASK, apart, executors, jobs, made_rows

pytestmark = pytest.mark.slow

SIZES = {
    "vocab_size": 100, "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2, "num_attention_heads": 4,
    "max_position_embeddings": 64, "bos_token_id": 2, "eos_token_id": 3, "pad_token_id": 0,
}  # fmt: skip
GROUPED = SIZES | {"num_key_value_heads": 2}
WINDOW = 8
"""Tokens, fewer than rows have."""

FAMILIES = {
    "llama": ("Llama", GROUPED | {"tie_word_embeddings": False}),
    "smollm": ("Llama", GROUPED | {"tie_word_embeddings": True}),
    "qwen2": ("Qwen2", GROUPED | {"use_sliding_window": True, "sliding_window": WINDOW, "max_window_layers": 1}),
    "qwen3": ("Qwen3", GROUPED | {"head_dim": 16}),
    "gemma2": (
        "Gemma2",
        GROUPED | {"head_dim": 16, "query_pre_attn_scalar": 16, "sliding_window": WINDOW}
        | {"attn_logit_softcapping": 0.5, "final_logit_softcapping": 3.0},
    ),
    "gemma2_wide": (
        "Gemma2",
        GROUPED | {"head_dim": 16, "query_pre_attn_scalar": 16, "sliding_window": 64}
        | {"attn_logit_softcapping": 0.5, "final_logit_softcapping": 3.0},
    ),
    "gemma3": ("Gemma3", GROUPED | {"head_dim": 16, "query_pre_attn_scalar": 16, "sliding_window": WINDOW}),
    "mistral": ("Mistral", GROUPED | {"sliding_window": WINDOW}),
    "phi": ("Phi", SIZES | {"partial_rotary_factor": 0.5}),
    "phi3": ("Phi3", GROUPED | {"sliding_window": WINDOW}),
    "gpt2": ("GPT2", SIZES),
    "gpt_neox": ("GPTNeoX", SIZES | {"use_parallel_residual": True}),
}  # fmt: skip
FUSED = {"phi3": "qkv_proj", "gpt2": "c_attn", "gpt_neox": "query_key_value"}
SPEC = "lora(rank=2, layers=0)"
IDS = torch.arange(4, 34)[None]


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    made = {}

    def folder(family):
        if family not in made:
            name, sizes = FAMILIES[family]
            config = getattr(transformers, f"{name}TextConfig" if name == "Gemma3" else f"{name}Config")(**sizes)
            torch.manual_seed(0)
            model = transformers.AutoModelForCausalLM.from_config(config)
            for parameter in model.parameters():  # larger than usual, so that caps and windows show
                parameter.data += 0.2 * torch.randn_like(parameter)
            made[family] = tmp_path_factory.mktemp(family)
            model.save_pretrained(made[family])
            for file in resolve_model("tiny_lm").glob("token*"):
                (made[family] / file.name).write_bytes(file.read_bytes())
        return made[family]

    return folder


@pytest.mark.parametrize("family", [family for family in FAMILIES if family != "gemma2"])
def test_one_client_after_another_and_all_in_one_pass_train_alike(family, folders):
    (sequential, batched), layout, start = executors(SPEC, folder=folders(family))
    work = jobs(layout, start)
    one, other = list(sequential.train(work)), list(batched.train(work))
    assert [t.loss for t in one] == pytest.approx([t.loss for t in other], rel=1e-6)
    assert apart(one, other, work) < 1e-4  # norms, rotations and caps are computed in fp32, whatever the rest is
    assert any(FUSED.get(family, "q_proj") in tensor.module for tensor in layout.tensors)


@pytest.mark.parametrize("family", [family for family in FAMILIES if family != "gpt2"])  # its positions are its own
def test_a_pass_that_starts_at_the_second_block_ends_as_a_whole_one(family, folders):
    """On rows longer than windows, and padded."""
    base = TASK.base(folders(family), torch.float32)
    assert can_start_at(base, 1)
    rows = made_rows(base.config.vocab_size).batch(range(4))
    inputs = {name: rows[name] for name in ("input_ids", "attention_mask")}
    seen = []
    hook = find_blocks(base)[1][1].register_forward_pre_hook(
        lambda _, given, named: seen.append(given[0] if given else named["hidden_states"]), with_kwargs=True
    )
    with torch.no_grad():
        whole = base(**inputs).logits
        hook.remove()
        part = cut_below(base, 1)(inputs_embeds=seen[0], attention_mask=inputs["attention_mask"]).logits
    real = inputs["attention_mask"].bool()
    assert int(real.sum(1).max()) > WINDOW
    assert torch.allclose(part[real], whole[real], rtol=1e-4, atol=1e-4)


def test_gemma2_s_windows_are_refused_in_fp64_and_train_alike_in_fp32(folders):
    with refuses("FP4044", "gemma2", "8", "--dtype"):
        executors(SPEC, folder=folders("gemma2"))
    (sequential, batched), layout, start = executors(SPEC, "fp32", folder=folders("gemma2"))
    work = jobs(layout, start, work="epochs(1.0)")
    one, other = list(sequential.train(work)), list(batched.train(work))
    assert [t.loss for t in one] == pytest.approx([t.loss for t in other], rel=1e-4)
    assert apart(one, other, work) < 2e-2


@pytest.mark.parametrize("family", FAMILIES)
def test_losses_are_those_of_transformers_own_attention_written_out(family, folders):
    """Of eager attention, which has every cap and window in it."""
    base = TASK.base(folders(family), torch.float32)
    plain = AutoModelForCausalLM.from_pretrained(folders(family), attn_implementation="eager", dtype=torch.float32)
    rows = made_rows(100)
    batch = rows.batch(range(8))
    labels = batch["labels"][:, 1:]
    with torch.no_grad():
        logits = plain.eval()(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).logits[:, :-1]
        ours = TASK.row_losses(TASK.model(base, None), batch)
    each = torch.nn.functional.cross_entropy(logits.transpose(1, 2), labels, reduction="none", ignore_index=-100)
    assert torch.allclose(ours.sums, each.sum(1), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("family", FAMILIES)
def test_what_is_saved_and_merged_answers_as_what_was_trained(family, folders, tmp_path):
    (sequential, *_), layout, start = executors(SPEC, "fp32", folder=folders(family))
    [trained, *_] = sequential.train(jobs(layout, start)[:1])
    model = sequential.model.eval()
    saved_adapter.save(tmp_path, model, trained.state, None)
    targets = json.loads((tmp_path / "adapter" / "adapter_config.json").read_text())["target_modules"]
    assert targets == sorted(targets), "the same bytes in each process"
    assert len(targets) > 4
    loaded = saved_adapter.load(tmp_path, TASK, TASK.base(folders(family), torch.float32), 0)
    sequential.load(trained.state)
    with torch.no_grad():
        expected = model.base(IDS).logits
        assert torch.allclose(loaded.base(IDS).logits, expected, atol=1e-4)
        plain = TASK.base(folders(family), torch.float32)(IDS).logits
        assert (expected - plain).abs().max() > 1e-3
        said = loaded.base.generate(input_ids=IDS, max_new_tokens=6, do_sample=False, pad_token_id=0)
        merged = PEFT_METHODS.build(SPEC).merge_adapter(loaded)
        assert torch.allclose(merged(IDS).logits, expected, atol=1e-3)
        assert torch.equal(merged.generate(input_ids=IDS, max_new_tokens=6, do_sample=False, pad_token_id=0), said)
    merged.save_pretrained(tmp_path / "merged")
    again = AutoModelForCausalLM.from_pretrained(tmp_path / "merged", dtype=torch.float32)
    with torch.no_grad():
        assert torch.allclose(again(IDS).logits, expected, atol=1e-3)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("precision", ["int8", "nf4"])
def test_bases_in_few_bits_train(family, precision, folders):
    if precision == "nf4":
        pytest.importorskip("bitsandbytes")
    base = TASK.base(folders(family), torch.float32)
    whole = sum(p.numel() * p.element_size() for p in base.parameters())
    quantize(base, precision)
    model, method = TASK.model(base, None), PEFT_METHODS.build("qlora(rank=2, layers=0)")
    assert sum(p.numel() * p.element_size() for p in base.parameters()) < whole
    method.attach(model, "fp32")
    layout = method.layout(model)
    start = method.start(model, 0)
    work = jobs(layout, start)[:1]
    [trained] = SequentialExecutor(model, TASK, made_rows(100), layout).train(work)
    assert all(tensor.isfinite().all() for tensor in trained.state.values())
    assert all(tensor.any() for name, tensor in trained.state.items() if name.endswith("lora_B.weight"))

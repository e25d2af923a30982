"""Models that are not a list of blocks with torch's linear layers: what is made of them computes the same."""

from __future__ import annotations

from dataclasses import replace

import peft
import pytest
import torch
import transformers
from safetensors.torch import load_file
from torch import nn
from transformers import AutoModel

from experiments.families.__main__ import DOCUMENT, build_table, read_table
from experiments.families.checkpoints import FAMILIES, TOKENS
from fedpeft.data.rows import Rows
from fedpeft.models.kernels import FrozenLinear
from fedpeft.models.layers import choose_blocks, find_linear_layers
from fedpeft.models.packed_tokens import can_pack_tokens
from fedpeft.models.task import find_trainable
from fedpeft.models.tasks.classification import compute_hidden_states
from fedpeft.parts.families import PEFT_METHODS, TASKS
from fedpeft.peft import saved_adapter
from fedpeft.reporting.exports.transformers_folder import create_classifier
from tests.refusals import refuses

TASK = TASKS.build("classification")
IDS = torch.tensor([[5, 6, 7, 8, 9, 10], [11, 12, 13, 0, 0, 0]])
BATCH = {"input_ids": IDS, "attention_mask": (IDS != 0).long()}


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    made = {}

    def folder(name):
        if name not in made:
            made[name] = tmp_path_factory.mktemp("family")
            FAMILIES[name].save(made[name], "classification")
        return made[name]

    return folder


def loaded(folder, dtype=torch.float32):
    return TASK.base(folder, dtype)


def plain(folder, **options):
    return AutoModel.from_pretrained(folder, **options).eval()


def outputs(model):
    with torch.no_grad():
        return model(**BATCH).last_hidden_state


def drawn(model):
    """Draw the adapter's parameters, so that they have an effect."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in find_trainable(model).values():
            parameter.copy_(0.3 * torch.randn(parameter.shape, generator=generator))


def test_gpt2_has_linear_layers_and_its_files_stay_as_they_were(saved, tmp_path):
    base = loaded(saved("GPT-2"))
    assert not [m for m in base.modules() if isinstance(m, transformers.pytorch_utils.Conv1D)]
    assert {name.rpartition(".")[2] for name in find_linear_layers(base)} == {"c_attn", "c_proj", "c_fc"}
    assert torch.allclose(outputs(base), outputs(plain(saved("GPT-2"))), atol=1e-6)
    base.save_pretrained(tmp_path)
    before, after = (load_file(folder / "model.safetensors") for folder in (saved("GPT-2"), tmp_path))
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], after[name]) for name in before)


@pytest.mark.parametrize("method", ["lora(rank=2, layers=0)", "ia3(layers=0)", "dora(rank=2, layers=0)"])
@pytest.mark.parametrize("family", ["GPT-2", "T5", "BART", "ALBERT"])
def test_peft_s_own_model_answers_as_the_saved_adapter(family, method, saved, tmp_path):
    """On the untouched checkpoint, whole: of T5 and BART with the decoder, which the adapter leaves alone."""
    model = TASK.model(loaded(saved(family)), 2)
    PEFT_METHODS.build(method).attach(model, "fp32")
    drawn(model)
    saved_adapter.save(tmp_path, model, {n: p.detach() for n, p in find_trainable(model).items()}, ["a", "b"])
    other = peft.PeftModel.from_pretrained(plain(saved(family)), tmp_path / "adapter").eval()
    inner = other.base_model.model
    expected = outputs(inner.get_encoder() if inner.config.is_encoder_decoder else other)
    found = compute_hidden_states(model.base.eval(), BATCH)
    assert torch.allclose(found, expected, atol=1e-5)
    assert not torch.allclose(found, outputs(loaded(saved(family))), atol=1e-2)


@pytest.mark.parametrize("family", ["T5", "BART"])
def test_of_an_encoder_decoder_the_encoder_is_taken(family, saved):
    base = loaded(saved(family))
    assert not [name for name, _ in base.named_parameters() if name.startswith("decoder")]
    assert torch.allclose(outputs(base), outputs(plain(saved(family)).get_encoder()), atol=1e-6)


def test_t5_s_last_layers_are_in_bf16_as_the_others(saved):
    """The library keeps them in fp32 because of fp16; an adapter and a batched kernel have one dtype."""
    base = loaded(saved("T5"), torch.bfloat16)
    assert {parameter.dtype for parameter in base.parameters()} == {torch.bfloat16}
    real = BATCH["attention_mask"].bool()
    assert torch.allclose(outputs(base)[real].float(), outputs(loaded(saved("T5")))[real], atol=0.1)


@pytest.mark.parametrize("family", ["GPT-2", "T5", "BART"])
def test_an_exported_classifier_is_loaded_by_transformers_alone(family, saved, tmp_path):
    model = TASK.model(loaded(saved(family)), 2)
    nn.init.normal_(model.head.weight)
    create_classifier(model, ["a", "b"], images=False, task=TASK).save_pretrained(tmp_path)
    other = transformers.AutoModelForSequenceClassification.from_pretrained(tmp_path, trust_remote_code=True).eval()
    with torch.no_grad():
        assert torch.allclose(other(**BATCH).logits, model.eval()(BATCH), atol=1e-6)


def test_a_model_with_a_table_of_its_own_attentions_is_loaded_in_bf16(saved):
    base = loaded(saved("Falcon"), torch.bfloat16)
    assert base.config._attn_implementation == "sdpa"


@pytest.mark.parametrize("family", ["Gemma 2", "DeBERTa-v2, v3"])
def test_where_torch_has_no_such_attention_the_model_s_own_is_used(family, saved):
    base = loaded(saved(family), torch.bfloat16)
    assert base.config._attn_implementation == "eager"
    expected = outputs(plain(saved(family), attn_implementation="eager", dtype=torch.bfloat16))
    real = BATCH["attention_mask"].bool()
    assert torch.allclose(outputs(base)[real], expected[real], atol=0.05)
    model = TASK.model(base, 2)
    for method in ("prefix_tuning", "prefix_tuning_plus"):
        with refuses("FP4019", method):
            PEFT_METHODS.build(method).attach(model, "bf16")


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["fp32", "bf16"])
def test_a_soft_cap_is_kept_if_transformers_offers_torch_s_attention(dtype, saved, monkeypatch):
    """Before 5.21, transformers offers it for Gemma 2, and leaves the cap out."""
    monkeypatch.setattr(transformers.Gemma2PreTrainedModel, "_supports_sdpa", True)
    base = loaded(saved("Gemma 2"), dtype)
    assert base.config._attn_implementation == "eager"
    with refuses("FP4019", "prefix_tuning"):
        PEFT_METHODS.build("prefix_tuning").attach(TASK.model(base, 2), "fp32")


def test_a_decoder_alone_has_nothing_to_attend_to_elsewhere(tmp_path):
    FAMILIES["BART"].save(tmp_path, "causal_lm")
    task = TASKS.build("causal_lm")
    model = task.model(task.base(tmp_path, torch.float32), None)
    PEFT_METHODS.build("prefix_tuning(length=2)").attach(model, "fp32")
    assert {name.split(".")[-2] for name in find_trainable(model)} == {"prefix"}
    assert not [name for name in [*find_trainable(model), *find_linear_layers(model.base)] if "encoder_attn" in name]


def test_albert_s_layers_share_a_block(saved):
    base = loaded(saved("ALBERT"))
    [block] = choose_blocks(base, 0)
    assert [list(choose_blocks(base, top)) for top in (1, 2, None)] == [[block]] * 3
    with refuses("FP4026", "3", "lora", "2"):
        choose_blocks(base, 3, "lora")
    assert list(choose_blocks(base, (1,))) == [block]


def test_prompts_are_as_wide_as_the_embeddings_that_a_model_widens(saved):
    model = TASK.model(loaded(saved("ALBERT")), 2)
    PEFT_METHODS.build("prompt_tuning(length=3)").attach(model, "fp32")
    assert find_trainable(model)["prompt_encoder.embedding.weight"].shape == (3, 16)
    assert model(BATCH).shape == (2, 2)


def test_a_model_may_write_into_what_a_frozen_layer_gives():
    """DeBERTa adds to queries in place."""
    layer = FrozenLinear(nn.Linear(6, 8).requires_grad_(False), "native")
    x = torch.randn(2, 3, 6, requires_grad=True)
    y = layer(x).view(2, 3, 4, 2).permute(0, 2, 1, 3)
    y += 1
    y.sum().backward()
    assert torch.allclose(x.grad, layer.weight.sum(0).expand(2, 3, 6))


def test_rows_are_not_packed_into_more_tokens_than_clip_reads(saved):
    base = loaded(saved("CLIP, text tower"))
    assert base.config.max_position_embeddings == TOKENS
    assert not can_pack_tokens(base)
    assert can_pack_tokens(loaded(saved("BERT")))


@pytest.mark.parametrize("family", ["CLIP, both towers", "SigLIP, both towers"])
def test_of_two_towers_the_one_for_images_is_taken(family, saved):
    base, whole = loaded(saved(family)), plain(saved(family))
    pixels = torch.randn(2, 3, 16, 16)
    with torch.no_grad():
        expected = whole.vision_model(pixel_values=pixels).last_hidden_state
        assert torch.allclose(base(pixel_values=pixels).last_hidden_state, expected, atol=1e-6)
    with refuses("FP4006"):
        TASK.tokenise(Rows(["ba de"], torch.zeros(1).long().numpy(), None), saved(family), 16)


@pytest.mark.parametrize("family", ["ViT", "DINOv2"])
def test_a_model_of_images_is_refused_for_texts(family, saved):
    with refuses("FP4007"):
        TASK.tokenise(Rows(["ba de"], torch.zeros(1).long().numpy(), None), saved(family), 16)


@pytest.mark.parametrize("family", ["Swin", "ResNet", "ConvNeXt"])
def test_blocks_in_stages_are_refused_by_name(family, saved):
    with refuses("FP4005", family.lower()):
        loaded(saved(family))


def test_t5_in_few_bits_computes_about_the_same(saved):
    pytest.importorskip("bitsandbytes")
    from fedpeft.models.quantized_base import quantize

    base = loaded(saved("T5"))
    before = outputs(base)
    quantize(base, "nf4")
    assert (outputs(base) - before).abs().max() < 0.5 * before.abs().max()


@pytest.mark.parametrize("family", ["GPT-2", "T5", "BART", "CLIP, both towers"])
def test_the_size_of_a_model_is_told_whatever_its_keys_are_called(family, saved):
    from fedpeft.deployment.client.capacity import ModelSize

    size = ModelSize.from_folder(saved(family))
    assert (size.hidden, size.intermediate, size.blocks, size.heads) == (32, 48, 2, 4)
    assert size.linear > 2 * 4 * 32 * 32


@pytest.mark.parametrize("family", ["T5", "BART", "CLIP, both towers"])
def test_a_half_that_is_left_out_is_not_counted_as_held(family, saved):
    from fedpeft.deployment.client.capacity import ModelSize

    size, base = ModelSize.from_folder(saved(family)), loaded(saved(family))
    held = sum({id(p): p.numel() for p in base.parameters()}.values())
    assert size.linear + size.other == pytest.approx(held, rel=0.02)
    assert (size.dropped > held / 2) == (family != "CLIP, both towers"), "which is never loaded"
    grown = replace(size, dropped=0)
    assert size.estimate_memory("fp32", "", 1, 8, False) >= grown.estimate_memory("fp32", "", 1, 8, False)
    assert size.estimate_memory("fp32", "", 1000, 8, False) == grown.estimate_memory("fp32", "", 1000, 8, False)


@pytest.mark.slow
def test_the_table_in_the_documents_is_what_the_families_do():
    assert build_table(FAMILIES) == read_table(DOCUMENT.read_text(encoding="utf-8"))

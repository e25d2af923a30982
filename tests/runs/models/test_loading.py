"""What a checkpoint lacks is never drawn at random without a word, and only causal language models predict tokens."""

from __future__ import annotations

import json
import shutil
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    BartConfig,
    BartForConditionalGeneration,
    BertConfig,
    BertForMaskedLM,
    BertForSequenceClassification,
    BertLMHeadModel,
    Gemma3Config,
    Gemma3ForConditionalGeneration,
    LlamaConfig,
    LlamaForCausalLM,
    LlamaModel,
    SwinConfig,
    SwinModel,
    T5Config,
    T5Model,
    XLNetConfig,
    XLNetLMHeadModel,
)
from transformers.models.auto.configuration_auto import CONFIG_MAPPING
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING

from fedpeft.data.images import check_reads_texts
from fedpeft.data.model_config import load_model_config
from fedpeft.data.tokens import load_tokenizer
from fedpeft.models.base_model import count_readable_tokens, resolve_model
from fedpeft.models.encoders import from_pretrained
from fedpeft.models.loading import load_base
from fedpeft.models.readout import get_width
from fedpeft.models.task import ignore_message
from fedpeft.models.tasks.classification import compute_hidden_states
from fedpeft.parts.families import TASKS
from fedpeft.simulate import main
from tests.refusals import has_error, refuses

SMALL = {"vocab_size": 50, "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 24}
BART = {"vocab_size": 50, "d_model": 16, "encoder_layers": 2, "decoder_layers": 2, "encoder_attention_heads": 2,
        "decoder_attention_heads": 2, "encoder_ffn_dim": 24, "decoder_ffn_dim": 24}  # fmt: skip
T5 = T5Config(vocab_size=50, d_model=16, d_kv=8, d_ff=24, num_layers=2, num_heads=2)
XLNET = XLNetConfig(vocab_size=50, d_model=16, n_layer=2, n_head=2, d_inner=24)
SWIN = SwinConfig(image_size=32, patch_size=4, embed_dim=8, depths=[2, 2], num_heads=[2, 4], window_size=4)

GEMMA3 = Gemma3Config(
    text_config={**SMALL, "num_key_value_heads": 1, "head_dim": 8},
    vision_config={**SMALL, "image_size": 28, "patch_size": 14},
    mm_tokens_per_image=4,
)


def base(task, folder, dtype=torch.float32, **more):
    return TASKS.build(task).base(folder, dtype, **more)


@pytest.mark.fast
@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: BertForMaskedLM(BertConfig(**SMALL)), ("FP4045",)),
        (lambda: XLNetLMHeadModel(XLNET), ("FP4045",)),
        (lambda: T5Model(T5), ("FP4043", "t5")),
        (lambda: LlamaModel(LlamaConfig(**SMALL)), ("FP4029", "lm_head.weight", "LlamaForCausalLM")),
        (
            lambda: Gemma3ForConditionalGeneration(GEMMA3),
            ("FP4031", "Gemma3ForConditionalGeneration"),
        ),
        (
            lambda: BartForConditionalGeneration(BartConfig(**BART)),
            ("FP4029", "lm_head.weight, model.decoder.embed_tokens"),
        ),
    ],
)
@pytest.mark.parametrize("task", ["causal_lm", "instruction"])
def test_what_is_no_causal_language_model_is_refused(task, make, words, tmp_path):
    make().save_pretrained(tmp_path)
    with refuses(*words) as caught:
        base(task, tmp_path)
    assert "\n" not in str(caught.value)


@pytest.mark.fast
def test_an_encoder_trained_as_a_decoder_is_a_causal_language_model(tmp_path):
    BertLMHeadModel(BertConfig(is_decoder=True, **SMALL)).save_pretrained(tmp_path)
    assert type(base("causal_lm", tmp_path)) is BertLMHeadModel


@pytest.mark.fast
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
def test_a_causal_language_model_passes_and_keeps_no_gradients(dtype):
    with torch.no_grad():
        model = base("causal_lm", resolve_model("tiny_lm"), dtype)
    assert not any(p.requires_grad or p.grad is not None for p in model.parameters())


@pytest.mark.fast
def test_what_can_not_be_read_from_is_one_sentence(tmp_path):
    SwinModel(SWIN).save_pretrained(tmp_path)
    with refuses("FP4005", "swin") as caught:
        base("classification", tmp_path)
    assert "\n" not in str(caught.value)


@pytest.mark.fast
def test_a_folder_without_a_vocabulary_or_with_another_model_s_is_refused(tmp_path):
    """For the first, transformers makes a tokenizer without words; the second one's ids exceed the embeddings."""
    folder = tmp_path / "model"
    shutil.copytree(resolve_model("tiny"), folder)
    assert len(load_tokenizer(folder)) > 10
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"vocab_size": 50}))
    with refuses("FP4012", "50"):
        load_tokenizer(folder)
    for file in folder.iterdir():
        if file.name not in ("config.json", "model.safetensors"):
            file.unlink()
    with refuses("FP4011"):
        load_tokenizer(folder)


@pytest.fixture
def changed(tmp_path):
    """Return a function that copies the tiny encoder with one weight changed by `change`, or left out on None."""

    def make(name, change=lambda weight: None):
        folder = tmp_path / "changed"
        shutil.copytree(resolve_model("tiny"), folder)
        weights = load_file(folder / "model.safetensors")
        made = change(weights.pop(name))
        save_file(weights | ({} if made is None else {name: made}), folder / "model.safetensors", {"format": "pt"})
        return folder

    return make


@pytest.mark.fast
@pytest.mark.parametrize("around", [torch.enable_grad, torch.no_grad])
def test_a_missing_weight_that_classification_uses_is_refused(around, changed):
    refused = refuses("FP4029", "encoder.layer.1.output.dense.weight", "BertModel")
    with around(), refused:
        base("classification", changed("encoder.layer.1.output.dense.weight"))


@pytest.mark.fast
def test_a_missing_weight_that_nothing_reads_is_said_and_the_same_at_every_load(changed):
    said = []
    folder = changed("pooler.dense.weight")
    first, second = (base("classification", folder, say=said.append) for _ in range(2))
    assert said[0] == "the checkpoint lacks pooler.dense.weight, which the task does not use"
    assert torch.equal(first.pooler.dense.weight, second.pooler.dense.weight)
    assert not any(p.requires_grad for p in first.parameters())


@pytest.mark.fast
def test_a_weight_of_another_shape_is_refused(changed):
    folder = changed("encoder.layer.0.output.dense.bias", lambda weight: weight[:-1].clone())
    with refuses("FP4030", "encoder.layer.0.output.dense.bias", "(47,)", "BertModel", "(48,)"):
        base("classification", folder)


@pytest.mark.fast
def test_a_cut_file_of_weights_is_refused(changed):
    folder = changed("pooler.dense.weight")
    file = folder / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-100])
    with refuses("FP4009"):
        base("classification", folder)


@pytest.mark.fast
def test_weights_that_are_no_numbers_are_refused(changed):
    folder = changed("encoder.layer.2.output.LayerNorm.bias", lambda weight: weight * float("nan"))
    with refuses("FP4035", "BertModel, the model in", "float32"):
        base("classification", folder)


@pytest.mark.fast
@pytest.mark.parametrize(
    ("changes", "words"),
    [
        (lambda hidden: hidden[:, 1:], ("FP4034", "3", "4")),
        (lambda hidden: hidden.mean(1), ("FP4033", "(1, 48)")),
        (lambda hidden: [hidden], ("FP4033", "list")),
    ],
)
def test_a_model_of_one_s_own_gives_a_vector_for_each_token(changes, words):
    def read(model, row):
        return changes(compute_hidden_states(model, row))

    with refuses(*words):
        load_base(from_pretrained, resolve_model("tiny"), torch.float32, read, ignore_message)


@pytest.mark.fast
def test_a_model_that_does_not_say_how_wide_it_is_is_refused():
    model = nn.Linear(2, 3)
    model.config = SimpleNamespace(dim=3)
    with refuses("FP4038", "Linear"):
        get_width(model)


@pytest.mark.fast
def test_a_head_that_is_not_used_is_said(tmp_path):
    BertForSequenceClassification(BertConfig(**SMALL)).save_pretrained(tmp_path)
    said = []
    base("classification", tmp_path, say=said.append)
    assert said == ["the checkpoint has classifier.bias, classifier.weight, which BertModel does not use"]


@pytest.mark.fast
def test_a_whole_checkpoint_is_not_talked_about():
    said = []
    base("classification", resolve_model("tiny"), say=said.append)
    base("causal_lm", resolve_model("tiny_lm"), say=said.append)
    assert not said


@pytest.mark.fast
@pytest.mark.parametrize("conversations", [False, True])
def test_a_language_model_run_on_an_encoder_is_one_sentence(conversations, tmp_path, capfd, monkeypatch):
    monkeypatch.setenv("COLUMNS", "300")
    if conversations:
        row = {"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]}
    else:
        row = {"text": "some words"}
    file = tmp_path / "rows.jsonl"
    file.write_text(f"{json.dumps(row)}\n" * 40)
    data = f"file(path='{file}', label=None)"
    words = ["--partition=iid", "--clients=2", "--rounds=1", "--workers=1", "--model=tiny", "--dtype=fp32"]
    assert main(["--dataset", data, *words, "--output", str(tmp_path / "run")]) == 2
    heard = "".join(capfd.readouterr())
    assert has_error(heard, "FP4045")
    assert "Traceback" not in heard
    assert not (tmp_path / "run").exists()


def test_a_run_says_what_its_checkpoint_lacks(changed, tmp_path, capfd, monkeypatch):
    monkeypatch.setenv("COLUMNS", "300")
    words = ["--dataset=tiny", "--clients=2", "--cohort=all", "--rounds=1", "--workers=1", "--dtype=fp32"]
    folder = changed("pooler.dense.weight")
    assert main([*words, "--local-work=steps(1)", "--model", str(folder), "--output", str(tmp_path / "run")]) == 0
    assert "lacks pooler.dense.weight, which the task does not use" in "".join(capfd.readouterr())


@pytest.mark.fast
def test_a_folder_of_an_unknown_kind_is_one_sentence_wherever_it_is_read(tmp_path):
    (tmp_path / "config.json").write_text('{"model_type": "own_net"}')
    for reads in (load_model_config, check_reads_texts, lambda folder: count_readable_tokens(folder, 0, 64)):
        with refuses("FP4009", "`own_net` but", "register it in a file", "--plugin FILE") as caught:
            reads(tmp_path)
        assert "\n" not in str(caught.value)


class OwnConfig(LlamaConfig):
    model_type = "own_llama"


class OwnLlama(LlamaForCausalLM):
    config_class = OwnConfig


@pytest.mark.fast
def test_a_language_model_of_one_s_own_class_is_one(tmp_path, monkeypatch):
    monkeypatch.setattr(CONFIG_MAPPING, "_extra_content", {})
    monkeypatch.setattr(MODEL_FOR_CAUSAL_LM_MAPPING, "_extra_content", {})
    AutoConfig.register("own_llama", OwnConfig)
    AutoModelForCausalLM.register(OwnConfig, OwnLlama)
    OwnLlama(OwnConfig(**SMALL)).save_pretrained(tmp_path)
    assert type(base("causal_lm", tmp_path)) is OwnLlama

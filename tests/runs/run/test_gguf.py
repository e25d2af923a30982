"""GGUF files: read back by the gguf library, and by transformers, which turns rows back by itself."""

from __future__ import annotations

import json
import shutil

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM, LlamaConfig, MistralConfig, Qwen2Config, Qwen3Config

from fedpeft.commands.export import main as export
from fedpeft.models.base_model import resolve_model
from fedpeft.reporting.exports.gguf_files import Architecture
from fedpeft.reporting.finished_run import FinishedRun
from tests.refusals import has_error, refuses

gguf = pytest.importorskip("gguf")

SETTINGS = {"dataset": "tiny_lm", "partition": "natural", "clients": 3, "cohort": 2, "rounds": 1, "dtype": "fp32",
            "local_work": "steps(4)", "learning_rate": 0.02, "measure": "validation(keep=last)",
            "safeguard": "none"}  # fmt: skip
IDS = torch.arange(4, 40)[None]


def made(kind, config, folder):
    """Write a model of random weights with the tokenizer of tiny_lm."""
    torch.manual_seed(0)
    model = kind(config)
    for parameter in model.parameters():  # norms and biases, too, or an exchange of them would not be seen
        parameter.data += 0.05 * torch.randn_like(parameter)
    model.save_pretrained(folder)
    for file in resolve_model("tiny_lm").glob("token*"):
        (folder / file.name).write_bytes(file.read_bytes())
    return folder


SIZES = {
    "vocab_size": 100, "hidden_size": 48, "intermediate_size": 80, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "max_position_embeddings": 64, "bos_token_id": 2, "eos_token_id": 3, "pad_token_id": 0,
}  # fmt: skip


@pytest.fixture
def run(finished_run):
    return finished_run(**SETTINGS, peft="lora(rank=4, layers=0)")


def read(file):
    reader = gguf.GGUFReader(file)
    return reader, {tensor.name: np.array(tensor.data) for tensor in reader.tensors}


def loaded(file):
    return AutoModelForCausalLM.from_pretrained(str(file.parent), gguf_file=file.name, dtype=torch.float32).eval()


def test_base_plus_adapter_is_the_merged_model_and_transformers_reads_them(run, tmp_path):
    apart, merged = tmp_path / "apart", tmp_path / "merged"
    assert export([str(run), "--gguf", "--gguf-base", "--output", str(apart)]) == 0
    assert export([str(run), "--gguf", "--merge", "--output", str(merged)]) == 0
    reader, factors = read(apart / "adapter.gguf")
    _, base = read(apart / "base.gguf")
    _, whole = read(merged / "model.gguf")
    fields = {name: field.contents() for name, field in reader.fields.items() if not name.startswith("GGUF")}
    assert (fields["general.type"], fields["adapter.type"], fields["general.architecture"]) == (
        "adapter",
        "lora",
        "llama",
    )
    assert fields["adapter.lora.alpha"] == 32
    adapted = {name.removesuffix(".lora_a") for name in factors if name.endswith(".lora_a")}
    assert len(adapted) == 14
    for name, weight in base.items():
        lora_a, lora_b = factors.get(f"{name}.lora_a"), factors.get(f"{name}.lora_b")
        expected = weight if lora_a is None else weight + 32 / 4 * lora_b @ lora_a
        assert np.abs(whole[name] - expected).max() < 1e-6
        assert name not in adapted or np.abs(whole[name] - weight).max() > 1e-6
    finished = FinishedRun.read(run)
    with torch.no_grad():
        plain = AutoModelForCausalLM.from_pretrained(finished.model_directory)(IDS).logits
        ours = finished.model(finished.base()).base(IDS).logits
        assert torch.allclose(loaded(apart / "base.gguf")(IDS).logits, plain, atol=1e-5)
        assert torch.allclose(loaded(merged / "model.gguf")(IDS).logits, ours, atol=1e-5)
    assert (ours - plain).abs().max() > 1e-3


def test_what_lies_beside_a_gguf_file_says_how_llama_cpp_loads_it(run, tmp_path, capsys):
    for words, loaded_by in (([], "-m BASE.gguf --lora adapter.gguf"), (["--merge"], "-m model.gguf")):
        assert export([str(run), "--gguf", *words, "--output", str(tmp_path / "out")]) == 0
        said = f"`llama-cli {loaded_by}`"
        card = (tmp_path / "out" / "README.md").read_text()
        assert f"to load it | {said}" in card
        assert "library_name" not in card
        out = capsys.readouterr().out
        file = tmp_path / "out" / ("model.gguf" if words else "adapter.gguf")
        assert f"to load it:\nllama-cli -m {file if words else 'BASE.gguf --lora ' + str(file)}\n" in out
        shutil.rmtree(tmp_path / "out")


def test_beside_a_base_in_few_bits_its_values_are_written_and_told(finished_run, tmp_path, capsys):
    """With the codes as weights, or with the base in fp32, it would answer otherwise."""
    out = tmp_path / "out"
    run = finished_run(**SETTINGS, peft="qlora(rank=4, bits=8)")
    assert export([str(run), "--gguf", "--gguf-base", "--output", str(out)]) == 0
    said = "--lora adapter.gguf`; it was trained and scored beside a base in int8, whose values"
    assert said in (out / "README.md").read_text()
    out_of_export = capsys.readouterr().out
    assert f"llama-cli -m {out / 'base.gguf'} --lora {out / 'adapter.gguf'}\n" in out_of_export
    assert "to load it (it was trained and scored beside a base in int8, whose values" in out_of_export
    with torch.no_grad():
        expected = FinishedRun.read(run).base()(IDS).logits
        assert torch.allclose(loaded(out / "base.gguf")(IDS).logits, expected, atol=1e-5)


# Of Qwen3 transformers reads no head_dim, and takes its default, 128.
KINDS = {
    "llama, tied": ("LlamaForCausalLM", LlamaConfig(**SIZES, tie_word_embeddings=True)),
    "mistral": ("MistralForCausalLM", MistralConfig(**SIZES, sliding_window=None)),
    "qwen2": ("Qwen2ForCausalLM", Qwen2Config(**SIZES, rope_parameters={"rope_type": "default", "rope_theta": 5e5})),
    "qwen3": ("Qwen3ForCausalLM", Qwen3Config(**SIZES, head_dim=128)),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", KINDS)
def test_bases_of_other_families_are_read_back(name, run, tmp_path, monkeypatch):
    import transformers

    kind, config = KINDS[name]
    folder = made(getattr(transformers, kind), config, tmp_path / "model")
    monkeypatch.setattr(FinishedRun, "model_directory", folder)
    out = tmp_path / "out"
    monkeypatch.setattr("fedpeft.reporting.exports.gguf_files.write_adapter", lambda *_: None)
    assert export([str(run), "--gguf", "--gguf-base", "--output", str(out)]) == 0
    with torch.no_grad():
        expected = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)(IDS).logits
        assert torch.allclose(loaded(out / "base.gguf")(IDS).logits, expected, atol=1e-5)


@pytest.mark.fast
def test_a_tokenizer_of_byte_pairs_goes_with_the_base(tmp_path):
    from tokenizers import Tokenizer, models, pre_tokenizers, trainers

    from fedpeft.reporting.exports.gguf_files import _add_tokenizer

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel()
    tokenizer.train_from_iterator(
        ["some words of it, again and again"] * 9, trainers.BpeTrainer(vocab_size=60, special_tokens=["<|end|>"])
    )
    tokenizer.save(str(tmp_path / "tokenizer.json"))
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "llama", "eos_token_id": 0}))
    architecture = Architecture.from_model_config(LlamaConfig(**SIZES))
    writer = gguf.GGUFWriter(str(tmp_path / "words.gguf"), "llama")
    _add_tokenizer(writer, tmp_path, architecture)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    fields = gguf.GGUFReader(tmp_path / "words.gguf").fields
    tokens = fields["tokenizer.ggml.tokens"].contents()
    assert {token: i for i, token in enumerate(tokens) if not token.startswith("[PAD")} == tokenizer.get_vocab()
    assert len(tokens) == 100
    assert len(fields["tokenizer.ggml.merges"].contents()) == len(
        json.loads((tmp_path / "tokenizer.json").read_text())["model"]["merges"]
    )
    assert fields["tokenizer.ggml.token_type"].contents()[0] == gguf.TokenType.CONTROL


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--gguf-base"], ("FP1171", "--gguf")),
        (["--gguf", "--client", "0"], ("FP1172", "--gguf", "--client")),
    ],
)
def test_flags_that_do_not_go_together_are_one_sentence(words, said, run, tmp_path, capsys):
    assert export([str(run), *words, "--output", str(tmp_path / "out")]) == 2
    assert has_error(capsys.readouterr().err, *said)


def test_other_adapters_models_and_architectures_are_refused_by_name(finished_run, tmp_path, capsys):
    ia3 = finished_run(**SETTINGS, peft="ia3(layers=0)")
    assert export([str(ia3), "--gguf", "--output", str(tmp_path / "out")]) == 2
    assert has_error(capsys.readouterr().err, "FP4075", "ia3")
    assert not any((tmp_path / "out").iterdir())
    from transformers import GPT2Config, GPTNeoXConfig

    for config in (GPT2Config(), GPTNeoXConfig()):
        with refuses("FP4072", config.model_type):
            Architecture.from_model_config(config)
    assert (
        Architecture.from_model_config(LlamaConfig(**SIZES)).get_gguf_name("model.layers.1.mlp.up_proj.weight")
        == "blk.1.ffn_up.weight"
    )
    with refuses("FP4073"):
        Architecture.from_model_config(LlamaConfig(**SIZES)).get_gguf_name("model.layers.1.mlp.other.weight")

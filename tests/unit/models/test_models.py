"""Every model part loads offline through transformers' Auto classes and computes what its source computes."""

from __future__ import annotations

import errno
import importlib.util
import os
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoConfig, AutoModel, AutoModelForCausalLM, AutoModelForSeq2SeqLM, AutoTokenizer

from fedpeft.data.made_words import WORDS
from fedpeft.data.rows import load_dataset
from fedpeft.models.base_model import find_local_folder, resolve_model
from fedpeft.parts import plugins
from fedpeft.parts.families import MODELS
from tests.refusals import refuses

FETCHED = ("minilm", "smollm2", "dinov2_small")
MADE = ("tiny", "tiny_lm", "tiny_seq2seq", "tiny_vision")


def test_every_part_is_tried_here() -> None:
    assert set(MODELS.names) == {*FETCHED, *MADE, "towers"}  # which is two of the others: test_towers.py


@pytest.mark.parametrize("name", [*MADE, *(pytest.param(n, marks=pytest.mark.slow) for n in FETCHED)])
def test_folder_loads_completely_and_the_model_can_be_saved_again(name: str, tmp_path: Path) -> None:
    folder = resolve_model(name)
    auto = {
        "smollm2": AutoModelForCausalLM,
        "tiny_lm": AutoModelForCausalLM,
        "tiny_seq2seq": AutoModelForSeq2SeqLM,
    }.get(name, AutoModel)
    model, report = auto.from_pretrained(folder, local_files_only=True, output_loading_info=True)
    assert not report["missing_keys"]
    assert not report["mismatched_keys"]
    assert set(report["unexpected_keys"]) <= {"embeddings.position_ids"}  # a buffer that old BERTs stored
    assert not list(folder.glob("*.bin"))
    if name not in ("dinov2_small", "tiny_vision"):
        AutoTokenizer.from_pretrained(folder, local_files_only=True)
    model.save_pretrained(tmp_path)  # as full fine-tuning and merging do
    again = auto.from_pretrained(tmp_path, local_files_only=True)
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), again.parameters(), strict=True))


@pytest.mark.parametrize("name", MADE)
def test_made_models_are_the_same_everywhere(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    weights = []
    for cache, spec in (("a", name), ("b", name), ("a", f"{name}(seed=1)")):
        monkeypatch.setenv("FEDPEFT_CACHE", str(tmp_path / cache))
        torch.rand(1)  # another state of the global generator
        weights.append(load_file(resolve_model(spec) / "model.safetensors"))
    first, second, other = weights
    assert all(torch.equal(first[k], second[k]) for k in first)
    assert not all(torch.equal(first[k], other[k]) for k in first)


def test_making_a_model_leaves_the_global_generator_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FEDPEFT_CACHE", str(tmp_path))
    before = torch.get_rng_state()
    resolve_model("tiny(seed=7)")
    resolve_model("tiny_lm(seed=7)")
    assert torch.equal(before, torch.get_rng_state())


@pytest.mark.parametrize(("name", "data"), [("tiny", "tiny"), ("tiny_lm", "tiny_lm")])
def test_tiny_tokenizers_know_the_made_words(name: str, data: str) -> None:
    folder = resolve_model(name)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    ids = tokenizer(list(load_dataset(data).train.inputs[:50]), padding=True)["input_ids"]
    assert tokenizer.unk_token_id not in np.unique(ids)
    assert tokenizer("nonsense")["input_ids"].count(tokenizer.unk_token_id) == 1
    assert len(tokenizer) == AutoConfig.from_pretrained(folder).vocab_size
    assert tokenizer.pad_token_id == 0
    special = len(tokenizer) - len(WORDS)
    assert tokenizer.convert_tokens_to_ids(WORDS[-1]) == special + len(WORDS) - 1


def test_tiny_layers_are_not_square() -> None:
    shapes = {p.shape for p in AutoModel.from_pretrained(resolve_model("tiny(layers=2)")).parameters()}
    assert (80, 48) in shapes
    assert (24, 48) in {p.shape for p in AutoModel.from_pretrained(resolve_model("tiny_lm")).parameters()}


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("bert-base-uncased", ("FP1206", "'bert-base-uncased'", "ORG/NAME", "google-bert/bert-base-uncased")),
        ("gpt2.5-xl(rows=1)", ("FP1206", "'gpt2.5-xl(rows=1)'", "tiny_lm", "ORG/NAME")),
        ("minilmm", ("FP1206", "'minilmm'", "did you mean 'minilm'", "tiny_lm", "ORG/NAME")),
        ("tiny(layers=0)", ("FP1227", "tiny", "layers", 1, 24, 0)),
        ("tiny(width=3)", ("FP1225", "tiny", "'width'")),
        ("./nowhere", ("FP2031", "'./nowhere'")),
        ("/no/where/else", ("FP2031", "'/no/where/else'")),
        ("org/na me", ("FP1207", "'org/na me'")),
    ],
)
def test_wrong_names_are_one_sentence(text: str, words: tuple[object, ...]) -> None:
    with refuses(*words) as caught:
        resolve_model(text)
    assert "\n" not in str(caught.value)


def test_a_file_is_no_folder_of_a_model(tmp_path: Path) -> None:
    file = tmp_path / "config.json"
    file.touch()
    with refuses("FP2030", "config.json"):
        resolve_model(str(file))


def test_a_part_that_gives_no_folder_of_a_model_is_named(tmp_path: Path) -> None:
    @dataclass(frozen=True)
    class Nowhere:
        origin: ClassVar[str] = ""
        license: ClassVar[str] = ""

        def resolve(self) -> Path:
            return tmp_path / "nowhere"

    with (
        plugins.use_parts({"models": {"nowhere": Nowhere}}),
        refuses("FP2035", "model nowhere", "/nowhere)"),
    ):
        resolve_model("nowhere")


def test_hub_out_of_reach_is_one_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with refuses("FP2034", "org/name", "minilm"):
        resolve_model("org/name")


@pytest.mark.parametrize(
    "error", [OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)), RuntimeError("No space left on device")]
)
def test_a_full_disk_is_no_hub_out_of_reach(error: Exception, monkeypatch: pytest.MonkeyPatch) -> None:
    def snapshot_download(name: str, allow_patterns: list[str]) -> str:
        raise error

    monkeypatch.setattr("huggingface_hub.snapshot_download", snapshot_download)
    with refuses("FP2018", "disk is full while org/name is fetched from the hub", "HF_HOME"):
        resolve_model("org/name")


def test_hub_fetches_safetensors_only(monkeypatch: pytest.MonkeyPatch) -> None:
    folder = resolve_model("tiny")
    asked = {}

    def snapshot_download(name: str, allow_patterns: list[str]) -> str:
        asked[name] = allow_patterns
        return str(folder)

    monkeypatch.setattr("huggingface_hub.snapshot_download", snapshot_download)
    assert resolve_model("org/name") == folder
    assert not {"*.bin", "*.py", "*.pt", "*.h5", "*"} & set(asked["org/name"])


def test_local_directories(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tiny = resolve_model("tiny")
    assert resolve_model(str(tiny)) == tiny
    (tmp_path / "mine").mkdir()
    monkeypatch.chdir(tmp_path)
    with refuses("FP2035"):
        resolve_model("mine")
    (tmp_path / "mine" / "config.json").write_text("{}")
    (tmp_path / "mine" / "pytorch_model.bin").write_bytes(b"")
    with refuses("FP2036"):
        resolve_model("./mine")
    (tmp_path / "tiny").mkdir()  # a part's name wins over a folder that happens to have it
    assert resolve_model("tiny") == tiny


@pytest.mark.parametrize(
    ("name", "module", "extra"), [("smollm2", "gguf", "language"), ("dinov2_small", "onnx", "vision")]
)
def test_missing_converter_names_the_extra(
    name: str, module: str, extra: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FEDPEFT_CACHE", str(tmp_path))
    real = importlib.util.find_spec
    monkeypatch.setattr("importlib.util.find_spec", lambda wanted: None if wanted == module else real(wanted))
    with refuses("FP2008", module, extra):
        resolve_model(name)


@pytest.mark.parametrize("text", ["a" * 5000, "\0", "~nobody-has-this-name", "/" + "b" * 300])
def test_a_name_that_no_file_can_have_is_no_folder(text):
    assert find_local_folder(text) is None

"""A model folder names code in several ways; none of it runs, and nobody is asked whether it may."""

from __future__ import annotations

import ast
import contextlib
import json
import os
import pickle
import shutil
from pathlib import Path

import pytest
import torch

from fedpeft.commands.predict import main as predict
from fedpeft.data.tokens import load_tokenizer
from fedpeft.errors import ModelError
from fedpeft.models.base_model import resolve_model
from fedpeft.parts.families import TASKS
from fedpeft.simulate import main as simulate
from tests.refusals import has_error, refuses

ROOT = Path(__file__).parent.parent.parent.parent
FOLDERS = ("fedpeft", "strategies", "clients", "experiments", "examples")
LOADS = ("from_pretrained", "from_config")
ADAPTERS = ("PeftModel",)
"""Classes that read an adapter's tensors only, and have no `trust_remote_code`."""

QUICK = ["--dataset=tiny", "--clients=2", "--cohort=all", "--rounds=1", "--workers=1", "--tokens=32", "--head=zero",
         "--local-work=steps(1)", "--peft=lora(rank=2, layers=1)", "--dtype=fp32"]  # fmt: skip

CODE = """
import pathlib
pathlib.Path({mark!r}).touch()
from transformers import BertConfig as Config, BertModel as Model, PreTrainedTokenizerFast as Words
"""
MAP = {"AutoConfig": "code.Config", "AutoModel": "code.Model"}


def trusting_calls(text: str) -> list[int]:
    """Return the lines that load a pretrained model, and do not refuse the code in its folder."""
    lines = []
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr in LOADS:
            owner = ast.unparse(node.func.value)
            named = {word.arg: ast.unparse(word.value) for word in node.keywords}
            passed_on = None in named  # by the wrapper that `load_base` calls
            if owner not in ADAPTERS and named.get("trust_remote_code") != "False" and not passed_on:
                lines.append(node.lineno)
    return lines


@pytest.mark.fast
def test_every_load_of_a_model_refuses_its_code():
    files = [file for folder in FOLDERS for file in (ROOT / folder).rglob("*.py")]
    texts = {str(file.relative_to(ROOT)): file.read_text(encoding="utf-8") for file in files}
    assert sum(text.count("trust_remote_code=False") for text in texts.values()) >= 10
    assert {name: lines for name, text in texts.items() if (lines := trusting_calls(text))} == {}


def test_the_rule_finds_a_load_that_trusts():
    assert trusting_calls("AutoConfig.from_pretrained(folder)") == [1]
    assert trusting_calls("transformers.AutoModel.from_config(config, dtype=None)") == [1]
    assert trusting_calls("auto.from_pretrained(folder, trust_remote_code=True)") == [1]
    assert trusting_calls("auto.from_pretrained(folder, trust_remote_code=False)") == []


@pytest.fixture
def mark(tmp_path, monkeypatch):
    """Return a file that exists once a folder's code has run; terminal questions are answered with yes."""
    monkeypatch.setattr("builtins.input", lambda *_: "y")
    monkeypatch.setattr("transformers.dynamic_module_utils.HF_MODULES_CACHE", str(tmp_path / "modules"))
    return tmp_path / "ran"


def folder_with(folder: Path, mark: Path, file: str, part: str = "tiny", **changes: object) -> Path:
    """Copy a part's model to `folder`, with code beside it, and change a JSON file."""
    shutil.copytree(resolve_model(part), folder, dirs_exist_ok=True)
    (folder / "code.py").write_text(CODE.format(mark=str(mark)))
    content = json.loads((folder / file).read_text())
    (folder / file).write_text(json.dumps(content | changes))
    return folder


def base(folder: Path, task: str = "classification"):
    return TASKS.build(task).base(folder, torch.float32)


@pytest.mark.fast
def test_a_model_that_needs_its_own_code_is_refused(tmp_path, mark):
    folder = folder_with(tmp_path / "model", mark, "config.json", model_type="mine", auto_map=MAP)
    with refuses("FP4009", folder, "auto_map"):
        base(folder)
    assert not mark.exists()


@pytest.mark.fast
def test_a_model_that_needs_code_from_another_repository_is_refused(tmp_path, mark):
    elsewhere = {name: f"org/name--{place}" for name, place in MAP.items()}
    folder = folder_with(tmp_path / "model", mark, "config.json", model_type="mine", auto_map=elsewhere)
    with refuses("FP4009", folder, "auto_map"):
        base(folder)


@pytest.mark.fast
def test_a_model_of_a_known_class_is_read_without_its_code(tmp_path, mark):
    folder = folder_with(tmp_path / "model", mark, "config.json", auto_map=MAP)
    assert type(base(folder)).__module__.startswith("transformers.models.bert")
    assert not mark.exists()


@pytest.mark.fast
def test_a_tokenizer_that_needs_its_own_code_is_refused(tmp_path, mark):
    folder = folder_with(tmp_path / "model", mark, "config.json", model_type="mine")
    words = {"auto_map": {"AutoTokenizer": ["code.Words", None]}, "tokenizer_class": "Words"}
    folder_with(folder, mark, "tokenizer_config.json", **words)
    (folder / "config.json").write_text(json.dumps({"model_type": "mine"}))
    with refuses("FP4082", folder, "auto_map"):
        load_tokenizer(folder)
    assert not mark.exists()


@pytest.mark.fast
@pytest.mark.parametrize("value", [5, "code.Config", ["code.Config"], {"AutoConfig": 5}, {"AutoConfig": None}])
def test_an_auto_map_of_another_form_ends_in_no_traceback(value, tmp_path, mark):
    folder = folder_with(tmp_path / "model", mark, "config.json", model_type="mine", auto_map=value)
    with pytest.raises(ModelError):
        base(folder)
    folder_with(folder, mark, "config.json")  # the model is sound again, and the tokenizer is not
    folder_with(folder, mark, "tokenizer_config.json", auto_map=value, tokenizer_class="Words")
    with contextlib.suppress(ModelError):  # and no other exception
        load_tokenizer(folder)
    assert not mark.exists()


@pytest.mark.fast
@pytest.mark.parametrize("name", ["attn_implementation", "_attn_implementation"])
@pytest.mark.parametrize(("part", "task"), [("tiny", "classification"), ("tiny_lm", "causal_lm")])
def test_a_config_does_not_fetch_an_attention_from_the_hub(name, part, task, tmp_path, mark):
    folder = folder_with(tmp_path / "model", mark, "config.json", part, **{name: "org/kernel"})
    with refuses("FP4081", folder, "'org/kernel'", "attn_implementation"):
        base(folder, task)


class Touch:
    """Unpickling this creates a file."""

    def __init__(self, file: Path) -> None:
        self.file = file

    def __reduce__(self):
        return Path.touch, (self.file,)


@pytest.mark.fast
@pytest.mark.parametrize("name", ["pytorch_model.bin", "adapter_model.bin"])
def test_pickled_weights_are_never_read(name, tmp_path, mark):
    folder = folder_with(tmp_path / "model", mark, "config.json")
    if name.startswith("adapter"):
        lora = {"peft_type": "LORA", "r": 2, "lora_alpha": 4, "target_modules": ["query"], "task_type": None}
        (folder / "adapter_config.json").write_text(json.dumps(lora))
    else:
        os.rename(folder / "model.safetensors", folder / "other.safetensors")
    (folder / name).write_bytes(pickle.dumps(Touch(mark)))
    with refuses("FP4009", folder, name.replace("pytorch_", "").replace(".bin", ".safetensors")):
        base(folder)
    assert not mark.exists()


def test_no_command_runs_a_folder_s_code_or_asks(tmp_path, mark, capfd, monkeypatch):
    """`simulate` and `predict` end with a sentence, although whoever sits there would say yes."""
    questions = []
    monkeypatch.setattr("builtins.input", lambda *asked: questions.append(asked) or "y")
    folder = folder_with(tmp_path / "model", mark, "config.json")
    run = tmp_path / "run"
    assert simulate([*QUICK, "--model", str(folder), "--output", str(run)]) == 0
    folder_with(folder, mark, "config.json", model_type="mine", auto_map=MAP)
    capfd.readouterr()
    assert simulate([*QUICK, "--model", str(folder), "--output", str(tmp_path / "other")]) == 2
    assert has_error(capfd.readouterr().err, "FP4009", "auto_map")
    assert predict([str(run), "kalep kamir puvos"]) == 2
    assert has_error(capfd.readouterr().err, "FP4009", "auto_map")
    assert not questions
    assert not mark.exists()

"""Parts of one's own whose numbers are narrower or wider than those that are trained go together with the others."""

from __future__ import annotations

import json

import pytest
import torch
from safetensors.torch import load_file

from fedpeft.parts import plugins
from fedpeft.simulate import main as simulate

PARTS = '''
"""A method that starts in half precision, and a correction whose state is in double."""

from dataclasses import dataclass
from typing import ClassVar

import torch

from fedpeft.clients.drift import ExchangedCorrection
from fedpeft.peft.methods.lora import Lora


@dataclass(frozen=True)
class HalfLora(Lora):
    """Starts in half precision."""

    def start(self, model, seed):
        return {name: tensor.bfloat16() for name, tensor in super().start(model, seed).items()}


@dataclass(frozen=True)
class Wide(ExchangedCorrection):
    """A state in double."""

    def start(self, state):
        return {name: torch.zeros_like(tensor, dtype=torch.float64) for name, tensor in state.items()}

    def begin(self, job, server, own):
        return lambda name, value: torch.zeros_like(value)

    def after(self, job, result, server, own):
        return {name: tensor.float() + 1 for name, tensor in server.items()}


parts = {"peft_methods": {"half_lora": HalfLora}, "corrections": {"wide": Wide}}
'''


@pytest.mark.parametrize("words", [["--peft=half_lora(rank=2)"], ["--drift=wide", "--optimizer=sgd", "--cohort=all"]])
def test_no_client_is_refused_for_them(words, tmp_path, monkeypatch):
    monkeypatch.setattr(plugins, "_state", plugins._PluginState())
    monkeypatch.setattr(plugins, "_names", {})
    monkeypatch.setattr(plugins, "_loaded", set())
    (tmp_path / "own.py").write_text(PARTS)
    run = ["--dataset=tiny", "--clients=2", "--rounds=1", "--workers=1", "--local-work=steps(2)"]
    assert simulate([*run, *words, f"--plugin={tmp_path / 'own.py'}", f"--output={tmp_path / 'run'}"]) == 0
    lines = (tmp_path / "run" / "clients.jsonl").read_text().splitlines()
    assert not any("rejected" in json.loads(line) for line in lines)
    saved = load_file(tmp_path / "run" / "adapter" / "adapter_model.safetensors")
    assert {tensor.dtype for tensor in saved.values()} == {torch.float32}

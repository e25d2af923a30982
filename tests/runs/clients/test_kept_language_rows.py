"""Rows of a language model from the lowest adapted block on: what the blocks below make of them is computed once."""

from __future__ import annotations

import pytest
import torch
from safetensors.torch import load_file

from fedpeft.simulate import main
from fedpeft.wiring import activation_cache
from tests.unit.clients.test_kept_language_rows import SPEC


@pytest.mark.slow
def test_a_run_ends_as_one_that_keeps_nothing(tmp_path, monkeypatch, capsys):
    words = [
        "--dataset", "tiny_lm(owners=4, rows=8)", "--partition", "natural", "--clients", "0", "--cohort", "2",
        "--rounds", "4", "--peft", SPEC, "--dtype", "fp64", "--workers", "1",
    ]  # fmt: skip
    monkeypatch.setenv("FEDPEFT_CACHE", str(tmp_path / "cache"))  # where nothing is kept already
    assert main([*words, "--output", str(tmp_path / "kept")]) == 0
    assert "frozen layers" in capsys.readouterr().out
    monkeypatch.setattr(activation_cache, "LARGEST", 0.0)
    assert main([*words, "--output", str(tmp_path / "again")]) == 0
    one, other = (load_file(tmp_path / name / "adapter" / "adapter_model.safetensors") for name in ("kept", "again"))
    assert one.keys() == other.keys()
    assert all(torch.allclose(one[n], other[n], rtol=1e-6, atol=1e-9) for n in one)

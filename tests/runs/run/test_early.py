"""Mistakes in flags are told before torch is imported, and before a row or a model is read."""

from __future__ import annotations

import pytest

from fedpeft.simulation import rows, simulation

BEFORE_ROWS = [
    (["--privacy", "dp_sgd(epsilon=-1)"], "epsilon must be"),
    (["--privacy", "dp_sgd(epsilon=8, dp_delta=1.5)"], "dp_delta must be"),
    (["--privacy", "secure_sum(bits=99)", "--cohort", "10"], "bits must be"),
    (["--peft", "lorra"], "unknown PEFT method 'lorra'"),
    (["--peft", "lora(rank=0)"], "rank must be"),
    (["--codec", "fp23"], "fp23"),
    (["--optimizer", "adamw(warmup=-1)"], "warmup must be"),
    (["--attack", "sign_flip(fraction=2)"], "fraction must be"),
]
"""Settings of parts, whose classes need torch: no row and no model is read for them."""


@pytest.mark.parametrize(("flags", "sentence"), BEFORE_ROWS)
def test_a_mistake_is_told_before_a_row_is_read(flags, sentence, tmp_path, monkeypatch, capfd):
    from fedpeft.simulate import main

    read: list[object] = []
    for owner in (rows, simulation):
        for name in ("load_dataset", "resolve_model"):
            monkeypatch.setattr(owner, name, lambda *given: read.append(given), raising=False)
    assert main([*flags, "--output", str(tmp_path / "run")]) == 2
    assert sentence in capfd.readouterr().err
    assert not read
    assert not (tmp_path / "run").exists()

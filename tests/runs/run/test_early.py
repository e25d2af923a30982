"""Mistakes in flags are told before torch is imported, and before a row or a model is read."""

from __future__ import annotations

import pytest

from fedpeft.simulation import rows, simulation
from tests.refusals import has_error

BEFORE_ROWS = [
    (["--privacy", "dp_sgd(epsilon=-1)"], ("FP1227", "dp_sgd", "epsilon", "-1.0")),
    (["--privacy", "dp_sgd(epsilon=8, dp_delta=1.5)"], ("FP1227", "dp_sgd", "dp_delta", 1.5)),
    (["--privacy", "secure_sum(bits=99)", "--cohort", "10"], ("FP1227", "secure_sum", "bits", 99)),
    (["--peft", "lorra"], ("FP1231", "'lorra'")),
    (["--peft", "lora(rank=0)"], ("FP1227", "lora", "rank", 0)),
    (["--codec", "fp23"], ("FP1050", "'fp23'")),
    (["--optimizer", "adamw(warmup=-1)"], ("FP1227", "adamw", "warmup", -1)),
    (["--attack", "sign_flip(fraction=2)"], ("FP1227", "sign_flip", "fraction", "2.0")),
]
"""Settings of parts, whose classes need torch: no row and no model is read for them."""


@pytest.mark.parametrize(("flags", "words"), BEFORE_ROWS)
def test_a_mistake_is_told_before_a_row_is_read(flags, words, tmp_path, monkeypatch, capfd):
    from fedpeft.simulate import main

    read: list[object] = []
    for owner in (rows, simulation):
        for name in ("load_dataset", "resolve_model"):
            monkeypatch.setattr(owner, name, lambda *given: read.append(given), raising=False)
    assert main([*flags, "--output", str(tmp_path / "run")]) == 2
    assert has_error(capfd.readouterr().err, *words)
    assert not read
    assert not (tmp_path / "run").exists()

"""Accumulated gradients and blocks that are computed again: less memory, the same training."""

from __future__ import annotations

import numpy as np
import pytest

from fedpeft.simulate import main
from tests.unit.clients.test_less_memory import RUN


def test_they_are_settings_of_the_local_optimizer(tmp_path):
    import json

    losses = []
    for number, more in enumerate(("", ", rows_per_pass=2, checkpointing=True")):
        folder = tmp_path / str(number)
        words = [*RUN, f"--optimizer=adamw(warmup=2{more})", "--peft=lora(rank=2)", "--output", str(folder)]
        assert main(words) == 0
        losses.append(json.loads((folder / "rounds.jsonl").read_text().splitlines()[0])["train_loss"])
    assert losses[0] == pytest.approx(losses[1], rel=1e-6)
    assert np.isfinite(losses[0])

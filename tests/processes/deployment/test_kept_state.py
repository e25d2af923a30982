"""What real clients are asked at the end is asked of the state that the run keeps, base and all."""

from __future__ import annotations

import json

import pytest

from tests.fleet import NAMES


@pytest.mark.slow
@pytest.mark.parametrize("strategy", ["fedit", "fedex_lora"])
def test_clients_judge_the_state_that_is_kept(fleet, strategy):
    made = fleet(
        strategy=strategy, rounds=3, learning_rate=1.0, safeguard="none",
        measure="validation(every=1) + calibration(rows=clients)",
    )  # fmt: skip
    server = made.serve("--eval-data", "a.jsonl")
    clients = [made.join(name) for name in NAMES]
    assert [made.end(p) for p in (server, *clients)] == [0, 0, 0, 0], made.logs()
    summary = json.loads((made.folder / "run" / "summary.json").read_text())
    assert summary["kept_round"] < 3

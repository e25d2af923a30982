"""The smallest run of each side as a real process, except for the earlier commit, which needs git's history."""

from __future__ import annotations

import importlib.util

import pytest

from experiments.to_accuracy import settings
from experiments.to_accuracy.rules import Curve
from experiments.to_accuracy.settings import Job, Trial
from experiments.to_accuracy.sides import Runner

TINY = {"dataset": "tiny(rows=120, test_rows=20)", "clients": 4, "cohort": 2}
TRIAL = Trial(learning_rate=2e-3, head_rate=1.0, batch_size=8, blocks=1, server="FedAvgM 0.5")


@pytest.mark.slow
@pytest.mark.parametrize("side", ["flower", "plain", "default"])
def test_a_side_evaluates_its_start_and_each_round(side: str, monkeypatch: pytest.MonkeyPatch) -> None:
    if side == "flower" and importlib.util.find_spec("ray") is None:
        pytest.skip("Flower's simulation needs ray")
    monkeypatch.setattr(settings, "SECONDS", 0.01)  # an opponent ends after a round or a few
    task = TINY | ({"rounds": 2} if side == "default" else {})
    job = Job("compare", "tiny", side, 1, None if side == "default" else TRIAL)
    with Runner(1, {"tiny": task}) as runner:
        line = runner.run(job)
    curve = Curve.read(line)
    assert curve.rounds == list(range(len(curve.rounds)))
    assert len(curve.rounds) == 3 if side == "default" else len(curve.rounds) >= 2
    assert curve.seconds == sorted(curve.seconds)
    assert 0 < curve.seconds[0] < line["wall_seconds"]
    assert all(0 <= accuracy <= 1 for accuracy in curve.accuracy)
    assert (curve.bytes[-1] > curve.bytes[0]) == (side != "plain")
    assert (curve.bytes[0] > 0) == (side == "default")  # statistics for the head, before round 1
    assert line["load"]
    assert line["commit"]
    assert job.key.items() <= line.items()

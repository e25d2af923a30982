"""A trial whose clients keep tensors of their own is judged by rows that the final score does not see."""

from __future__ import annotations

import fedpeft.clients.client as clients
import numpy as np
import pytest
from fedpeft.clients.client import ClientSide
from rich.console import Console

from fedpeft import simulate
from fedpeft.config import RunConfig
from fedpeft.errors import ConfigError, RunError
from fedpeft.run.summary import OWN_ROWS
from fedpeft.studies.results import read_run

CONFIG = RunConfig(
    dataset="tiny", clients=4, cohort=2, rounds=2, workers=1, tokens=32, dtype="fp32", strategy="fedsa_lora",
    local_work="steps(2)", head="zero",
)  # fmt: skip


@pytest.fixture
def seen(monkeypatch):
    """The rows that clients train on and are evaluated on."""
    rows = {"train": set(), "evaluate": set()}
    evaluated, trained = clients.evaluated, ClientSide._trained

    def evaluating(bench, instruction, state, own, *rest):
        rows["evaluate"] |= set(np.asarray(own).tolist())
        return evaluated(bench, instruction, state, own, *rest)

    def training(self, tasks):
        for task in tasks:
            rows["train"] |= set(np.asarray(task.job.rows).tolist())
        return trained(self, tasks)

    monkeypatch.setattr(clients, "evaluated", evaluating)
    monkeypatch.setattr(ClientSide, "_trained", training)
    return rows


def trial(folder, **more):
    return simulate.simulate(CONFIG, folder, False, Console(quiet=True), tested=False, **more)


def test_a_trial_sees_no_row_that_its_final_score_is_of(tmp_path, seen):
    trial(tmp_path / "trial")
    chosen = {kind: set(rows) for kind, rows in seen.items()}
    assert all(chosen.values())
    assert not chosen["train"] & chosen["evaluate"]
    with pytest.raises(RunError, match="has seen no test rows"):
        read_run(tmp_path / "trial")
    seen["evaluate"].clear()
    assert simulate.main(["--resume", str(tmp_path / "trial")]) == 0
    assert seen["evaluate"]
    assert not seen["evaluate"] & (chosen["train"] | chosen["evaluate"])
    assert read_run(tmp_path / "trial").summary["accuracy_of"] == OWN_ROWS


def test_an_unfinished_trial_goes_on_as_a_trial_only(tmp_path, seen):
    """As a run its clients would train on the rows that they were judged by."""
    trial(tmp_path / "trial", on_round=lambda result: result.round == 1)
    with pytest.raises(ConfigError, match=r"an unfinished trial of a search.*train it whole"):
        simulate.simulate(CONFIG, tmp_path / "trial", True, Console(quiet=True))
    before = {kind: set(rows) for kind, rows in seen.items()}
    simulate.simulate(CONFIG, tmp_path / "trial", True, Console(quiet=True), tested=False)
    assert not seen["evaluate"] & seen["train"]
    assert seen["train"] >= before["train"]

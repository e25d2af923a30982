"""A trial whose clients keep tensors of their own is judged by rows that the final score does not see."""

from __future__ import annotations

import fedpeft.clients.client as clients
import fedpeft.clients.encoded_reports as encoded_reports
import numpy as np
import pytest
from rich.console import Console

from fedpeft import simulate
from fedpeft.reporting.summary import OWN_ROWS
from fedpeft.study.results import read_run
from fedpeft.wiring.config import RunConfig
from tests.refusals import refuses

CONFIG = RunConfig(
    dataset="tiny", clients=4, cohort=2, rounds=2, workers=1, tokens=32, dtype="fp32", strategy="fedsa_lora",
    local_work="steps(2)", head="zero",
)  # fmt: skip


@pytest.fixture
def seen(monkeypatch):
    """Record the examples that clients train on and are evaluated on."""
    rows = {"train": set(), "evaluate": set()}
    evaluated, train = encoded_reports.evaluate_client, clients.train_on_own_bases

    def evaluating(bench, client_round):
        rows["evaluate"] |= set(np.asarray(client_round.held_out).tolist())
        return evaluated(bench, client_round)

    def training(bench, rounds):
        for client_round in rounds:
            rows["train"] |= set(np.asarray(client_round.job.rows).tolist())
        return train(bench, rounds)

    monkeypatch.setattr(encoded_reports, "evaluate_client", evaluating)
    monkeypatch.setattr(clients, "train_on_own_bases", training)
    return rows


def trial(folder, **more):
    return simulate.simulate(CONFIG, folder, False, Console(quiet=True), tested=False, **more)


def test_a_trial_sees_no_row_that_its_final_score_is_of(tmp_path, seen):
    trial(tmp_path / "trial")
    chosen = {kind: set(rows) for kind, rows in seen.items()}
    assert all(chosen.values())
    assert not chosen["train"] & chosen["evaluate"]
    with refuses("FP5216", tmp_path / "trial"):
        read_run(tmp_path / "trial")
    seen["evaluate"].clear()
    assert simulate.main(["--resume", str(tmp_path / "trial")]) == 0
    assert seen["evaluate"]
    assert not seen["evaluate"] & (chosen["train"] | chosen["evaluate"])
    assert read_run(tmp_path / "trial").summary["accuracy_of"] == OWN_ROWS


def test_an_unfinished_trial_goes_on_as_a_trial_only(tmp_path, seen):
    """As a run its clients would train on the rows that they were judged by."""
    trial(tmp_path / "trial", on_round=lambda result: result.round == 1)
    with refuses("FP1507", tmp_path / "trial", "fedpeft simulate"):
        simulate.simulate(CONFIG, tmp_path / "trial", True, Console(quiet=True))
    before = {kind: set(rows) for kind, rows in seen.items()}
    simulate.simulate(CONFIG, tmp_path / "trial", True, Console(quiet=True), tested=False)
    assert not seen["evaluate"] & seen["train"]
    assert seen["train"] >= before["train"]

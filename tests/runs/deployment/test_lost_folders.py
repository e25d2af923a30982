"""A real client whose folder is lost: it goes on as a newcomer, or says why it can't."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace

import pytest
import torch

from fedpeft.communication.base_residual import ResidualFiles
from fedpeft.communication.messages import LOST
from fedpeft.rounds.progress import ServerState
from tests.refusals import has_error


def forgetful(edge, round_number):
    """Make the client lose its disk before it trains in this round."""
    handle = edge.handle

    def answer(instruction):
        if (instruction.kind, instruction.round) == ("train", round_number):
            for name in ("clients", "base"):
                shutil.rmtree(edge.folder / name, ignore_errors=True)
        return handle(instruction)

    edge.handle = answer
    return edge


@pytest.mark.parametrize("settings", [
    {"codec": "small"},
    {"strategy": "fedex_lora", "local_work": "epochs(1)"},
    {"privacy": "secure_sum", "clients": 5, "cohort": 5},
], ids=["codec", "base", "masks"])  # fmt: skip
def test_a_client_that_has_lost_its_folder_goes_on_as_a_newcomer(federation, monkeypatch, settings):
    made = federation(**{"clients": 3, "cohort": 3, "rounds": 4, **settings})
    forgetful(made.server.edges[0], 3)
    monkeypatch.setattr(made.server.observer, "say", (said := []).append)
    progress = made.run()
    lines = [json.loads(line) for line in (made.folder / "server" / "clients.jsonl").read_text().splitlines()]
    assert [line.get("rejected") for line in lines if line["client"] == 0 and line["round"]] == [None, None, LOST, None]
    assert f"round 3 without edge-0: {LOST}" in said
    asked = [i for i in made.server.direct.asked if i.kind == "train" and i.client == 0]
    assert [i.acknowledged for i in asked] == [0, 1, 2, 0]
    assert progress.acknowledged[0] == 4
    if version := asked[-1].base:
        held, others = (ResidualFiles(made.folder / f"edge-{k}" / "base").get(version) for k in (0, 1))
        assert held.keys() == others.keys()
        assert all(torch.equal(held[module], others[module]) for module in held)


def test_variates_that_are_lost_are_not_begun_anew(federation):
    """The server's mean holds the lost ones for ever."""
    made = federation(drift="scaffold", optimizer="sgd", rounds=2, clients=2, cohort=2)
    forgetful(made.server.edges[0], 2)
    made.run()
    [line] = [json.loads(line) for line in (made.folder / "server" / "clients.jsonl").read_text().splitlines()
              if '"rejected": "FP' in line and "the state of client" in line]  # fmt: skip
    assert has_error(line["rejected"], "FP5009")


@pytest.mark.fast
def test_it_stays_a_newcomer_where_the_step_of_that_round_is_undone():
    before = ServerState(round=3, adapter={}, acknowledged={0: 3, 1: 3}, held={0: 2, 1: 3})
    after = replace(before, round=4, acknowledged={0: 0, 1: 4}, held={0: 0, 1: 4})
    undone = before.undo_step(after, before.standing)
    assert (undone.acknowledged, undone.held) == ({0: 0, 1: 3}, {0: 0, 1: 3})

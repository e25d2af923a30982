"""A whole run whose clients take turns: who is asked, what is charged, and what others learn of a client left out."""

from __future__ import annotations

import json

from fedpeft.errors import PayloadError
from fedpeft.privacy.accountant import Event
from fedpeft.privacy.engine import LEDGER
from fedpeft.privacy.server_noise import CHAIN
from fedpeft.rounds import acceptance
from tests.privacy.small_runs import trained


def test_what_others_are_told_does_not_depend_on_whose_update_is_left_out(tmp_path, monkeypatch):
    check, left = acceptance.check_update, [1]

    def once(*given):
        if left:
            left.clear()
            raise PayloadError("it is 1e9 long")
        check(*given)

    monkeypatch.setattr(acceptance, "check_update", once)
    simulation, after = trained(tmp_path, privacy="user_dp(noise_multiplier=1, noise=banded)", rounds=2)
    rounds, clients, ledger = (
        [json.loads(line) for line in (tmp_path / name).read_text().splitlines()]
        for name in ("rounds.jsonl", "clients.jsonl", LEDGER)
    )
    assert [line["client"] for line in clients if line.get("rejected")] == [clients[0]["client"]]
    assert [(r["clients"], r["rejected"]) for r in rounds] == [(3, 0)] * 2
    assert after.counters.rejected == 0
    turns = [sorted(line["client"] for line in clients if line["round"] == round_number) for round_number in (1, 2)]
    assert sorted(turns[0] + turns[1]) == list(range(6))
    assert [[charge[0] for charge in line["charges"]] for line in ledger[1:]] == turns
    assert simulation.protection.ledger.spent == {client: {Event(1.0, 1.0): 1} for client in range(6)}


def test_a_round_without_updates_takes_its_step_of_noise(tmp_path, monkeypatch):
    """That it took none would tell of the only client whose update is taken; and related noise goes on."""
    check = acceptance.check_update

    def not_in_round_1(*given):
        if not (tmp_path / "rounds.jsonl").exists():
            raise PayloadError("it is 1e9 long")
        check(*given)

    monkeypatch.setattr(acceptance, "check_update", not_in_round_1)
    _, after = trained(tmp_path, privacy="user_dp(noise_multiplier=1, noise=banded)", rounds=2)
    clients = [json.loads(line) for line in (tmp_path / "clients.jsonl").read_text().splitlines()]
    assert [bool(line.get("rejected")) for line in clients] == [True] * 3 + [False] * 3
    norms = [json.loads(line)["update_norm"] for line in (tmp_path / "rounds.jsonl").read_text().splitlines()]
    assert min(norms[-2:]) > 0
    assert after.memory[CHAIN]["attempts"].tolist() == [[1, 0], [2, 0]]

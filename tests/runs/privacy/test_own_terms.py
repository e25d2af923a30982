"""Federations that a client does not join, and terms that a server does not take."""

from __future__ import annotations

import json

import pytest

from fedpeft.deployment.identity.members import Roster
from fedpeft.privacy.engine import LEDGER


@pytest.mark.parametrize("wrong", [{"noise": 1e300}, {"noise": 1e-300}, {"delta": 5e-324}], ids=str)
def test_terms_of_which_no_epsilon_follows_end_no_federation(federation, wrong, observer, monkeypatch):
    """An earlier server has admitted them: they lie in the list of clients, and what they cost in its ledger."""
    made = federation(privacy="local_dp(noise_multiplier=1, epsilon=100)", rounds=2)
    with monkeypatch.context() as interrupted:
        interrupted.setattr(observer, "round_done", lambda result: True)
        assert made.run().round == 1
    folder = made.folder / "server"
    stored = json.loads((folder / "roster.json").read_text())
    stored["members"][0]["terms"].update(wrong)
    (folder / "roster.json").write_text(json.dumps(stored))
    charge = {"round": 1, "attempt": 1, "fingerprint": "other", "charges": [[0, wrong.get("noise", 1.0), 1.0, 1]]}
    with open(folder / LEDGER, "a") as ledger:
        ledger.write(json.dumps(charge) + "\n")
    assert Roster(folder / "roster.json", 2).find("edge-0").terms is None
    again = federation(privacy="local_dp(noise_multiplier=1, epsilon=100)", rounds=2)
    assert again.run().round == 2
    sits_out = "noise" in wrong
    assert again.server.protection.sat_out == ({0} if sits_out else set())
    assert (again.server.protection.summary()["epsilon"] == float("inf")) is sits_out


def test_who_was_charged_and_has_no_terms_any_more_counts_as_unprotected(federation):
    made = federation(privacy="local_dp(noise_multiplier=1)", rounds=1)
    made.run()
    assert made.server.protection.epsilons()[0] < 100
    made.server.roster.find("edge-0").terms = None
    assert made.server.protection.epsilons()[0] == float("inf")

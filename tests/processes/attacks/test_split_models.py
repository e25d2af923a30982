"""One client's update is not read by what a server gives the others otherwise, though all are told one history."""

from __future__ import annotations

import pytest

from tests.attacks.malicious_server import ALIKE, ATTACKS, FIVE, run

SAID = {
    "other alpha": "records a model of rank 8, alpha 32.0001 in the training of round 1; legal is rank 8, alpha 32.0",
    "no rank": "records a model of whole in the training of round 1; legal is rank 8, alpha 32.0",
    "no digest": "has no digest of the model of rank 8, alpha 32.0, which all clients compare",
    "one step": "gives this client steps=1 in a sum under masks",
}


@pytest.mark.slow
@pytest.mark.parametrize("name", ATTACKS)
def test_a_server_that_gives_the_others_another_model_or_other_work_reads_nobody(fleet, name):
    made = fleet(names=FIVE, privacy="secure_sum", rounds=1, dtype="fp32", **ATTACKS[name].settings)
    outcome = run(made, name)
    assert outcome.read < ALIKE, f"the sum is the victim's update: correlation {outcome.read}"
    assert outcome.read == 0, made.logs()
    refusing = [client for client in FIVE if SAID[name] in outcome.logs[client]]
    assert len(refusing) >= len(FIVE) - 1, made.logs()

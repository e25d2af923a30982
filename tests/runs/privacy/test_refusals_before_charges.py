"""What a private client refuses is not charged: a server can't spend a budget with tasks that nobody carries out."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from fedpeft.clients.drift import SHARES

from fedpeft.communication.codec import parse_codec
from fedpeft.communication.messages import Instruction
from fedpeft.privacy.client_protection import OWN
from tests.refusals import has_error

CODEC = parse_codec("fp32")
RAISED = {
    "a rank above the client's": ({"rank": 64, "alpha": 64.0}, ("FP6176", "rank 64", "rank 2")),
    "shares of the classes": ({"told": CODEC.encode({SHARES: torch.ones(3) / 3})}, ("FP7003",)),
    "a payload that is none": ({"payload": b"nonsense"}, ("FP6066", 8)),
    "another model than the recorded one": ({"released": "0" * 64}, ("FP6075", "round 1")),
}


@pytest.mark.parametrize("lie", RAISED)
def test_a_refused_task_is_not_charged(federation, lie):
    changed, says = RAISED[lie]
    made = federation(privacy="dp_sgd(noise_multiplier=1.5)", clients=1, rounds=1, batch_size=4)
    [edge] = made.server.edges
    form = made.server.setup.layout.form
    honest = Instruction("train", 1, 0, CODEC.encode(made.server.setup.start), 1e-3, rank=form.rank, alpha=form.alpha)
    report = edge.handle(replace(honest, **changed))
    assert has_error(report.error, *says)
    assert edge.protection.ledger.releases(OWN) == 0
    assert edge.handle(honest).payload
    assert edge.protection.ledger.releases(OWN) > 0

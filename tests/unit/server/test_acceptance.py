"""What is worked out of a report, and what not."""

import numpy as np
import pytest
import torch

from fedpeft.audit.canaries import _Clients
from fedpeft.audit.canary_audit import CanaryAudit
from fedpeft.parts.families import MECHANISMS
from fedpeft.rounds.progress import ServerState


@pytest.mark.parametrize("counts", [False, True])
def test_what_a_client_has_trained_is_counted_for_rules_that_go_by_it_alone(counts, tmp_path, monkeypatch):
    """Of a mixture of experts it takes a thousand draws for each report."""
    audit = CanaryAudit(privacy="user_dp(noise_multiplier=1)", rounds=1, canaries=4, rate=1.0)
    made = _Clients(audit, MECHANISMS.build(audit.privacy), tmp_path, np.ones(4, bool))
    progress = ServerState(round=0, adapter=made.start)
    entry = made.protection.enter(1, progress.compute_digest(), range(4))
    acceptance, counted = made.create_acceptance(made.strategy, made.layout, progress, entry), []
    acceptance.owned = lambda *given: counted.append(given) or {"head.weight": torch.ones(())}
    monkeypatch.setattr(type(made.strategy), "counts_owned", counts)
    for member in entry.cohort:
        made.decode_canary(acceptance, made.create_payload(member, entry, progress.adapter), member, progress.adapter)
    assert entry.cohort
    assert counted == [(1, member, 0) for member in entry.cohort if counts]

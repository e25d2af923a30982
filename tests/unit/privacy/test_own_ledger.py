"""Private federations of real clients, in one process: each keeps the first book, and the server the second."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from fedpeft.deployment.client.edge import EdgeClient
from fedpeft.deployment.options import EdgeOptions
from fedpeft.deployment.wire import v2_pb2 as v2
from fedpeft.parts.families import MECHANISMS
from fedpeft.privacy.client_protection import limit_mechanism, plan_participations
from fedpeft.privacy.engine import LEDGER
from fedpeft.privacy.noise import RunKey
from tests.refusals import refuses


@pytest.mark.parametrize("clip", [5e-324, 7.5e-46, 1e-7, 1e10, 1e300])
@pytest.mark.parametrize("mechanism", ["dp_sgd", "local_dp"])
def test_a_server_names_no_clipping_norm_that_rounds_the_noise_away(mechanism, clip):
    """In fp32 z C is 0 for z < 1 where C is the smallest number there is, and what is clipped to C is not."""
    with refuses("FP1227", "clip"):
        MECHANISMS.build(f"{mechanism}(noise_multiplier=0.45, clip={clip})")


@pytest.mark.medium
def test_a_server_that_changes_its_terms_in_a_run_is_refused(federation, observer):
    made = federation(privacy="dp_sgd(epsilon=2)", rounds=1)
    told = v2.Description.FromString(made.server.gateway.description.SerializeToString())
    told.config = told.config.replace("epsilon=2", "epsilon=20")
    home, ledgers = made.folder / "edge-0", made.folder / "ledgers"
    with refuses("FP7042"):
        EdgeClient(told, made.folder / "0.jsonl", home, ledgers, observer, EdgeOptions(device="cpu", threads=1))


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("{}\n", ("FP7032", LEDGER, "noise_multiplier")),
        ("[1]\n", ("FP7046", LEDGER)),
        ("3\n", ("FP7046", LEDGER)),
        ('{"noise_multiplier": "x", "dp_delta": 1}\n', ("FP7032", LEDGER, "'x'")),
    ],
)
def test_a_damaged_ledger_is_one_sentence(federation, content, words):
    made = federation(privacy="dp_sgd(noise_multiplier=1)", clients=1)
    (made.folder / "edge-0" / LEDGER).write_text(content)
    with refuses(*words):
        made.edge(0)


# --------------------------------------------------------------------------------------------------------- small parts


def test_planned_participations():
    assert plan_participations(20, 1.0) == 20
    assert plan_participations(100, 0.1) == 16
    assert plan_participations(1, 0.01) == 1


def test_own_limits():
    given = MECHANISMS.build("dp_sgd(epsilon=8)")
    assert limit_mechanism(given, 1000, None, 1e-3) == replace(given, dp_delta=1e-4)
    assert limit_mechanism(given, 10, 2.0, 1e-3) == replace(given, dp_delta=1e-3, epsilon=2.0)
    assert limit_mechanism(given, 10, 20.0, 1e-3).epsilon == 8
    assert limit_mechanism(MECHANISMS.build("local_dp(noise_multiplier=1)"), 10, None, 1e-3).epsilon is None


def test_local_noise_hides_what_is_not_a_number():
    part = MECHANISMS.build("local_dp(noise_multiplier=1, clip=0.5)")
    key = RunKey(bytes(32))
    update = {"x": torch.tensor([float("nan"), float("inf"), 3.0, 0.0])}
    clean = {"x": torch.tensor([0.0, 0.0, 3.0, 0.0])}
    assert torch.equal(
        part.protect_update(update, 1.0, key, (1, 0, 0))["x"], part.protect_update(clean, 1.0, key, (1, 0, 0))["x"]
    )
    assert np.isfinite(part.protect_update(update, 1.0, key, (1, 0, 0))["x"].numpy()).all()

"""Federations that a client does not join, and terms that a server does not take."""

from __future__ import annotations

import pytest

from fedpeft.deployment.identity.registration import decode_terms
from fedpeft.deployment.options import ServeOptions
from fedpeft.deployment.wire import v2_pb2 as v2
from fedpeft.privacy.declared_terms import DeclaredTerms
from tests.refusals import refuses


@pytest.mark.parametrize(
    ("privacy", "options", "says"),
    [
        ("", {"max_epsilon": 3.0}, ("FP7017", "--privacy", "--max-epsilon")),
        (
            "user_dp(noise_multiplier=1)",
            {"max_epsilon": 3.0},
            ("FP7017", "user_dp(noise_multiplier=1)", "--max-epsilon"),
        ),
        (
            "dp_sgd(noise_multiplier=1, test_noise=True)",
            {"max_epsilon": 3.0},
            ("FP7018", "test_noise", "--max-epsilon"),
        ),
        (
            "dp_sgd(noise_multiplier=1, raw_metrics=True)",
            {"max_epsilon": 300.0},
            ("FP7019", "raw_metrics", "--max-epsilon"),
        ),
        ("dp_sgd(noise_multiplier=1, dp_delta=0.005)", {}, ("FP7029", "dp_delta=0.005", 0.001, "--max-delta")),
        ("local_dp(noise_multiplier=1, dp_delta=0.2)", {"max_delta": 0.5}, None),
        ("dp_sgd(noise_multiplier=1, dp_delta=0.1)", {"max_delta": 0.5}, ("FP7050", "dp_delta=0.1", 0.025)),
    ],
)
def test_federations_that_a_client_does_not_join(federation, privacy, options, says):
    given = {"privacy": privacy, "options": [options, options]}
    if says is None:
        assert federation(**given).server.edges[0].protection.delta == 0.2
        return
    with refuses(*says):
        federation(**given)


@pytest.mark.parametrize(
    ("privacy", "serve", "says"),
    [
        ("none", ServeOptions(), ("FP1134",)),
        ("dp_sgd(epsilon=8, audit=True)", ServeOptions(), ("FP1135",)),
        ("dp_sgd(epsilon=8)", ServeOptions(held_out=0.2), ("FP7022", "--held-out")),
        ("dp_sgd", ServeOptions(), ("FP7049",)),
        ("user_dp(epsilon=8, dp_delta=0.6)", ServeOptions(), ("FP7050",)),
    ],
)
def test_what_a_server_refuses(federation, privacy, serve, says):
    with refuses(*says):
        federation(privacy=privacy, serve=serve)


@pytest.mark.parametrize(
    "wrong",
    [{"noise": -1.0}, {"noise": float("nan")}, {"rate": 0.0}, {"rate": 1.5}, {"releases": 0}, {"dp_delta": 1.0},
     {"epsilon": float("inf")}, {"epsilon": -1.0}, {"noise": 1e300}, {"noise": 1e-300}, {"rate": 5e-324},
     {"dp_delta": 5e-324}, {"releases": 2**32 - 1}],
)  # fmt: skip
def test_terms_that_make_no_sense_are_refused(wrong):
    good = {"noise": 1.0, "rate": 0.1, "releases": 3, "dp_delta": 1e-3, "epsilon": 0.0}
    assert decode_terms(v2.Registration(terms=v2.PrivacyTerms(**good))) == DeclaredTerms(1.0, 0.1, 3, 1e-3, None)
    with refuses("FP5161"):
        decode_terms(v2.Registration(terms=v2.PrivacyTerms(**{**good, **wrong})))
    with refuses("FP5081"):
        decode_terms(v2.Registration())

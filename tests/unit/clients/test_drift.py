"""Corrections of client drift: each is one file with both halves, and one more needs no other."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pytest
import torch
from fedpeft.clients.drift import Drift, ExchangedCorrection, parse_drift
from fedpeft.clients.executor import Job
from fedpeft.clients.local_training import LocalTraining

from fedpeft.aggregation.update import Fold
from fedpeft.communication.codec import parse_codec
from fedpeft.errors import PayloadError
from fedpeft.parts import setting
from fedpeft.parts.families import LOCAL_OPTIMIZERS
from tests.refusals import refuses


@dataclass(frozen=True)
class Dynamic(ExchangedCorrection):
    """As FedDyn's client (Acar et al., arXiv 2111.04263): g <- g - h_k + alpha (y - x), h_k <- h_k - alpha (y - x).

    And a server that knows the mean of all h_k, which it tells: so every way that a correction has is used.
    """

    alpha: float = setting(0.1, "strength", above=0)

    def begin(self, job, server, own):
        def pull(name, value):
            return self.alpha * (value - job.received[name]) - own.get(name, torch.zeros_like(value))

        return pull

    def after(self, job, result, server, own):
        moved = {name: result.state[name] - job.received[name] for name in server}
        return {name: own.get(name, torch.zeros_like(m)) - self.alpha * m for name, m in moved.items()}

    def step(self, server, changes, clients):
        share = changes.weight / clients
        return {name: server[name] + share * change for name, change in changes.mean().items()}


def test_the_text_names_corrections_in_the_order_in_which_they_act():
    text = "fedprox(mu=0.5) + scaffold"
    assert str(parse_drift(text)) == text
    assert parse_drift(str(parse_drift(text))) == parse_drift(text)
    assert parse_drift(" ") == Drift()
    for wrong, words in (
        ("scaffold + scaffold", ("FP1006", "scaffold")),
        ("fedprox + scafold", ("FP1231", "did you mean 'scaffold")),
        ("fedprox(mu=-1)", ("FP1227", "mu")),
        ("fedprox +", ("FP1420",)),
    ):
        with refuses(*words):
            parse_drift(wrong)


def test_what_travels_is_one_payload_and_another_runs_is_refused():
    shapes = {"a": (2, 3), "b": (4,)}
    states = {"scaffold": {name: torch.randn(shape) for name, shape in shapes.items()}}
    codec, both = parse_codec("fp32"), parse_drift("fedprox + scaffold")
    payload = both.encode(states, codec)
    found = both.decode(payload, shapes)
    assert found.keys() == states.keys()
    assert all(torch.equal(found["scaffold"][name], tensor) for name, tensor in states["scaffold"].items())
    assert parse_drift("fedprox").encode({}, codec) == b""
    half = codec.encode({"scaffold/a": states["scaffold"]["a"]}, shapes={f"scaffold/{n}": s for n, s in shapes.items()})
    wrong = (parse_drift("fedprox"), payload), (Drift(), payload), (both, b""), (both, payload[:-1]), (both, half)
    for run, sent in wrong:
        with pytest.raises(PayloadError):
            run.decode(sent, shapes)


def test_fedprox_pulls_back_and_scaffold_pushes_by_the_difference_of_its_variates():
    received = {"x": torch.tensor([1.0, 2.0])}
    job = Job(
        0, 1, 0, np.arange(4), received, frozenset("x"), LocalTraining(optimizer=LOCAL_OPTIMIZERS.build("sgd")), 0.1
    )
    value = torch.tensor([3.0, 0.0])
    prox = parse_drift("fedprox(mu=0.5)").select_corrections({}, {})[0].begin(job)
    assert torch.equal(prox("x", value), torch.tensor([1.0, -1.0]))
    states = {"scaffold": {"x": torch.tensor([5.0, 6.0])}}, {"scaffold": {"x": torch.tensor([1.0, 1.0])}}
    push = parse_drift("scaffold").select_corrections(*states)[0].begin(job)
    assert torch.equal(push("x", value), torch.tensor([4.0, 5.0]))
    assert push("not exchanged", value) is None


def test_scaffolds_server_moves_by_the_share_of_the_clients_that_it_has_heard_of():
    changes = Fold()
    for change in (1.0, 3.0):
        changes.add({"x": torch.tensor([change])}, 1.0)
    after = parse_drift("scaffold").step({"scaffold": {"x": torch.tensor([10.0])}}, {"scaffold": changes}, clients=8)
    assert after["scaffold"]["x"].item() == pytest.approx(10 + (1 + 3) / 8)


def test_states_that_lose_their_meaning_are_refused_whatever_the_correction():
    from fedpeft.parts.families import strategies

    training = LocalTraining(optimizer=LOCAL_OPTIMIZERS.build("sgd"))
    for text, words in (("fedbuff", ("FP1003",)), ("flexlora", ("FP1004",)), ("fedsvd", ("FP1004",))):
        with refuses(*words):
            Dynamic().check(strategies.build(text), training, [None])
        parse_drift("fedprox").corrections[0].check(strategies.build(text), training, [None])
    with refuses("FP1005"):
        Dynamic().check(strategies.build("fedit"), training, ["one form", "another"])

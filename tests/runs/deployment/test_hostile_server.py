"""What no server of good faith sends is refused by a client in one sentence, before it costs anything."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace

import pytest
from fedpeft.clients.drift import SHARES
from fedpeft.clients.pool import Worker

from fedpeft.communication.codec import parse_codec
from fedpeft.communication.messages import Instruction
from fedpeft.deployment.client import answers
from fedpeft.deployment.wire.parcel import IncomingParcel, split_into_parts
from fedpeft.errors import PayloadError
from fedpeft.wiring.setup import count_adapted_entries
from tests.conftest import SilentObserver
from tests.here import Federation
from tests.refusals import has_error, refuses


def test_a_rank_beyond_the_client_s_own_is_refused_before_anything_is_allocated(federation):
    where = federation()
    where.run()
    [asked, *_] = [i for i in where.server.direct.asked if i.kind == "train"]
    report = where.server.edges[asked.client].handle(replace(asked, rank=20_000))
    assert has_error(report.error, "FP6176", "rank 20000", "alpha 32", "rank 2")


def test_a_task_of_an_unknown_kind_is_not_worked_on(federation):
    made = federation(rounds=1)
    made.run()
    asked, edge = made.server.direct.asked[0], made.server.edges[0]
    for kind in ("trian", "", "Train"):
        report = edge.handle(replace(asked, kind=kind))
        assert has_error(report.error, "FP6001", repr(kind), "prepare, train or evaluate")
        assert not report.payload
    with refuses("FP6001"):
        edge.workers.pool.submit(Worker.handle, [asked, replace(asked, kind="evaluate")]).result()


@pytest.mark.parametrize(
    ("changed", "says"),
    [
        ({"trained": (999,)}, ("FP6054", "(999,)", "trained", 0)),
        ({"trained": (-1,)}, ("FP6054", "(-1,)", "trained")),
        ({"private": (0, 0)}, ("FP6054", "(0, 0)")),
        ({"learning_rate": float("nan")}, ("FP6053", "learning_rate=nan")),
        ({"learning_rate": float("inf")}, ("FP6053", "learning_rate=inf")),
        ({"bits": float("nan")}, ("FP6053", "bits=nan")),
        ({"rank": -1}, ("FP6052", "rank=-1")),
        ({"rank": 2, "alpha": 0.0}, ("FP6053", "alpha=0.0")),
        ({"round": -1}, ("FP6052", "round=-1")),
        ({"client": -1}, ("FP6052", "client=-1")),
        ({"acknowledged": 2**40}, ("FP6052", f"acknowledged={2**40}")),
        ({"base": -3}, ("FP6052", "base=-3")),
        ({"steps": 2**62}, ("FP6052", f"steps={2**62}", 0, 1000000)),
        ({"base_precision": "int4"}, ("FP6056", "base_precision='int4'")),
        ({"adapter_precision": "fp8"}, ("FP6056", "adapter_precision='fp8'", "'fp32', 'bf16'")),
    ],
)  # fmt: skip
def test_values_that_no_server_of_good_faith_sends_are_one_sentence(asked_edge, changed, says):
    asked, edge = asked_edge
    report = edge.handle(replace(asked, **changed))
    assert has_error(report.error, *says)
    assert not report.payload
    with pytest.raises(PayloadError):
        edge.workers.pool.submit(Worker.handle, [replace(asked, **changed)]).result()


def test_tensors_that_a_payload_does_not_hold_end_no_client(asked_edge):
    """A payload says itself which of the adapter's tensors are in it."""
    _, edge = asked_edge
    codec, layout, start = parse_codec("fp32"), edge.setup.layout, edge.setup.start
    missing = next(iter(layout.shapes))
    train = Instruction("train", 1, 0, codec.encode(start), learning_rate=1e-3, rank=2, alpha=32.0)
    classes = {SHARES: (edge.setup.facts.classes,)}
    for changed in (
        {"payload": codec.encode({n: t for n, t in start.items() if n != missing}, shapes=layout.shapes)},
        {"told": codec.encode({}, shapes=classes)},
    ):
        report = edge.handle(replace(train, **changed))
        assert has_error(report.error, "FP6041"), changed.keys()
        assert not report.payload
    assert edge.handle(train).payload


@pytest.fixture(scope="module")
def asked_edge(tmp_path_factory):
    """Return a task and the client that it is for."""
    made = Federation(tmp_path_factory.mktemp("asked"), SilentObserver(), clients=1, rounds=1)
    made.run()
    return made.server.direct.asked[0], made.server.edges[0]


def test_a_base_that_no_rule_of_the_run_changes_is_not_taken(asked_edge):
    """Else a server of plain means could put anything into it. Who lacks tensors of one: `test_held_base`."""
    asked, edge = asked_edge
    report = edge.handle(replace(asked, base=1, residual=b"\xff" * 4 * len(edge.setup.layout.pairs)))
    assert has_error(report.error, "FP6024", "1")
    assert not report.payload


def test_a_task_is_no_larger_than_the_adapter_needs(asked_edge):
    asked, edge = asked_edge
    limit, weights = edge.instruction_limit, count_adapted_entries(edge.setup.model(), edge.setup.layout)
    assert limit == 16 * edge.setup.layout.numel + 8 * weights + (1 << 20)
    whole = replace(asked, payload=bytes(limit + 1))
    with refuses("FP6093"):
        IncomingParcel(Instruction, limit, next(iter(split_into_parts("t", whole))).header)


@pytest.mark.fast
@pytest.mark.parametrize(("raw", "joules"), [(False, 0.0), (True, 7.0)])
def test_where_clients_are_silent_nothing_that_is_measured_leaves_them_whoever_adds_the_noise(
    federation, monkeypatch, raw, joules
):
    monkeypatch.setattr(answers, "Meter", lambda: SimpleNamespace(measure_joules=lambda: 7.0))
    made = federation(rounds=1, privacy=f"user_dp(noise_multiplier=1, raw_metrics={raw})")
    payload = parse_codec("fp32").encode(made.server.setup.start)
    instruction = Instruction("train", 1, 0, payload, learning_rate=1e-3, rank=2, alpha=32.0)
    edge = made.server.edges[0]
    assert edge.handle(instruction).joules == joules
    for asks in ("", "likelihoods"):
        report = edge.handle(replace(instruction, kind="evaluate", asks=asks))
        assert (has_error(report.error, "FP7013", "user_dp")) is not raw

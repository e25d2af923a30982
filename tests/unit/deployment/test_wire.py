"""The .proto, the code generated from it, and parcels."""

from __future__ import annotations

import dataclasses
import socket
from pathlib import Path
from types import SimpleNamespace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedpeft.communication.messages import Instruction, Report
from fedpeft.deployment.client.joining import Patience
from fedpeft.deployment.wire import v2_pb2 as v2
from fedpeft.deployment.wire.channel import CHUNK
from fedpeft.deployment.wire.connection import Link, LostError, shorten_details
from fedpeft.deployment.wire.generate import GENERATED, generate
from fedpeft.deployment.wire.parcel import IncomingParcel, compute_wire_size, split_into_parts
from tests.refusals import refuses

WIRE = Path(__file__).parent.parent.parent.parent / "fedpeft" / "deployment" / "wire"
LIMIT = 1 << 24


def received(cls, limit, messages):
    """Task and content of a parcel, as both ends take it, part by part."""
    first, *others = messages
    incoming = IncomingParcel(cls, limit, first.header)
    for part in others:
        incoming.add(part.chunk)
    return incoming.task, incoming.get_content()


@pytest.mark.parametrize(
    ("details", "cause"),
    [
        (
            "failed to connect to all addresses; last error: UNKNOWN: ipv4:127.0.0.1:8470: Failed to connect to remote "
            "host: connect: Connection refused (111)",
            "Connection refused",
        ),
        (
            "DNS resolution failed for nowhere:8470: C-ares status is not ARES_SUCCESS qtype=A name=nowhere: Domain "
            "name not found",
            "Domain name not found",
        ),
        (
            "errors resolving nowhere:8470: [field:hostname lookup error:address lookup failed for nowhere:8470: "
            "Domain name not found]",
            "Domain name not found",
        ),
        ("too many calls are waiting to send a message; retry later", None),
        ("Socket closed", None),
    ],
)
def test_a_failed_connection_is_described_by_its_cause(details, cause):
    assert shorten_details(details) == (cause or details)


def test_a_server_that_does_not_listen_yet_is_described_in_one_short_sentence():
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    said = []
    link = Link(f"127.0.0.1:{port}", "edge-1", None)
    with link.open() as connection, pytest.raises(LostError) as lost:
        connection.describe()
    Patience(0.0, SimpleNamespace(say=said.append), iter([0.0])).wait_for_retry(link, lost.value)
    assert said == [f"no connection to 127.0.0.1:{port} (Connection refused); again in 0.0 s"]


def test_the_generated_code_is_that_of_the_proto(tmp_path):
    pytest.importorskip("grpc_tools", reason="the proto compiler is in the extra dev")
    generate(tmp_path)
    for name in GENERATED:
        assert (tmp_path / "fedpeft" / "deployment" / "wire" / name).read_text() == (WIRE / name).read_text(), (
            "run python -m fedpeft.deployment.wire.generate"
        )


@given(
    payload=st.binary(max_size=100),
    correction=st.binary(max_size=10),
    repeat=st.sampled_from([1, 20_000]),
    trained=st.lists(st.integers(0, 1000)).map(tuple),
    alpha=st.floats(allow_nan=False) | st.integers(0, 100),
)
def test_an_instruction_arrives_as_it_was_sent(payload, correction, repeat, trained, alpha):
    sent = Instruction("train", 3, 7, payload * repeat, alpha=alpha, trained=trained, correction=correction)
    messages = list(split_into_parts("task", sent))
    assert received(Instruction, LIMIT, messages) == ("task", sent)
    assert max(compute_wire_size(m) for m in messages) <= CHUNK + 16


def test_every_field_of_messages_travels():
    """A field of a new type would be refused by `split_into_parts`; a missing one would return as its default."""
    texts = {"kind": "evaluate"}
    for cls in (Instruction, Report):
        values = {}
        for i, field in enumerate(dataclasses.fields(cls), 1):
            values[field.name] = {
                "int": i, "float": i + 0.5, "str": f"text {i}", "bytes": b"x" * i, "Kind": "evaluate", "bool": True,
                "tuple[int, ...]": (i, i + 1),
            }[str(field.type)]  # fmt: skip
        sent = cls(**{**values, **{k: v for k, v in texts.items() if k in values}})
        assert received(cls, LIMIT, split_into_parts("t", sent)) == ("t", sent)


def header(**more):
    made = next(iter(split_into_parts("t", Report(1, 2, b"abc")))).header
    for name, value in more.items():
        made.fields[name].CopyFrom(value)
    return made


def test_what_is_not_a_parcel_is_refused():
    long = header()
    long.payloads[0].size = LIMIT + 1
    twice = header()
    twice.payloads.append(twice.payloads[0])
    foreign = header()
    foreign.payloads.append(v2.Payload(name="residual", size=3))
    lacking = header()
    del lacking.fields["round"]
    for wrong, why in [
        (header(code=v2.Value(text="import os")), ("FP6097",)),
        (header(round=v2.Value(text="2")), ("FP6098",)),
        (header(round=v2.Value()), ("FP6098",)),
        (header(error=v2.Value(text="x" * 5000)), ("FP6099",)),
        (long, ("FP6093",)),
        (twice, ("FP6092",)),
        (foreign, ("FP6092",)),
        (lacking, ("FP6101", "round")),
    ]:
        with refuses(*why):
            IncomingParcel(Report, LIMIT, wrong)
    for kind in ("trian", "", "Train"):
        unknown = next(iter(split_into_parts("t", Instruction(kind, 1, 0, b"abc")))).header
        with refuses("FP6100", "kind", f"'{kind}'", "prepare, train, evaluate"):
            IncomingParcel(Instruction, LIMIT, unknown)
    with refuses("FP6094"):
        received(Report, LIMIT, [v2.Part(header=header()), v2.Part(chunk=b"abcd")])
    with refuses("FP6096"):
        received(Report, LIMIT, [v2.Part(header=header())])
    with refuses("FP6095", "2"):
        received(Report, LIMIT, [v2.Part(header=header()), v2.Part(chunk=b"ab")])

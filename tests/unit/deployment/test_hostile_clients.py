"""The server's side of the wire under attack: every case is a real connection over loopback with mutual TLS."""

from __future__ import annotations

import itertools
import threading
from dataclasses import replace

import grpc
import pytest

from fedpeft.communication.messages import Instruction
from fedpeft.deployment.identity.authentication import Doorkeeper, TokenBucket
from fedpeft.deployment.identity.members import Roster
from fedpeft.deployment.wire import v2_pb2 as v2
from fedpeft.deployment.wire.admission import MESSAGE_LIMIT, Admission
from fedpeft.deployment.wire.channel import CHUNK
from fedpeft.deployment.wire.connection import LostError
from fedpeft.deployment.wire.gateway import REPEATS
from fedpeft.deployment.wire.parcel import split_into_parts
from fedpeft.errors import RunError
from tests.deployment.door import LIMIT, asked, client, good
from tests.refusals import has_error, pattern_of, refuses


def dropped(door, connection, send, *why):
    """`send` is refused with the code and the values of `why`; the round hears of it, and the client stays out."""
    with pytest.raises((RunError, grpc.RpcError), match=pattern_of(*why, "--readmit")):
        send()
    answer = door.gateway.answers.get(timeout=5)
    assert has_error(answer.report.error, *why)
    with refuses("FP5044", *why, "--readmit"):
        connection.describe()
    assert has_error(door.reasons("dropped")[0], *why)
    assert Roster(door.folder / "roster.json", 3).find("edge-1").dropped


def raw(connection, messages):
    return connection._stub.Submit(iter(messages), metadata=connection._metadata, timeout=20)


def test_answering_for_another_client(door):
    door.roster.enter("edge-2", 0)
    with client(door) as connection:
        task = asked(door, connection)
        other = replace(good(door), client=1 - good(door).client)
        dropped(door, connection, lambda: connection.submit(task, other), "FP6087")


def test_a_dropped_client_is_taken_back_when_its_server_says_so(door):
    with client(door) as connection:
        task = asked(door, connection)
        dropped(door, connection, lambda: connection.submit(task, replace(good(door), client=7)), "FP6087")
        roster = Roster(door.folder / "roster.json", 3)
        for names in (["edge-2"], ["edge-1", "edge-2"]):
            with refuses("FP5076", "edge-2", "edge-1"):
                roster.readmit(names)
        assert Roster(door.folder / "roster.json", 3).find("edge-1").dropped  # all of the names, or none
        assert roster.readmit(["edge-1"]) == ["edge-1"]
        door.gateway.close(None)
        door.roster = Roster(door.folder / "roster.json", 3)
        door.gateway = door.open(door.gateway.port)
        assert connection.describe().run == roster.run
    assert roster.readmit(["edge-1"]) == []  # the same command, where a start has failed after it


def test_answering_for_an_old_round(door):
    with client(door) as connection:
        task = asked(door, connection, round_number=5)
        dropped(door, connection, lambda: connection.submit(task, good(door, round_number=4)), "FP6088", 5, 4)


def test_more_rows_than_it_has_registered_with(door):
    with client(door) as connection:
        task = asked(door, connection)
        dropped(door, connection, lambda: connection.submit(task, replace(good(door), rows=2**62)), "FP6089", 2**62, 10)


def test_an_invented_task(door):
    with client(door) as connection:
        task = asked(door, connection)
        invented = task.split(".")[0] + ".999"
        dropped(door, connection, lambda: connection.submit(invented, good(door)), "FP6091")


def test_replayed_reports_are_ignored_and_then_end_it(door):
    with client(door) as connection:
        task = asked(door, connection)
        assert connection.submit(task, good(door)) == "taken"
        for _ in range(REPEATS):
            assert connection.submit(task, good(door)) == "known"
        with refuses("FP5044", "FP6090"):
            connection.submit(task, good(door))
        assert door.gateway.answers.get(timeout=5).report == good(door)
        assert door.gateway.answers.empty()


def test_an_oversized_report_is_refused_before_it_is_taken(door):
    with client(door) as connection:
        task = asked(door, connection)
        huge = good(door, payload=bytes(LIMIT + 1))
        dropped(door, connection, lambda: connection.submit(task, huge), "FP6093", LIMIT + 1, LIMIT)
        assert door.gateway.list_sessions()[0].received_bytes < CHUNK


def test_more_bytes_than_announced(door):
    with client(door) as connection:
        task = asked(door, connection)
        messages = [*split_into_parts(task, good(door)), v2.Part(chunk=b"more")]
        dropped(door, connection, lambda: raw(connection, messages), "FP6094", 4)


@pytest.mark.parametrize("chunk", [b"", b"x"])
def test_chunks_that_bring_nothing_forward_are_no_report(door, chunk):
    with client(door) as connection:
        task = asked(door, connection)
        header = next(split_into_parts(task, good(door, payload=bytes(CHUNK))))
        endless = itertools.chain([header], itertools.repeat(v2.Part(chunk=chunk)))
        dropped(door, connection, lambda: raw(connection, endless), "FP6095", len(chunk))


def test_a_report_without_a_header(door):
    with client(door) as connection:
        asked(door, connection)
        dropped(door, connection, lambda: raw(connection, [v2.Part(chunk=b"x" * 100)]), "FP6086")


def test_bytes_that_are_no_message(door):
    """The gRPC library refuses them; the client stays, the round continues, and the server lives on."""
    with client(door) as connection:
        task = asked(door, connection)
        call = connection._channel.stream_unary("/fedpeft.v2.Federation/Submit")
        with pytest.raises(grpc.RpcError):
            call(iter([b"\xff" * 1000]), metadata=connection._metadata, timeout=20)
        assert connection.submit(task, good(door)) == "taken"


def test_a_field_that_is_not_known(door):
    with client(door) as connection:
        task = asked(door, connection)
        messages = list(split_into_parts(task, good(door)))
        messages[0].header.fields["code"].text = "import os"
        dropped(door, connection, lambda: raw(connection, messages), "FP6097")


def test_a_flood_of_calls(door, monkeypatch):
    monkeypatch.setattr("fedpeft.deployment.wire.admission.CALLS_AT_ONCE", 5.0)
    with client(door) as connection:
        asked(door, connection)
        with refuses("FP5044", "calls too often"):
            assert not [connection.describe() for _ in range(200)]
    assert door.reasons("dropped") == ["it calls too often"]


def test_answers_are_no_flood_however_fast_the_server_asks(door, monkeypatch):
    """A secure sum takes five of them a round."""
    monkeypatch.setattr("fedpeft.deployment.wire.admission.CALLS_AT_ONCE", 5.0)
    monkeypatch.setattr("fedpeft.deployment.wire.admission.CALLS_PER_SECOND", 0.0)
    with client(door) as connection:
        asked(door, connection)
        [session] = door.gateway.list_sessions()
        client_id = door.roster.find("edge-1").id
        for round_number in range(2, 20):
            task = door.gateway.submit("edge-1", Instruction("train", round_number, client_id, b"state"))
            door.until(lambda task=task: session.task == task)
            assert connection.submit(task, good(door, round_number=round_number)) == "taken"
        assert not door.reasons("dropped")


def test_a_flood_of_calls_before_it_registers(door, monkeypatch):
    monkeypatch.setattr("fedpeft.deployment.wire.admission.CALLS_AT_ONCE", 5.0)
    with door.link("edge-1").open() as connection, refuses("FP5044", "calls too often"):
        assert not [connection.describe() for _ in range(200)]
    assert door.roster.find("edge-1") is None


def test_refusals_and_what_clients_say_of_themselves_fill_no_disk(door, monkeypatch):
    door.gateway.admission._lines = TokenBucket(0.0, 3.0)
    with door.link("edge-1").open() as connection:
        for _ in range(9):
            with refuses("FP5044", "another federation"):
                next(connection.iterate_tasks(v2.Registration(run="other", rows=1)))
    assert len(door.reasons("refused")) == 3
    assert door.gateway.admission.refused == 9
    with door.link("edge-1").open() as connection:
        stream = connection._stub.Tasks(door.registration(hardware="x" * 60_000), metadata=connection._metadata)
        door.until(lambda: any(event == "connected" for event, _ in door.entries))
        stream.cancel()
    assert (door.folder / "serve.jsonl").stat().st_size < 10_000


def test_a_message_before_registration_is_short(door):
    with door.link("edge-1").open() as connection:
        for size, code in ((MESSAGE_LIMIT, grpc.StatusCode.INVALID_ARGUMENT),
                           (4 * CHUNK, grpc.StatusCode.RESOURCE_EXHAUSTED)):  # fmt: skip
            with pytest.raises(grpc.RpcError) as refusal:
                next(connection._stub.Tasks(door.registration(hardware="x" * size), metadata=connection._metadata))
            assert refusal.value.code() == code
            with pytest.raises(grpc.RpcError) as refusal:
                connection._stub.Describe(v2.Introduction(software="x" * size), metadata=connection._metadata)
            assert refusal.value.code() == code
    assert door.roster.find("edge-1") is None


def silent_call(connection, method="Tasks"):
    """Open a call that sends nothing until its `end` is set."""
    end = threading.Event()

    def nothing():
        end.wait(30)
        return
        yield b""

    call = connection._channel.stream_stream(f"/fedpeft.v2.Federation/{method}")
    return call(nothing(), metadata=connection._metadata), end


@pytest.mark.parametrize("method", ["Describe", "Tasks"])
def test_a_call_that_says_nothing_ends_soon(door, monkeypatch, method):
    monkeypatch.setattr("fedpeft.deployment.wire.admission.MESSAGE_SECONDS", 0.1)
    with door.link("edge-1").open() as connection:
        call, end = silent_call(connection, method)
        with pytest.raises(grpc.RpcError) as refusal:
            next(call)
        assert refusal.value.code() == grpc.StatusCode.DEADLINE_EXCEEDED
        end.set()
        call, end = silent_call(connection, method)
        end.set()
        with pytest.raises(grpc.RpcError, match="ended without a message"):
            next(call)
        call = connection._channel.unary_unary(f"/fedpeft.v2.Federation/{method}")
        with pytest.raises(grpc.RpcError, match="can't be read"):
            call(b"\xff" * 100, metadata=connection._metadata)
        assert connection.describe().run == door.roster.run
    assert not door.gateway.admission._waiting, "they are counted no longer"


@pytest.mark.parametrize(("limit", "stranger"), [("WAITING_OF_ONE", "edge-1"), ("WAITING", "edge-2")])
def test_calls_that_say_nothing_take_few_places(door, monkeypatch, limit, stranger):
    """One client takes its own places only, all strangers together theirs; members that are connected are served."""
    monkeypatch.setattr(f"fedpeft.deployment.wire.admission.{limit}", 2)
    with client(door, "edge-0") as member, door.link("edge-1").open() as crowd, door.link(stranger).open() as other:
        task = asked(door, member, "edge-0")
        calls = [silent_call(crowd) for _ in range(2)]
        door.until(lambda: door.gateway.admission._waiting.total() == 2)
        with pytest.raises(LostError, match="too many calls are waiting"):
            other.describe()
        assert member.submit(task, good(door, "edge-0")) == "taken"
        for call, end in calls:
            end.set()
            call.cancel()
        door.until(lambda: not door.gateway.admission._waiting)
        assert other.describe().run == door.roster.run


def test_what_waits_is_all_strangers_together_where_names_cost_nothing(door):
    admission = Admission(Doorkeeper(None), door.roster, door.events, lambda name: RuntimeError(name))
    door.roster.enter("edge-1", 0)
    assert [admission._get_counting_name(name) for name in ("edge-1", "made-up-1", "made-up-2")] == ["edge-1", "", ""]

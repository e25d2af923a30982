"""Tasks and reports between a server and its clients, over real connections with mutual TLS."""

from __future__ import annotations

import contextlib
import threading
import time
from dataclasses import replace
from types import SimpleNamespace

import grpc
import pytest

from fedpeft.communication.broadcast_digests import BroadcastDigests, compute_common_digest
from fedpeft.communication.messages import Instruction, Report
from fedpeft.deployment.client.joining import Patience, take_part
from fedpeft.deployment.identity.authentication import TokenBucket
from fedpeft.deployment.identity.credentials import Credentials
from fedpeft.deployment.identity.members import Roster
from fedpeft.deployment.identity.signing import Signer, Verifier
from fedpeft.deployment.transcript.announcements import Announcements
from fedpeft.deployment.transcript.transcript import Transcript
from fedpeft.deployment.wire import v2_pb2 as v2
from fedpeft.deployment.wire.channel import CHUNK
from fedpeft.deployment.wire.connection import LostError, UnkeptError
from fedpeft.deployment.wire.parcel import IncomingParcel, compute_wire_size, split_into_parts
from fedpeft.errors import RunError
from tests.conftest import SilentObserver
from tests.deployment.door import LIMIT, asked, client, good
from tests.refusals import has_error, pattern_of, refuses
from tests.runs.deployment.test_full_disk import full_disk, no_room


def test_a_task_is_answered_once(door):
    with client(door) as connection:
        task = asked(door, connection)
        assert connection.submit(task, good(door)) == "taken"
        assert door.gateway.answers.get(timeout=5).report.payload == b"update"
        assert connection.submit(task, good(door, payload=b"another")) == "known"
        assert door.gateway.answers.empty()


def test_large_payloads_travel_in_chunks(door):
    state = bytes(range(256)) * (3 * CHUNK // 256) + b"end"
    door.roster.enter("edge-1", 0)
    door.roster.start()
    with door.link("edge-1").open() as connection:
        task = door.gateway.submit("edge-1", Instruction("train", 1, 0, state))
        assert next(connection.iterate_tasks(door.registration())) == (task, Instruction("train", 1, 0, state))
        assert connection.submit(task, good(door, payload=state)) == "taken"
    assert door.gateway.answers.get(timeout=5).report.payload == state
    [session] = door.gateway.list_sessions()
    assert session.received_bytes == sum(
        compute_wire_size(p) for p in split_into_parts(task, good(door, payload=state))
    )


# ------------------------------------------------------------------------------------------------------- signed rounds


def announces(door):
    """Make the door's server announce its rounds, which clients check."""
    signer = Signer(Credentials.load_server(door.folder / "certs"))
    said = Announcements(door.folder / "rounds.jsonl", door.roster.run, "5" * 64, 1, signer)
    door.gateway.announcements = said
    return said


class AnyPolicy:
    """Takes any record: these tests are about what travels."""

    def check_record(self, record):
        pass

    def format_state_name(self, instruction):
        return "whole"

    def smaller_states(self, instruction, record):
        return {}


def transcript(door, name="edge-1"):
    authority = (door.folder / "certs" / "ca.pem").read_bytes()
    file, run = door.folder / f"{name}.jsonl", door.roster.run
    return Transcript(file, run, "5" * 64, name, Verifier(authority), 100, AnyPolicy())


def announced(door, said, round_number):
    instruction = Instruction("train", round_number, 0, bytes(CHUNK + 1))
    said.announce(BroadcastDigests("train", round_number, {"whole": "7" * 64}, compute_common_digest(instruction)))
    return instruction


def test_records_travel_with_tasks_and_those_that_were_missed_with_the_next(door):
    said = announces(door)
    door.roster.enter("edge-1", 0)
    door.roster.start()
    kept = transcript(door)
    with door.link("edge-1").open() as connection:
        tasks = connection.iterate_tasks(door.registration(), transcript=kept)
        for round_number in (1, 2):
            task = door.gateway.submit("edge-1", announced(door, said, round_number))
            name, instruction = next(tasks)
            assert (name, instruction.round, instruction.released) == (task, round_number, "7" * 64)
            assert connection.submit(task, good(door, round_number=round_number)) == "taken"
    for round_number in range(3, 9):
        announced(door, said, round_number)
    door.gateway.submit("edge-1", announced(door, said, 9))
    with door.link("edge-1").open() as connection:
        assert next(connection.iterate_tasks(door.registration(), transcript=kept))[1].round == 9
    assert len(kept) == len(transcript(door)) == 9
    said._statements = said._statements[:4]
    with door.link("edge-1").open() as connection, refuses("FP5044", "holds 9 records", "the server 4"):
        next(connection.iterate_tasks(door.registration(), transcript=kept))


def test_a_full_disk_keeps_a_client_from_a_task_for_as_long_as_it_is_full(door):
    link, kept, said = door.link("edge-1"), transcript(door), announces(door)
    door.roster.enter("edge-1", 0)
    door.roster.start()
    instruction = Instruction("prepare", 0, 0, b"")
    said.announce(BroadcastDigests("prepare", 0, common=compute_common_digest(instruction)))
    task = door.gateway.submit("edge-1", instruction)
    door.roster.enter("edge-1", 0, None, 10)
    for room in (0, 500):
        with full_disk(room), link.open() as connection, pytest.raises(UnkeptError, match=pattern_of("FP5102")):
            next(connection.iterate_tasks(door.registration(), transcript=kept))
    with link.open() as connection:
        assert next(connection.iterate_tasks(door.registration(), transcript=kept))[0] == task
    assert len(transcript(door)) == 1


def test_a_full_disk_at_the_server_keeps_a_client_out_for_as_long_as_it_is_full(door):
    link = door.link("edge-1")
    for _ in range(2):
        with full_disk(10), link.open() as connection, pytest.raises(LostError, match="list of clients"):
            next(connection.iterate_tasks(door.registration()))
    with client(door):
        assert Roster(door.folder / "roster.json", 3).find("edge-1").rows == 10


def test_a_full_disk_at_the_server_holds_no_round_up_for_a_client_that_is_dropped(door):
    with client(door) as connection:
        task = asked(door, connection)
        with full_disk(10), refuses("FP5044", "FP6087"):
            connection.submit(task, replace(good(door), client=5))
    assert has_error(door.gateway.answers.get(timeout=5).report.error, "FP6087")


def test_a_server_that_signs_nothing_is_refused(door):
    door.roster.enter("edge-1", 0)
    door.roster.start()
    door.gateway.submit("edge-1", Instruction("train", 1, 0, b"state"))
    with door.link("edge-1").open() as connection, refuses("FP5118"):
        next(connection.iterate_tasks(door.registration(), transcript=transcript(door)))
    said = announces(door)
    said._signer = None
    door.gateway.submit("edge-1", announced(door, said, 1))
    with door.link("edge-1").open() as connection, refuses("FP5107"):
        next(connection.iterate_tasks(door.registration(), transcript=transcript(door)))


def test_a_newer_report_ends_the_older_one(door):
    """A client that was cut off in the middle of a report begins it anew, before the server has missed it."""
    with client(door) as connection:
        task = asked(door, connection)
        release = threading.Event()

        def slowly():
            first, *rest = split_into_parts(task, good(door, payload=b"older"))
            yield first
            release.wait(20)
            yield from rest

        upload = connection._stub.Submit.future(slowly(), metadata=connection._metadata, timeout=20)
        door.until(lambda: door.gateway.list_sessions()[0].upload is not None)
        assert connection.submit(task, good(door)) == "taken"
        with pytest.raises(grpc.RpcError) as ended:
            upload.result()
        release.set()
        assert ended.value.code() == grpc.StatusCode.ABORTED
        assert door.gateway.answers.get(timeout=5).report.payload == b"update"
        assert not door.roster.find("edge-1").dropped
        assert door.gateway.list_sessions()[0].upload is None


def test_a_second_process_takes_over_and_the_first_is_told(door):
    with client(door), door.link("edge-1").open() as older:
        first = older.iterate_tasks(door.registration())
        told: list[str] = []

        def listen():
            try:
                next(first)
            except RunError as error:
                told.append(str(error))

        reader = threading.Thread(target=listen)
        reader.start()
        door.until(lambda: door.gateway.list_sessions()[0].stream == 2)
        with client(door):
            reader.join(20)
            assert has_error(told[0], "FP5045", "fedpeft certs --clients NAME")


def test_secrets_are_not_in_the_log(door):
    with client(door) as connection:
        connection.submit(asked(door, connection), good(door))
    log = (door.folder / "serve.jsonl").read_text()
    assert "connected" in log
    for key in (door.folder / "certs").rglob("*.key"):
        assert key.read_text().splitlines()[1] not in log
    assert "BEGIN" not in log


# -------------------------------------------------------------------------------------------------------------- faults


def asked_before_a_restart(door):
    """Return a task of the server before a restart."""
    with client(door) as connection:
        task = asked(door, connection)
        port = door.gateway.port
        door.gateway.close(None)
    door.roster = Roster(door.folder / "roster.json", 3)
    door.gateway = door.open(port)
    return task


def test_a_restarted_server_takes_no_report_of_the_earlier_one(door):
    task = asked_before_a_restart(door)
    with client(door) as connection:
        assert connection.submit(task, good(door)) == "late"
        again = door.gateway.submit("edge-1", Instruction("train", 1, 0, b"state"))
        assert connection.first()[0] == again != task
        assert connection.submit(again, good(door)) == "taken"


def test_a_member_that_reports_to_a_restarted_server_is_no_warning_and_a_stranger_is_one(door):
    task = asked_before_a_restart(door)
    for name, refused in (("edge-1", 0), ("edge-2", 1)):
        with door.link(name).open() as connection, pytest.raises(LostError, match="the server was restarted"):
            connection.submit(task, good(door))
        assert door.gateway.admission.refused == refused
    assert door.reasons("refused") == ["this client has not asked for tasks yet"]


def test_bytes_on_the_wire_are_those_of_the_whole_run(door):
    with client(door) as connection:
        connection.submit(asked(door, connection), good(door))
        before = door.gateway.count_wire_bytes()
        door.roster.count(*before)
        port = door.gateway.port
        door.gateway.close(None)
        door.roster = Roster(door.folder / "roster.json", 3)
        door.gateway = door.open(port)
        assert door.gateway.count_wire_bytes() == before
        assert min(before) > 0


def test_a_large_report_has_the_time_that_a_slow_line_takes(door):
    given = []
    with door.link("edge-1").open() as connection:
        connection._stub = SimpleNamespace(Submit=lambda *_, timeout, metadata: given.append(timeout) or v2.Receipt())
        for payload in (b"", bytes(20_000_000)):
            connection.submit("task", Report(0, 1, payload))
    assert given[0] <= 600
    assert given[1] >= 2000


def test_a_task_waits_for_a_client_that_reconnects(door):
    with client(door) as connection:
        task = asked(door, connection)
    door.until(lambda: not door.gateway.list_sessions()[0].connected)
    with client(door) as connection:
        assert connection.first()[0] == task
        assert connection.submit(task, good(door)) == "taken"


def test_time_with_a_connection_and_without_a_task_is_no_time_without_a_connection(door):
    link, ended = door.link("edge-1"), []
    edge = SimpleNamespace(create_registration=door.registration, instruction_limit=LIMIT, protection=None)
    observer = SilentObserver()
    patience = Patience(1.0, observer)
    patience.wait_for_retry(link, LostError("cut"))

    def take():
        with contextlib.suppress(RunError):
            take_part(edge, link, None, patience, observer)
        ended.append(time.monotonic())

    thread = threading.Thread(target=take, daemon=True)
    thread.start()
    door.until(lambda: any(s.connected for s in door.gateway.list_sessions()))
    time.sleep(1.1)
    gone = time.monotonic()
    door.gateway.close(None)
    thread.join(20)
    assert ended[0] - gone > 1.0


def test_a_client_that_reaches_the_server_after_all_reports_it_once(door):
    link, said = door.link("edge-1"), []
    patience = Patience(0.0, SimpleNamespace(say=said.append), iter([0.0]))
    patience.note_contact()
    patience.wait_for_retry(link, LostError("cut"))
    patience.note_contact()
    patience.reset()
    assert said[1:] == [f"connected to {link.address}"]


def test_a_taken_port_is_explained_by_the_system(door):
    with refuses("FP5074", f"127.0.0.1:{door.gateway.port}", "Address already in use", "--listen"):
        door.open(door.gateway.port)


def test_a_full_disk_of_the_client_is_not_told_as_a_lost_connection(door):
    link, said = door.link("edge-1"), []
    patience = Patience(1e-9, SimpleNamespace(say=said.append))
    for _ in range(2):
        patience.wait_for_retry(link, UnkeptError("transcript.jsonl can't be written: No space left on device"))
    assert all(line.startswith("transcript.jsonl can't be written: No space left on device; again in") for line in said)
    with refuses("FP5155", "cut", "--server"):
        patience.wait_for_retry(link, LostError("cut"))
    patience.give_up = 0.0
    patience.wait_for_retry(link, LostError("cut"))
    assert said[2].startswith(f"no connection to {link.address} (cut); again in")


def test_why_there_is_no_connection_is_no_matter_of_a_full_disk(door, monkeypatch):
    monkeypatch.setattr("tempfile.NamedTemporaryFile", no_room)
    door.link("edge-1").diagnose()


def test_a_bucket_refills():
    bucket = TokenBucket(rate=1e6, burst=2)
    assert bucket.take()
    bucket.rate, bucket.level = 0.0, 1.0
    assert [bucket.take(), bucket.take()] == [True, False]


def test_received_needs_the_limit():
    with refuses("FP6093", 3, 2):
        IncomingParcel(Report, 2, next(split_into_parts("t", Report(1, 1, b"abc"))).header)

"""The server's side of the wire under attack: every case is a real connection over loopback with mutual TLS."""

from __future__ import annotations

import contextlib
import random
import threading
import time
from dataclasses import replace
from datetime import timedelta

import grpc
import pytest
from cryptography import x509
from cryptography.x509.oid import ExtendedKeyUsageOID

from fedpeft import __version__
from fedpeft.communication.flower_grid import node_of
from fedpeft.communication.messages import Instruction, Report, report_of, to_record
from fedpeft.communication.release import Release, common_digest
from fedpeft.deployment.admission import MESSAGE_LIMIT, Admission
from fedpeft.deployment.announcements import Announcements
from fedpeft.deployment.authentication import Bucket, Doorkeeper
from fedpeft.deployment.certificates import Authority, Credentials, Revoked
from fedpeft.deployment.channel import CHUNK
from fedpeft.deployment.connection import Link, LostError
from fedpeft.deployment.event_log import Events
from fedpeft.deployment.gateway import REPEATS, Gateway
from fedpeft.deployment.grid import GrpcGrid, StoppedError
from fedpeft.deployment.members import Roster
from fedpeft.deployment.options import ServeOptions
from fedpeft.deployment.signing import Signer, Verifier
from fedpeft.deployment.transcript import Transcript
from fedpeft.deployment.wire import v1_pb2 as v1
from fedpeft.deployment.wire.parcel import parts, received, wire_size
from fedpeft.errors import RunError
from fedpeft.join import main as join
from fedpeft.serve import main as serve
from tests.fleet import Wire

LIMIT = 4 * CHUNK
REGISTRATION = v1.Registration(run="", rows=10)


class Door:
    """A gateway at a port of this machine, its certificates, and what it has logged."""

    def __init__(self, folder, places=3):
        self.folder = folder
        self.authority = Authority(folder / "certs", 30)
        self.authority.ensure()
        self.authority.server(["localhost", "127.0.0.1"])
        self.entries: list[tuple[str, dict]] = []
        self.events = Events(folder / "serve.jsonl", lambda event, fields: self.entries.append((event, fields)))
        self.roster = Roster(folder / "roster.json", places)
        self.gateway = self.open()

    def open(self, port=0):
        own = Credentials.of_server(self.folder / "certs")
        return self.open_with(grpc.ssl_server_credentials([(own.key, own.certificate)], own.authority, True), port)

    def open_with(self, credentials, port=0):
        authority = (self.folder / "certs" / "ca.pem").read_bytes()
        keeper = Doorkeeper(Revoked(self.folder / "certs" / "revoked.pem", authority))
        told = v1.Description(run=self.roster.run, software=__version__)
        gateway = Gateway(told, self.roster, keeper, LIMIT, lambda registration: None, self.events)
        gateway.start(f"127.0.0.1:{port}", credentials)
        return gateway

    def link(self, name, host="127.0.0.1", called=None):
        folder = self.folder / "certs" / "clients" / name
        if not folder.exists():
            self.authority.client(name)
        return Link(f"{host}:{self.gateway.port}", called or name, Credentials.of_client(folder))

    def registration(self, **more):
        return v1.Registration(run=self.roster.run, rows=10, **more)

    def reasons(self, event):
        return [fields["reason"] for found, fields in self.entries if found == event]

    def until(self, condition, seconds=20):
        deadline = time.monotonic() + seconds
        while not condition():
            assert time.monotonic() < deadline, self.entries
            time.sleep(0.01)


@pytest.fixture
def door(tmp_path):
    made = Door(tmp_path)
    yield made
    made.gateway.close(None)


@contextlib.contextmanager
def client(door, name="edge-1", **more):
    """A connection with its stream of tasks open, once the server knows of it."""
    with door.link(name, **more).open() as connection:
        tasks = connection.tasks(door.registration())
        got: list = []

        def read():
            with contextlib.suppress(LostError, RunError):
                got.append(next(tasks))

        reader = threading.Thread(target=read, daemon=True)
        reader.start()
        door.until(lambda: any(s.member.name == name and s.connected for s in door.gateway.sessions()))
        connection.first = lambda: (reader.join(20), got[0])[1]
        yield connection


def asked(door, connection, name="edge-1", round=1):
    """The client has a task; returns its name."""
    door.roster.start()
    id = door.roster.find(name).id
    task = door.gateway.submit(name, Instruction("train", round, id, b"state"))
    assert connection.first()[0] == task
    return task


def good(door, name="edge-1", round=1, payload=b"update"):
    return Report(door.roster.find(name).id, round, payload, rows=10, loss=1.0)


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
        assert next(connection.tasks(door.registration())) == (task, Instruction("train", 1, 0, state))
        assert connection.submit(task, good(door, payload=state)) == "taken"
    assert door.gateway.answers.get(timeout=5).report.payload == state
    [session] = door.gateway.sessions()
    assert session.received_bytes == sum(wire_size(p) for p in parts(task, good(door, payload=state)))


HANDSHAKE, CALL, TASK, SHARE = 4000, 400, 400, 0.0025
"""What is on the wire beside what is reported, at most, as docs/deploy.md states it: bytes of a connection (mutual
TLS), of a call's headers, of a task's flow control, and a share of the payloads (HTTP/2 frames and TLS records)."""


def test_the_bytes_reported_are_those_on_the_socket(door):
    """A wire between client and server counts every byte, TLS and all."""
    wire = Wire(door.gateway.port)
    payload = random.Random(0).randbytes(3 * CHUNK + 7)
    door.roster.enter("edge-1", 0)
    door.roster.start()
    with replace(door.link("edge-1"), address=f"127.0.0.1:{wire.port}").open() as connection:
        tasks = connection.tasks(door.registration())
        for round in range(1, 5):
            task = door.gateway.submit("edge-1", Instruction("train", round, 0, payload))
            assert next(tasks)[0] == task
            connection.submit(task, good(door, round=round, payload=payload))
    [session] = door.gateway.sessions()
    for reported, carried in ((session.received_bytes, wire.up), (session.sent_bytes, wire.down)):
        assert reported > 4 * len(payload)
        beside = HANDSHAKE + 5 * CALL + 4 * TASK + SHARE * reported
        print(f"reported {reported}, carried {carried}, beside {carried - reported}")
        assert reported < carried < reported + beside


# ------------------------------------------------------------------------------------------------------- certificates


def link_to(door, link):
    """The link, to the port at which the server listens now."""
    return replace(link, address=f"127.0.0.1:{door.gateway.port}")


def refused_by_tls(link):
    with link.open() as connection, pytest.raises(LostError):
        connection.describe()
    with pytest.raises(RunError) as refusal:
        link.diagnose()
    return str(refusal.value)


def test_a_certificate_of_another_authority_is_refused(door, tmp_path):
    other = Authority(tmp_path / "other", 30)
    other.ensure()
    own = Credentials.of_client(other.client("edge-1"))
    stranger = Credentials((door.folder / "certs" / "ca.pem").read_bytes(), own.certificate, own.key)
    link = replace(door.link("edge-1"), credentials=stranger)
    assert "refuses this client's certificate" in refused_by_tls(link)


def test_an_expired_certificate_is_refused(door):
    folder = Authority(door.folder / "certs", -0.5).client("old")
    own = Credentials(*((folder / n).read_bytes() for n in ("ca.pem", "client.pem", "client.key")))
    assert "has expired" in refused_by_tls(replace(door.link("edge-1"), name="old", credentials=own))


def test_no_certificate_no_service(door):
    authority = (door.folder / "certs" / "ca.pem").read_bytes()
    channel = grpc.secure_channel(f"127.0.0.1:{door.gateway.port}", grpc.ssl_channel_credentials(authority))
    with channel, pytest.raises(grpc.RpcError) as refusal:
        channel.unary_unary("/fedpeft.v1.Federation/Describe")(b"", timeout=10)
    assert refusal.value.code() == grpc.StatusCode.UNAVAILABLE


def test_a_server_of_another_authority_or_name_is_refused_by_the_client(door, tmp_path):
    other = Authority(tmp_path / "other", 30)
    other.ensure()
    elsewhere = replace(door.link("edge-1"), credentials=Credentials.of_client(other.client("edge-1")))
    assert "the certificate of" in refused_by_tls(elsewhere)
    door.authority.server(["fl.example.org"])
    door.gateway.close(None)
    door.gateway = door.open()
    assert "for the name that --server gives" in refused_by_tls(door.link("edge-1"))


def test_a_client_whose_clock_is_behind_is_told(door, monkeypatch):
    """It holds the server's certificate, made a moment ago, for one of the future."""
    link = door.link("edge-1")
    with monkeypatch.context() as patch:
        patch.setattr("fedpeft.deployment.certificates.CLOCK_SKEW", timedelta(days=-1))
        door.authority.server(["127.0.0.1"])
    own = door.folder / "certs"
    pair = [((own / "server.key").read_bytes(), (own / "server.pem").read_bytes())]
    door.gateway.close(None)
    door.gateway = door.open_with(grpc.ssl_server_credentials(pair, (own / "ca.pem").read_bytes(), True))
    assert "not yet valid, by this machine's clock" in refused_by_tls(link_to(door, link))


def test_a_server_whose_clock_is_behind_refuses_and_the_client_hears_of_clocks(door, monkeypatch):
    link = door.link("edge-1")
    monkeypatch.setattr("fedpeft.deployment.certificates.CLOCK_SKEW", timedelta(days=-1))
    folder = door.authority.client("edge-2")
    own = Credentials(*((folder / n).read_bytes() for n in ("ca.pem", "client.pem", "client.key")))
    assert "unless the server's clock is wrong" in refused_by_tls(replace(link, credentials=own))


def test_a_revoked_certificate_is_refused_and_its_open_stream_ends(door, monkeypatch):
    monkeypatch.setattr("fedpeft.deployment.gateway.CHECK_SECONDS", 0.05)
    link = door.link("edge-1")
    with link.open() as connection:
        tasks = connection.tasks(door.registration())
        threading.Timer(0.5, door.authority.revoke, ["edge-1"]).start()
        with pytest.raises(RunError, match="has been revoked"):
            next(tasks)
        with pytest.raises(RunError, match="has been revoked"):
            connection.describe()
    assert "the certificate of edge-1 has been revoked" in door.reasons("refused")


@pytest.mark.parametrize("connected", [True, False])
def test_nobody_waits_for_a_client_whose_certificate_has_been_revoked(door, monkeypatch, connected):
    monkeypatch.setattr("fedpeft.deployment.gateway.CHECK_SECONDS", 0.05)
    door.gateway.close(None)
    door.gateway = door.open()
    with contextlib.ExitStack() as stack:
        connection = stack.enter_context(client(door))
        asked(door, connection)
        if not connected:
            stack.close()
            door.until(lambda: not door.gateway.sessions()[0].connected)
        door.authority.revoke("edge-1")
        assert "has been revoked" in door.gateway.answers.get(timeout=5).report.error
        door.gateway.submit("edge-1", Instruction("train", 2, 0, b"state"))
        assert "has been revoked" in door.gateway.answers.get(timeout=5).report.error
    assert not door.roster.find("edge-1").dropped, "with a new certificate it may come back"


def test_a_list_that_can_not_be_read_for_a_moment_ends_no_task(door, monkeypatch):
    monkeypatch.setattr("fedpeft.deployment.gateway.CHECK_SECONDS", 0.05)
    door.gateway.close(None)
    door.gateway = door.open()
    with client(door) as connection:
        task = asked(door, connection)
    stored = (door.folder / "certs" / "revoked.pem").read_bytes()
    (door.folder / "certs" / "revoked.pem").write_bytes(b"half")
    time.sleep(0.3)
    (door.folder / "certs" / "revoked.pem").write_bytes(stored)
    with client(door) as connection:
        assert connection.first()[0] == task
        assert connection.submit(task, good(door)) == "taken"


def test_a_silent_client_holds_a_round_up_for_a_time_only():
    assert 0 < ServeOptions().deadline <= 3600


def test_a_servers_certificate_is_no_clients(door):
    own = Credentials.of_server(door.folder / "certs")
    assert "refuses this client's certificate" in refused_by_tls(replace(door.link("edge-1"), credentials=own))


def test_a_certificate_that_names_no_client_is_refused(door):
    folder = door.folder / "certs" / "clients" / "edge-1"
    link = door.link("edge-1")
    door.authority._sign(folder, "client", "edge-1", [x509.DNSName("edge-1")], ExtendedKeyUsageOID.CLIENT_AUTH)
    own = Credentials(*((folder / n).read_bytes() for n in ("ca.pem", "client.pem", "client.key")))
    with replace(link, credentials=own).open() as connection, pytest.raises(RunError, match="no client's certificate"):
        connection.describe()
    assert "no client's certificate" in door.reasons("refused")[0]


def test_another_name_than_the_certificates_is_refused(door):
    impostor = door.link("edge-1", called="edge-2")
    with impostor.open() as connection, pytest.raises(RunError, match="the certificate is that of edge-1"):
        connection.describe()
    assert "calls itself 'edge-2'" in door.reasons("refused")[0]


def test_more_clients_than_places_are_refused(door):
    for i in range(3):
        door.roster.enter(f"other-{i}", 0)
    with door.link("edge-1").open() as connection:
        with pytest.raises(RunError, match="all 3 places"):
            connection.describe()
        with pytest.raises(RunError, match="all 3 places"):
            next(connection.tasks(door.registration()))


def test_another_version_and_another_federation_are_refused(door):
    with door.link("edge-1").open() as connection:
        with pytest.raises(grpc.RpcError, match="install the same version"):
            connection._stub.Describe(v1.Introduction(software="0.0"), metadata=connection._metadata, timeout=10)
        with pytest.raises(RunError, match="another federation"):
            next(connection.tasks(v1.Registration(run="other", rows=1)))


def test_without_tls_a_server_listens_on_this_machine_only(tmp_path, capsys):
    words = ["--dataset", "tiny", "--clients", "1", "--insecure", "--output", str(tmp_path / "run")]
    assert serve([*words, "--listen", "0.0.0.0:0"]) == 2
    assert "--insecure-anywhere" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["--listen", "127.0.0.1:99999"], "not of the form HOST:PORT"),
        (["--listen", "127.0.0.1"], "not of the form HOST:PORT"),
        (["--labels", "a,a"], "at least two classes, each once"),
        (["--labels", "a"], "at least two classes, each once"),
        (["--eval-data", "missing.csv", "--labels", "a,b"], "missing.csv"),
        (["--wait-for", "9"], "is more than the 2 clients"),
        (["--metrics", "nowhere"], "metrics="),
        (["--health", "localhost:99999"], "health="),
        (["--measure", "forgetting(dataset=tiny)"], "belongs to simulations"),
        (["--grid", "ray"], "these are real"),
    ],
)
def test_a_server_that_can_not_begin_leaves_no_folder(flags, words, tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "300")
    given = ["--dataset", "tiny", "--model", "tiny", "--clients", "2", "--insecure", "--listen", "127.0.0.1:0"]
    assert serve([*given, *flags, "--output", str(tmp_path / "run")]) == 2
    assert words in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["--server", "localhost"], "not of the form HOST:PORT"),
        (["--server", "localhost:99999"], "not of the form HOST:PORT"),
        (["--server", "localhost:8470", "--give-up", "-1"], "at least 0 seconds"),
    ],
)
def test_addresses_and_times_that_a_client_can_not_use(flags, words, tmp_path, capsys):
    assert join([*flags, "--data", str(tmp_path / "rows.csv"), "--insecure", "--name", "edge-1"]) == 2
    assert words in capsys.readouterr().err


# ---------------------------------------------------------------------------------------------------- hostile clients


def dropped(door, connection, send, why):
    """`send` is refused with `why`, the round hears of it, and the client may not come back."""
    with pytest.raises((RunError, grpc.RpcError), match=f"dropped.*{why}"):
        send()
    answer = door.gateway.answers.get(timeout=5)
    assert why in answer.report.error
    with pytest.raises(RunError, match="dropped"):
        connection.describe()
    assert why in door.reasons("dropped")[0]
    assert Roster(door.folder / "roster.json", 3).find("edge-1").dropped


def raw(connection, messages):
    return connection._stub.Submit(iter(messages), metadata=connection._metadata, timeout=20)


def test_answering_for_another_client(door):
    door.roster.enter("edge-2", 0)
    with client(door) as connection:
        task = asked(door, connection)
        other = replace(good(door), client=1 - good(door).client)
        dropped(door, connection, lambda: connection.submit(task, other), "answered for another client")


def test_a_dropped_client_is_taken_back_when_its_server_says_so(door):
    with client(door) as connection:
        task = asked(door, connection)
        dropped(door, connection, lambda: connection.submit(task, replace(good(door), client=7)), "another client")
        roster = Roster(door.folder / "roster.json", 3)
        for name in ("edge-2", ""):
            with pytest.raises(RunError, match="dropped: edge-1"):
                roster.readmit(name)
        roster.readmit("edge-1")
        door.gateway.close(None)
        door.roster = Roster(door.folder / "roster.json", 3)
        door.gateway = door.open(door.gateway.port)
        assert connection.describe().run == roster.run
    with pytest.raises(RunError, match="dropped: none"):
        roster.readmit("edge-1")


def test_answering_for_an_old_round(door):
    with client(door) as connection:
        task = asked(door, connection, round=5)
        dropped(door, connection, lambda: connection.submit(task, good(door, round=4)), "task of round 5 for round 4")


def test_more_rows_than_it_has_registered_with(door):
    with client(door) as connection:
        task = asked(door, connection)
        dropped(door, connection, lambda: connection.submit(task, replace(good(door), rows=2**62)), "joined with 10")


def test_an_invented_task(door):
    with client(door) as connection:
        task = asked(door, connection)
        invented = task.split(".")[0] + ".999"
        dropped(door, connection, lambda: connection.submit(invented, good(door)), "never given")


def test_replayed_reports_are_ignored_and_then_end_it(door):
    with client(door) as connection:
        task = asked(door, connection)
        assert connection.submit(task, good(door)) == "taken"
        for _ in range(REPEATS):
            assert connection.submit(task, good(door)) == "known"
        with pytest.raises(RunError, match="nobody waits for"):
            connection.submit(task, good(door))
        assert door.gateway.answers.get(timeout=5).report == good(door)
        assert door.gateway.answers.empty()


def test_an_oversized_report_is_refused_before_it_is_taken(door):
    with client(door) as connection:
        task = asked(door, connection)
        huge = good(door, payload=bytes(LIMIT + 1))
        dropped(door, connection, lambda: connection.submit(task, huge), "at most")
        assert door.gateway.sessions()[0].received_bytes < CHUNK


def test_more_bytes_than_announced(door):
    with client(door) as connection:
        task = asked(door, connection)
        messages = [*parts(task, good(door)), v1.Part(chunk=b"more")]
        dropped(door, connection, lambda: raw(connection, messages), "more arrived")


def test_a_report_without_a_header(door):
    with client(door) as connection:
        asked(door, connection)
        dropped(door, connection, lambda: raw(connection, [v1.Part(chunk=b"x" * 100)]), "begins with its header")


def test_bytes_that_are_no_message(door):
    """gRPC itself refuses them; the client stays, the round is not disturbed, and the server lives on."""
    with client(door) as connection:
        task = asked(door, connection)
        call = connection._channel.stream_unary("/fedpeft.v1.Federation/Submit")
        with pytest.raises(grpc.RpcError):
            call(iter([b"\xff" * 1000]), metadata=connection._metadata, timeout=20)
        assert connection.submit(task, good(door)) == "taken"


def test_a_field_that_is_not_known(door):
    with client(door) as connection:
        task = asked(door, connection)
        messages = list(parts(task, good(door)))
        messages[0].header.fields["code"].text = "import os"
        dropped(door, connection, lambda: raw(connection, messages), "does not know")


def test_a_flood_of_calls(door, monkeypatch):
    monkeypatch.setattr("fedpeft.deployment.admission.CALLS_AT_ONCE", 5.0)
    with client(door) as connection:
        asked(door, connection)
        with pytest.raises(RunError, match="calls too often"):
            assert not [connection.describe() for _ in range(200)]
    assert door.reasons("dropped") == ["it calls too often"]


def test_answers_are_no_flood_however_fast_the_server_asks(door, monkeypatch):
    """A secure sum takes five of them a round."""
    monkeypatch.setattr("fedpeft.deployment.admission.CALLS_AT_ONCE", 5.0)
    monkeypatch.setattr("fedpeft.deployment.admission.CALLS_PER_SECOND", 0.0)
    with client(door) as connection:
        asked(door, connection)
        [session] = door.gateway.sessions()
        id = door.roster.find("edge-1").id
        for round in range(2, 20):
            task = door.gateway.submit("edge-1", Instruction("train", round, id, b"state"))
            door.until(lambda task=task: session.task == task)
            assert connection.submit(task, good(door, round=round)) == "taken"
        assert not door.reasons("dropped")


def test_a_flood_of_calls_before_it_registers(door, monkeypatch):
    monkeypatch.setattr("fedpeft.deployment.admission.CALLS_AT_ONCE", 5.0)
    with door.link("edge-1").open() as connection, pytest.raises(RunError, match="calls too often"):
        assert not [connection.describe() for _ in range(200)]
    assert door.roster.find("edge-1") is None


def test_refusals_and_what_clients_say_of_themselves_fill_no_disk(door, monkeypatch):
    door.gateway.admission._lines = Bucket(0.0, 3.0)
    with door.link("edge-1").open() as connection:
        for _ in range(9):
            with pytest.raises(RunError, match="another federation"):
                next(connection.tasks(v1.Registration(run="other", rows=1)))
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
                connection._stub.Describe(v1.Introduction(software="x" * size), metadata=connection._metadata)
            assert refusal.value.code() == code
    assert door.roster.find("edge-1") is None


def silent_call(connection, method="Tasks"):
    """A call that says nothing, until its `end` is set."""
    end = threading.Event()

    def nothing():
        end.wait(30)
        return
        yield b""

    call = connection._channel.stream_stream(f"/fedpeft.v1.Federation/{method}")
    return call(nothing(), metadata=connection._metadata), end


@pytest.mark.parametrize("method", ["Describe", "Tasks"])
def test_a_call_that_says_nothing_ends_soon(door, monkeypatch, method):
    monkeypatch.setattr("fedpeft.deployment.admission.MESSAGE_SECONDS", 0.1)
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
        call = connection._channel.unary_unary(f"/fedpeft.v1.Federation/{method}")
        with pytest.raises(grpc.RpcError, match="can't be read"):
            call(b"\xff" * 100, metadata=connection._metadata)
        assert connection.describe().run == door.roster.run
    assert not door.gateway.admission._waiting, "they are counted no longer"


@pytest.mark.parametrize(("limit", "stranger"), [("WAITING_OF_ONE", "edge-1"), ("WAITING", "edge-2")])
def test_calls_that_say_nothing_take_few_places(door, monkeypatch, limit, stranger):
    """One client takes its own places only, all strangers together theirs; members that are connected are served."""
    monkeypatch.setattr(f"fedpeft.deployment.admission.{limit}", 2)
    with client(door, "edge-0") as member, door.link("edge-1").open() as crowd, door.link(stranger).open() as other:
        task = asked(door, member, "edge-0")
        calls = [silent_call(crowd) for _ in range(2)]
        door.until(lambda: door.gateway.admission._waiting.total() == 2)
        with pytest.raises(LostError, match="too many calls have not said what they want"):
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
    assert [admission._counted_as(name) for name in ("edge-1", "made-up-1", "made-up-2")] == ["edge-1", "", ""]


# ------------------------------------------------------------------------------------------------------- signed rounds


def announces(door):
    """The door's server says of its rounds what clients check."""
    signer = Signer(Credentials.of_server(door.folder / "certs"))
    said = Announcements(door.folder / "rounds.jsonl", door.roster.run, "5" * 64, 1, signer)
    door.gateway.announcements = said
    return said


def transcript(door, name="edge-1"):
    authority = (door.folder / "certs" / "ca.pem").read_bytes()
    return Transcript(door.folder / f"{name}.jsonl", door.roster.run, "5" * 64, name, Verifier(authority), 100)


def announced(door, said, round):
    instruction = Instruction("train", round, 0, bytes(CHUNK + 1))
    said.announce(Release("train", round, {"whole": "7" * 64}, common_digest(instruction)))
    return instruction


def test_records_travel_with_tasks_and_those_that_were_missed_with_the_next(door):
    said = announces(door)
    door.roster.enter("edge-1", 0)
    door.roster.start()
    kept = transcript(door)
    with door.link("edge-1").open() as connection:
        tasks = connection.tasks(door.registration(), transcript=kept)
        for round in (1, 2):
            task = door.gateway.submit("edge-1", announced(door, said, round))
            name, instruction = next(tasks)
            assert (name, instruction.round, instruction.released) == (task, round, "7" * 64)
            assert connection.submit(task, good(door, round=round)) == "taken"
    for round in range(3, 9):
        announced(door, said, round)
    door.gateway.submit("edge-1", announced(door, said, 9))
    with door.link("edge-1").open() as connection:
        assert next(connection.tasks(door.registration(), transcript=kept))[1].round == 9
    assert len(kept) == len(transcript(door)) == 9
    said._statements = said._statements[:4]
    with door.link("edge-1").open() as connection, pytest.raises(RunError, match=r"holds 9 records .* the server 4"):
        next(connection.tasks(door.registration(), transcript=kept))


def test_a_server_that_signs_nothing_is_refused(door):
    door.roster.enter("edge-1", 0)
    door.roster.start()
    door.gateway.submit("edge-1", Instruction("train", 1, 0, b"state"))
    with door.link("edge-1").open() as connection, pytest.raises(RunError, match="without a statement about it"):
        next(connection.tasks(door.registration(), transcript=transcript(door)))
    said = announces(door)
    said._signer = None
    door.gateway.submit("edge-1", announced(door, said, 1))
    with door.link("edge-1").open() as connection, pytest.raises(RunError, match="without its signature"):
        next(connection.tasks(door.registration(), transcript=transcript(door)))


def test_a_newer_report_ends_the_older_one(door):
    """A client that was cut off in the middle of a report begins it anew, before the server has missed it."""
    with client(door) as connection:
        task = asked(door, connection)
        release = threading.Event()

        def slowly():
            first, *rest = parts(task, good(door, payload=b"older"))
            yield first
            release.wait(20)
            yield from rest

        upload = connection._stub.Submit.future(slowly(), metadata=connection._metadata, timeout=20)
        door.until(lambda: door.gateway.sessions()[0].upload is not None)
        assert connection.submit(task, good(door)) == "taken"
        with pytest.raises(grpc.RpcError) as ended:
            upload.result()
        release.set()
        assert ended.value.code() == grpc.StatusCode.ABORTED
        assert door.gateway.answers.get(timeout=5).report.payload == b"update"
        assert not door.roster.find("edge-1").dropped
        assert door.gateway.sessions()[0].upload is None


def test_a_second_process_takes_over_and_the_first_is_told(door):
    with client(door), door.link("edge-1").open() as older:
        first = older.tasks(door.registration())
        told: list[str] = []

        def listen():
            try:
                next(first)
            except RunError as error:
                told.append(str(error))

        reader = threading.Thread(target=listen)
        reader.start()
        door.until(lambda: door.gateway.sessions()[0].stream == 2)
        with client(door):
            reader.join(20)
            assert "another process uses this client's name" in told[0]


def test_secrets_are_not_in_the_log(door):
    with client(door) as connection:
        connection.submit(asked(door, connection), good(door))
    log = (door.folder / "serve.jsonl").read_text()
    assert "connected" in log
    for key in (door.folder / "certs").rglob("*.key"):
        assert key.read_text().splitlines()[1] not in log
    assert "BEGIN" not in log


# -------------------------------------------------------------------------------------------------------------- faults


def test_a_restarted_server_takes_no_report_of_the_earlier_one(door):
    with client(door) as connection:
        task = asked(door, connection)
        port = door.gateway.port
        door.gateway.close(None)
    door.roster = Roster(door.folder / "roster.json", 3)
    door.gateway = door.open(port)
    with client(door) as connection:
        assert connection.submit(task, good(door)) == "late"
        again = door.gateway.submit("edge-1", Instruction("train", 1, 0, b"state"))
        assert connection.first()[0] == again != task
        assert connection.submit(again, good(door)) == "taken"


def test_bytes_on_the_wire_are_those_of_the_whole_run(door):
    with client(door) as connection:
        connection.submit(asked(door, connection), good(door))
        before = door.gateway.wire_bytes()
        door.roster.count(*before)
        port = door.gateway.port
        door.gateway.close(None)
        door.roster = Roster(door.folder / "roster.json", 3)
        door.gateway = door.open(port)
        assert door.gateway.wire_bytes() == before
        assert min(before) > 0


def test_a_task_waits_for_a_client_that_reconnects(door):
    with client(door) as connection:
        task = asked(door, connection)
    door.until(lambda: not door.gateway.sessions()[0].connected)
    with client(door) as connection:
        assert connection.first()[0] == task
        assert connection.submit(task, good(door)) == "taken"


def push(grid, instructions):
    messages = [grid.create_message(to_record(i), "train", node_of(i.client), str(i.round)) for i in instructions]
    return grid.push_messages(messages)


def pulled(grid, count):
    replies = []
    deadline = time.monotonic() + 20
    while len(replies) < count:
        assert time.monotonic() < deadline
        replies += [report_of(m) for m in grid.pull_messages([])]
    return {r.client: r for r in replies}


def test_a_straggler_is_left_out_after_the_deadline_and_its_late_report_harms_nobody(door):
    door.roster.enter("edge-2", 0)
    grid = GrpcGrid(door.gateway, quorum=0.3, deadline=0.5, stopping=threading.Event())
    with client(door) as fast, client(door, "edge-2") as slow:
        door.roster.start()
        push(grid, [Instruction("train", 1, 0, b""), Instruction("train", 1, 1, b""), Instruction("train", 1, 2, b"")])
        late = slow.first()[0]
        assert fast.submit(fast.first()[0], good(door)) == "taken"
        replies = pulled(grid, 3)
        assert not replies[0].error
        assert replies[1].error == "no answer within 0.5 s"
        assert replies[2].error == "it has not joined"
        assert slow.submit(late, good(door, "edge-2")) == "late"
        assert door.gateway.answers.empty()


def test_without_a_quorum_the_round_waits_on(door):
    grid = GrpcGrid(door.gateway, quorum=1.0, deadline=0.1, stopping=threading.Event())
    with client(door) as connection:
        door.roster.start()
        push(grid, [Instruction("train", 1, 0, b"")])
        assert grid.pull_messages([]) == []
        assert connection.submit(connection.first()[0], good(door)) == "taken"
        assert not pulled(grid, 1)[0].error


def test_a_server_that_is_asked_to_stop_ends_the_round_or_gives_it_up(door, monkeypatch):
    monkeypatch.setattr("fedpeft.deployment.grid.STOP_SECONDS", 0.2)
    stopping = threading.Event()
    grid = GrpcGrid(door.gateway, quorum=1.0, deadline=0, stopping=stopping)
    with client(door):
        door.roster.start()
        push(grid, [Instruction("train", 1, 0, b"")])
        stopping.set()
        with pytest.raises(StoppedError):
            pulled(grid, 1)


def test_ids_are_those_of_the_sorted_names_and_late_joiners_follow(tmp_path):
    roster = Roster(tmp_path / "roster.json", 4)
    for name in ("c", "a", "b"):
        roster.enter(name, 0)
    roster.start()
    roster.enter("0-late", 0)
    again = Roster(tmp_path / "roster.json", 4)
    assert [(m.name, m.id) for m in again.members] == [("a", 0), ("b", 1), ("c", 2), ("0-late", 3)]
    assert again.enter("fifth", 0) is None
    assert again.run == roster.run


def test_a_bucket_refills():
    bucket = Bucket(rate=1e6, burst=2)
    assert bucket.take()
    bucket.rate, bucket.level = 0.0, 1.0
    assert [bucket.take(), bucket.take()] == [True, False]


def test_received_needs_the_limit():
    with pytest.raises(Exception, match="at most 2"):
        received(Report, 2, parts("t", Report(1, 1, b"abc")))

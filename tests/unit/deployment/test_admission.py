"""Who is let in: certificates, clocks, revocations, names, places, versions and addresses, over real connections."""

from __future__ import annotations

import contextlib
import socket
import threading
import time
from dataclasses import replace
from datetime import timedelta

import grpc
import pytest
from cryptography import x509
from cryptography.x509.oid import ExtendedKeyUsageOID

from fedpeft.communication.messages import Instruction
from fedpeft.deployment.client.joining import Patience
from fedpeft.deployment.identity.certificates import Authority
from fedpeft.deployment.identity.credentials import Credentials
from fedpeft.deployment.options import ServeOptions
from fedpeft.deployment.wire import v2_pb2 as v2
from fedpeft.deployment.wire.channel import WIRE
from fedpeft.deployment.wire.connection import LostError
from fedpeft.errors import RunError
from fedpeft.join import main as join
from fedpeft.serve import main as serve
from tests.conftest import SilentObserver
from tests.deployment.door import asked, client, good
from tests.refusals import has_error, refuses


def link_to(door, link):
    """Return the link with the port on which the server listens now."""
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
    own = Credentials.load_client(other.client("edge-1"))
    stranger = Credentials((door.folder / "certs" / "ca.pem").read_bytes(), own.certificate, own.key)
    link = replace(door.link("edge-1"), credentials=stranger)
    assert "refuses this client's certificate" in refused_by_tls(link)


def test_a_name_that_the_servers_certificate_lacks_is_refused_with_those_that_it_has(door, monkeypatch):
    connect = socket.create_connection
    monkeypatch.setattr("socket.create_connection", lambda address, **more: connect(("127.0.0.1", address[1]), **more))
    with refuses("FP5047", "localhost, 127.0.0.1", "fedpeft certs --server NAMES --renew"):
        door.link("edge-1", host="fl.example.org").diagnose()


def test_an_expired_certificate_is_refused(door):
    folder = Authority(door.folder / "certs", -0.5).client("old")
    own = Credentials(*((folder / n).read_bytes() for n in ("ca.pem", "client.pem", "client.key")))
    link = replace(door.link("edge-1"), name="old", credentials=own)
    assert "the client's certificate expired on" in refused_by_tls(link)
    patience = Patience(0.0, SilentObserver())  # it was waiting for a server that was not there yet
    with replace(door.link("edge-1"), address="127.0.0.1:1").open() as nowhere, pytest.raises(LostError) as lost:
        nowhere.describe()
    patience.wait_for_retry(replace(link, address="127.0.0.1:1"), lost.value)
    with refuses("FP5056", "client"):
        patience.wait_for_retry(link, LostError("socket closed"))


def test_no_certificate_no_service(door):
    authority = (door.folder / "certs" / "ca.pem").read_bytes()
    channel = grpc.secure_channel(f"127.0.0.1:{door.gateway.port}", grpc.ssl_channel_credentials(authority))
    with channel, pytest.raises(grpc.RpcError) as refusal:
        channel.unary_unary("/fedpeft.v2.Federation/Describe")(b"", timeout=10)
    assert refusal.value.code() == grpc.StatusCode.UNAVAILABLE


def test_a_server_of_another_authority_or_name_is_refused_by_the_client(door, tmp_path):
    other = Authority(tmp_path / "other", 30)
    other.ensure()
    elsewhere = replace(door.link("edge-1"), credentials=Credentials.load_client(other.client("edge-1")))
    assert "the certificate of" in refused_by_tls(elsewhere)
    door.authority.server(["fl.example.org"])
    door.gateway.close(None)
    door.gateway = door.open()
    assert "for the name that --server gives" in refused_by_tls(door.link("edge-1"))


def test_a_client_without_tls_is_told_of_a_server_with_it_and_the_other_way_round(door):
    """It tried for ever, at what it took for a server that is away."""
    link = door.link("edge-1")
    assert "speaks TLS: leave --insecure out" in refused_by_tls(replace(link, credentials=None))
    door.gateway.close(None)
    door.gateway = door.open_with(None)
    assert "does not speak TLS: the server runs with --insecure" in refused_by_tls(link_to(door, link))
    assert link_to(door, replace(link, credentials=None)).diagnose(), "both without it"
    door.gateway.close(None)
    assert not link_to(door, replace(link, credentials=None)).diagnose(), "nobody answers"
    door.gateway = door.open()


def test_another_name_than_the_certificate_s_is_refused_before_a_connection(door, tmp_path, capsys):
    door.authority.client("edge-1")
    folder = door.folder / "certs" / "clients" / "edge-1"
    words = ["--server", "127.0.0.1:1", "--data", str(tmp_path / "rows.csv"), "--certs", str(folder)]
    assert join([*words, "--name", "edge-7"]) == 2
    said = capsys.readouterr().err.replace("\n", " ")
    assert has_error(said, "FP1202", "--name edge-7")
    assert join([*words, "--name", "edge-1"]) == 2
    assert has_error(capsys.readouterr().err, "FP3027")


@pytest.mark.parametrize("address", ["https://fl.example.org:8470", "fl.example.org", "me@host:1", "host:65536", ":1"])
def test_what_is_no_address_is_not_tried_for_ever(address, tmp_path, capsys):
    words = ["--data", str(tmp_path / "rows.csv"), "--insecure", "--name", "edge-1", "--give-up", "0.1"]
    assert join(["--server", address, *words]) == 2
    assert has_error(capsys.readouterr().err, "FP1122", f"server={address!r}", "HOST:PORT")


def test_a_client_whose_clock_is_behind_is_told(door, monkeypatch):
    """It holds the server's certificate, made a moment ago, for one of the future."""
    link = door.link("edge-1")
    with monkeypatch.context() as patch:
        patch.setattr("fedpeft.deployment.identity.certificates.CLOCK_SKEW", timedelta(days=-1))
        door.authority.server(["127.0.0.1"])
    own = door.folder / "certs"
    pair = [((own / "server.key").read_bytes(), (own / "server.pem").read_bytes())]
    door.gateway.close(None)
    door.gateway = door.open_with(grpc.ssl_server_credentials(pair, (own / "ca.pem").read_bytes(), True))
    assert "not yet valid, by this machine's clock" in refused_by_tls(link_to(door, link))


def test_a_server_whose_clock_is_behind_refuses_and_the_client_hears_of_clocks(door, monkeypatch):
    link = door.link("edge-1")
    monkeypatch.setattr("fedpeft.deployment.identity.certificates.CLOCK_SKEW", timedelta(days=-1))
    monkeypatch.setattr(
        "fedpeft.deployment.wire.connection.check_time", lambda *_: None
    )  # by the client's clock it is valid
    folder = door.authority.client("edge-2")
    own = Credentials(*((folder / n).read_bytes() for n in ("ca.pem", "client.pem", "client.key")))
    assert "unless the server's clock is wrong" in refused_by_tls(replace(link, credentials=own))


def test_a_revoked_certificate_is_refused_and_its_open_stream_ends(door, monkeypatch):
    monkeypatch.setattr("fedpeft.deployment.wire.gateway.CHECK_SECONDS", 0.05)
    link = door.link("edge-1")
    with link.open() as connection:
        tasks = connection.iterate_tasks(door.registration())
        threading.Timer(0.5, door.authority.revoke, ["edge-1"]).start()
        with refuses("FP5044", "has been revoked", "ask whoever runs the server"):
            next(tasks)
        with refuses("FP5044", "has been revoked", "ask whoever runs the server"):
            connection.describe()
    assert "the certificate of edge-1 has been revoked; ask whoever runs the server for a new one" in door.reasons(
        "refused"
    )


@pytest.mark.parametrize("connected", [True, False])
def test_nobody_waits_for_a_client_whose_certificate_has_been_revoked(door, monkeypatch, connected):
    monkeypatch.setattr("fedpeft.deployment.wire.gateway.CHECK_SECONDS", 0.05)
    door.gateway.close(None)
    door.gateway = door.open()
    with contextlib.ExitStack() as stack:
        connection = stack.enter_context(client(door))
        asked(door, connection)
        if not connected:
            stack.close()
            door.until(lambda: not door.gateway.list_sessions()[0].connected)
        door.authority.revoke("edge-1")
        assert "has been revoked" in door.gateway.answers.get(timeout=5).report.error
        door.gateway.submit("edge-1", Instruction("train", 2, 0, b"state"))
        assert "has been revoked" in door.gateway.answers.get(timeout=5).report.error
    assert not door.roster.find("edge-1").dropped, "with a new certificate it may come back"


def test_a_list_that_can_not_be_read_for_a_moment_ends_no_task(door, monkeypatch):
    monkeypatch.setattr("fedpeft.deployment.wire.gateway.CHECK_SECONDS", 0.05)
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


@pytest.mark.parametrize("error", [PermissionError, OSError])
def test_a_list_that_can_not_be_looked_at_for_a_moment_ends_no_server(door, monkeypatch, error):
    monkeypatch.setattr("fedpeft.deployment.wire.gateway.CHECK_SECONDS", 0.05)
    door.gateway.close(None)
    door.gateway = door.open()
    with client(door) as connection, monkeypatch.context() as patched:
        door.roster.start()

        def stat(*_, **__):
            raise error("no access")

        patched.setattr("fedpeft.deployment.identity.certificates.os.stat", stat)
        task = door.gateway.submit("edge-1", Instruction("train", 1, 0, b"state"))
        time.sleep(0.3)
        patched.undo()
        assert not door.gateway._watching.done()
    with client(door) as connection:
        assert connection.first()[0] == task


def test_a_silent_client_holds_a_round_up_for_a_time_only():
    assert 0 < ServeOptions().deadline <= 3600


def test_a_servers_certificate_is_no_clients(door):
    own = Credentials.load_server(door.folder / "certs")
    assert "refuses this client's certificate" in refused_by_tls(replace(door.link("edge-1"), credentials=own))


def test_a_certificate_that_names_no_client_is_refused(door):
    folder = door.folder / "certs" / "clients" / "edge-1"
    link = door.link("edge-1")
    door.authority._sign(folder, "client", "edge-1", [x509.DNSName("edge-1")], ExtendedKeyUsageOID.CLIENT_AUTH)
    own = Credentials(*((folder / n).read_bytes() for n in ("ca.pem", "client.pem", "client.key")))
    with replace(link, credentials=own).open() as connection, refuses("FP5044", "FP5022"):
        connection.describe()
    assert has_error(door.reasons("refused")[0], "FP5022")


def test_another_name_than_the_certificates_is_refused(door):
    impostor = door.link("edge-1", called="edge-2")
    with impostor.open() as connection, refuses("FP5044", "the certificate is that of edge-1"):
        connection.describe()
    assert "calls itself 'edge-2'" in door.reasons("refused")[0]


def test_more_clients_than_places_are_refused(door):
    for i in range(3):
        door.roster.enter(f"other-{i}", 0)
    with door.link("edge-1").open() as connection:
        with refuses("FP5044", "all 3 places"):
            connection.describe()
        with refuses("FP5044", "all 3 places"):
            next(connection.iterate_tasks(door.registration()))


def test_another_wire_and_another_federation_are_refused(door):
    with door.link("edge-1").open() as connection:
        for wire in (0, WIRE + 1):
            with pytest.raises(grpc.RpcError, match=f"with version {wire}; install the server's version"):
                _introduce(connection, v2.Introduction(software="0.0", wire=wire))
        with refuses("FP5044", "another federation"):
            next(connection.iterate_tasks(v2.Registration(run="other", rows=1)))


def test_another_version_with_the_same_wire_is_welcome(door):
    with door.link("edge-1").open() as connection:
        assert _introduce(connection, v2.Introduction(software="0.99.0", wire=WIRE)).run == door.roster.run


def _introduce(connection, introduction):
    return connection._stub.Describe(introduction, metadata=connection._metadata, timeout=10)


def test_without_tls_a_server_listens_on_this_machine_only(tmp_path, capsys):
    words = ["--dataset", "tiny", "--clients", "1", "--insecure", "--output", str(tmp_path / "run")]
    assert serve([*words, "--listen", "0.0.0.0:0"]) == 2
    assert has_error(capsys.readouterr().err, "FP1403", "--insecure-anywhere")


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["--listen", "127.0.0.1:99999"], ("FP1122",)),
        (["--listen", "127.0.0.1"], ("FP1122",)),
        (["--labels", "a,a"], ("FP1106", "at least two classes, each once")),
        (["--labels", "a"], ("FP1106", "at least two classes, each once")),
        (["--labels", " , "], ("FP1106", "at least two classes, each once")),
        (["--eval-data", "missing.csv", "--labels", "a,b"], ("FP3027", "missing.csv")),
        (["--wait-for", "9"], ("FP1121", "2")),
        (["--metrics", "nowhere"], ("FP1122", "metrics")),
        (["--health", "localhost:99999"], ("FP1122", "health")),
        (["--measure", "forgetting(dataset=tiny)"], ("FP1129",)),
        (["--measure", "validation(score_last=True)"], ("FP1529",)),
        (["--grid", "ray"], ("FP1132",)),
    ],
)
def test_a_server_that_can_not_begin_leaves_no_folder(flags, words, tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "300")
    given = ["--dataset", "tiny", "--model", "tiny", "--clients", "2", "--insecure", "--listen", "127.0.0.1:0"]
    assert serve([*given, *flags, "--output", str(tmp_path / "run")]) == 2
    assert has_error(capsys.readouterr().err, *words)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["--server", "localhost"], ("FP1122",)),
        (["--server", "localhost:99999"], ("FP1122",)),
        (["--server", "localhost:8470", "--give-up", "-1"], ("FP1227", "give_up")),
        (["--server", "localhost:8470", "--give-up", "nan"], ("FP1519", "give_up")),
    ],
)
def test_addresses_and_times_that_a_client_can_not_use(flags, words, tmp_path, capsys):
    assert join([*flags, "--data", str(tmp_path / "rows.csv"), "--insecure", "--name", "edge-1"]) == 2
    assert has_error(capsys.readouterr().err, *words)

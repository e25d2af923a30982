"""Certificates: what is made, what is refused, what is revoked."""

from __future__ import annotations

import os
import shutil
import ssl
import stat
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from datetime import datetime, timedelta

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import serialization

from fedpeft.commands.certs import main
from fedpeft.deployment.identity.certificates import Authority, RevocationList, name_of
from fedpeft.deployment.identity.credentials import Credentials, describe_exposure
from fedpeft.deployment.identity.signing import Signer
from fedpeft.serve import main as serve
from tests.refusals import has_error, refuses


@pytest.fixture
def made(tmp_path):
    folder = tmp_path / "certs"
    assert main(["--folder", str(folder), "--server", "localhost,127.0.0.1", "--clients", "edge-1,edge-2"]) == 0
    return folder


def test_a_client_is_handed_what_it_needs_and_no_more(made):
    folder = made / "clients" / "edge-1"
    assert sorted(p.name for p in folder.iterdir()) == ["ca.pem", "client.key", "client.pem"]
    assert name_of(Credentials.load_client(folder).certificate) == "edge-1"
    for key in made.rglob("*.key"):
        assert stat.S_IMODE(key.stat().st_mode) == 0o600
    assert stat.S_IMODE(made.stat().st_mode) == 0o700


def test_what_exists_is_kept_until_it_is_renewed(made):
    before = {p: p.read_bytes() for p in made.rglob("*") if p.is_file()}
    assert main(["--folder", str(made), "--clients", "edge-1,edge-3"]) == 0
    assert all(p.read_bytes() == content for p, content in before.items())
    assert (made / "clients" / "edge-3" / "client.pem").exists()
    assert main(["--folder", str(made), "--clients", "edge-1", "--renew"]) == 0
    assert (made / "clients" / "edge-1" / "client.pem").read_bytes() != before[made / "clients/edge-1/client.pem"]
    assert (made / "ca.pem").read_bytes() == before[made / "ca.pem"]


def test_a_revoked_certificate_is_known_as_such_at_once(made):
    revoked = RevocationList(made / "revoked.pem", (made / "ca.pem").read_bytes())
    serials = {
        name: x509.load_pem_x509_certificate((made / "clients" / name / "client.pem").read_bytes()).serial_number
        for name in ("edge-1", "edge-2")
    }
    assert serials["edge-1"] not in revoked
    assert main(["--folder", str(made), "--revoke", "edge-1"]) == 0
    assert serials["edge-1"] in revoked
    assert serials["edge-2"] not in revoked
    assert main(["--folder", str(made), "--revoke", "edge-2"]) == 0
    assert {*serials.values()} == {s for s in serials.values() if s in revoked}


def test_a_forged_list_admits_nobody(made, tmp_path):
    other = tmp_path / "other"
    assert main(["--folder", str(other)]) == 0
    with refuses("FP5026"):
        RevocationList(other / "revoked.pem", (made / "ca.pem").read_bytes())
    revoked = RevocationList(made / "revoked.pem", (made / "ca.pem").read_bytes())
    (made / "revoked.pem").write_bytes((other / "revoked.pem").read_bytes())
    with refuses("FP5026"):
        assert 1 in revoked


def test_a_renewed_certificate_replaces_the_old_one(made):
    def serial():
        file = made / "clients" / "edge-1" / "client.pem"
        return x509.load_pem_x509_certificate(file.read_bytes()).serial_number

    revoked, old = RevocationList(made / "revoked.pem", (made / "ca.pem").read_bytes()), serial()
    assert main(["--folder", str(made), "--clients", "edge-1", "--renew"]) == 0
    assert old in revoked
    assert serial() not in revoked


def test_without_the_list_no_server_starts(made, tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "300")
    (made / "revoked.pem").unlink()
    words = ["--dataset", "tiny", "--model", "tiny", "--clients", "1", "--listen", "127.0.0.1:0"]
    assert serve([*words, "--certs", str(made), "--output", str(tmp_path / "run")]) == 2
    assert has_error(capsys.readouterr().err, "FP5023", "revoked.pem")
    assert not (tmp_path / "run").exists()


def test_unusable_certificates_are_named_before_anything_is_sent(made, tmp_path, capsys):
    client = made / "clients" / "edge-1"
    other = tmp_path / "other"
    assert main(["--folder", str(other), "--clients", "edge-1"]) == 0
    (client / "ca.pem").write_bytes((other / "ca.pem").read_bytes())
    with refuses("FP5053"):
        Credentials.load_client(client)
    with refuses("FP5052", "whoever runs the server makes a client's certificates and hands over"):
        Credentials.load_client(tmp_path / "nowhere")
    with refuses("FP5052", "make certificates with"):
        Credentials.load_server(tmp_path / "nowhere")
    Authority(made, days=-0.5).client("late")
    with refuses("FP5056", "whoever runs the server makes a new one"):
        Credentials.load_client(made / "clients" / "late")
    (client / "ca.pem").write_bytes((made / "ca.pem").read_bytes())
    for name in ("client.pem", "client.key"):
        (client / name).write_bytes((made / name.replace("client", "server")).read_bytes())
    with refuses("FP5022"):
        Credentials.load_client(client)
    assert main(["--folder", str(made), "--clients", "../evil"]) == 2
    assert has_error(capsys.readouterr().err, "FP1113")


def test_an_authority_whose_time_is_over_is_told_where_it_is_met(tmp_path, monkeypatch, capsys):
    folder = tmp_path / "certs"
    words = ["--folder", str(folder), "--server", "localhost", "--clients", "edge-1"]
    monkeypatch.setattr("fedpeft.deployment.identity.certificates.AUTHORITY_DAYS", 1)
    assert main([*words, "--days", "3"]) == 0
    ends = [x509.load_pem_x509_certificate((folder / name).read_bytes()) for name in ("ca.pem", "server.pem")]
    assert ends[0].not_valid_after_utc == ends[1].not_valid_after_utc, "none is valid longer than its authority"
    signer = Signer(Credentials.load_server(folder))
    assert signer.describe_objection() == ""

    class Later(datetime):
        @classmethod
        def now(cls, zone):
            return super().now(zone) + timedelta(days=2)

    monkeypatch.setattr("fedpeft.deployment.identity.certificates.datetime", Later)
    for made in (
        lambda: Credentials.load_server(folder),
        lambda: Credentials.load_client(folder / "clients" / "edge-1"),
    ):
        with refuses("FP5021"):
            made()
    assert has_error(signer.describe_objection(), "FP5021")
    assert main([*words, "--renew"]) == 2
    assert has_error(capsys.readouterr().err, "FP5021")


@pytest.mark.parametrize(
    ("file", "changed", "words"),
    [
        ("client.pem", lambda own, _: b"", ("FP5058", "client.pem")),
        ("client.pem", lambda own, _: own[:200], ("FP5058", "client.pem")),
        ("client.pem", lambda own, _: ssl.PEM_cert_to_DER_cert(own.decode()), ("FP5058", "client.pem")),
        ("client.pem", lambda own, ca: ca + own, ("FP5054", "client")),
        ("ca.pem", lambda own, _: b"", ("FP5058", "ca.pem")),
        ("client.key", lambda own, ca: ca, ("FP5060", "client.key")),
        ("client.key", lambda own, _: locked(own), ("FP5059", "client.key")),
    ],
)
def test_a_file_that_is_something_else_is_named(file, changed, words, made):
    folder = made / "clients" / "edge-1"
    (folder / file).write_bytes(changed((folder / file).read_bytes(), (folder / "ca.pem").read_bytes()))
    with refuses(*words):
        Credentials.load_client(folder)


def test_a_key_that_everybody_may_read_is_said(made, tmp_path, capsys):
    key = made / "server.key"
    assert describe_exposure(key) == ""
    key.chmod(0o644)
    words = ["--dataset", "tiny", "--model", "tiny", "--clients", "3", "--readmit", "edge-1", "--listen", "127.0.0.1:0"]
    assert serve([*words, "--certs", str(made), "--output", str(tmp_path / "run")]) == 2
    said = "".join(capsys.readouterr().out.split())
    assert "server.keycanbereadbyeveryuserofthismachine(mode0644)" in said


def locked(key):
    form, how = serialization.PrivateFormat.PKCS8, serialization.BestAvailableEncryption(b"x")
    return serialization.load_pem_private_key(key, None).private_bytes(serialization.Encoding.PEM, form, how)


def test_a_server_s_names_are_kept_until_others_are_asked_for(made, capsys):
    authority = Authority(made, 30)
    assert main(["--folder", str(made), "--server", "127.0.0.1,localhost"]) == 0
    assert main(["--folder", str(made), "--server", "fl.example.org"]) == 2
    assert has_error(capsys.readouterr().err, "FP1043", "localhost,127.0.0.1", "fl.example.org", "--renew")
    assert main(["--folder", str(made), "--server", "fl.example.org,::1", "--renew"]) == 0
    assert main(["--folder", str(made), "--renew"]) == 0
    assert authority.list_hosts() == ["fl.example.org", "::1"]


def test_a_server_s_name_may_be_as_long_as_names_are(tmp_path):
    host = f"{'load-balancer-of-the-federation.' * 3}example.org"
    assert main(["--folder", str(tmp_path / "certs"), "--server", host]) == 0
    assert Authority(tmp_path / "certs", 30).list_hosts() == [host]
    Credentials.load_server(tmp_path / "certs").check("server")


def test_no_revocation_is_lost_to_another_one_at_the_same_time(made):
    authority, names = Authority(made, 30), [f"other-{k}" for k in range(8)]
    serials = [x509.load_pem_x509_certificate((authority.client(n) / "client.pem").read_bytes()).serial_number
               for n in names]  # fmt: skip
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(authority.revoke, names))
    revoked = RevocationList(made / "revoked.pem", (made / "ca.pem").read_bytes())
    assert all(serial in revoked for serial in serials)


def test_a_revocation_that_was_told_is_on_the_disk(made, monkeypatch):
    synced = []
    monkeypatch.setattr("fedpeft.machine.files.os.fsync", lambda descriptor: synced.append(os.fstat(descriptor).st_ino))
    Authority(made, 30).revoke("edge-1")
    assert {(made / "revoked.pem").stat().st_ino, made.stat().st_ino} <= set(synced)


@pytest.mark.parametrize("what", ["FileLock", "replace"])
@pytest.mark.parametrize("error", [NotImplementedError, PermissionError])
def test_a_list_that_can_not_be_locked_or_written_is_one_sentence(made, monkeypatch, capsys, what, error):
    def refused(*_):
        raise error("not here")

    monkeypatch.setattr(f"fedpeft.deployment.identity.certificates.{what}", refused)
    assert main(["--folder", str(made), "--revoke", "edge-1"]) == 2
    assert has_error(capsys.readouterr().err, "FP5035", "edge-1")


@pytest.mark.parametrize(
    "words", [["--server", "bad host"], ["--clients", "A"], ["--revoke", "edge-1"], ["--server", "a..b"]]
)
def test_a_mistake_makes_no_authority(words, tmp_path):
    assert main(["--folder", str(tmp_path / "certs"), *words]) == 2
    assert not (tmp_path / "certs").exists()


def test_a_clock_that_is_behind_is_named(tmp_path, monkeypatch):
    """A certificate that is valid from tomorrow on is what a client has whose clock is behind."""
    authority = Authority(tmp_path / "certs", 30)
    authority.ensure()
    monkeypatch.setattr("fedpeft.deployment.identity.certificates.CLOCK_SKEW", timedelta(days=-1))
    folder = authority.client("edge-1")
    with refuses("FP5057"):
        Credentials.load_client(folder)


class KilledError(BaseException):
    """The process is gone: nothing is said or cleaned up."""


@pytest.mark.parametrize("more", [[], ["--renew"]], ids=["new", "renewed"])
def test_a_kill_between_any_two_files_is_mended_by_the_next_run(more, tmp_path, monkeypatch):
    """And the authority that others hold certificates of stays the same."""
    words = ["--server", "fl.example.org", "--clients", "edge-1,edge-2"]
    for writes in range(20):
        folder = tmp_path / str(writes)
        if more:
            assert main(["--folder", str(folder), *words]) == 0
        signed = (folder / "ca.pem").read_bytes() if more else None
        left = [writes]

        def rename(old, new, left=left):
            if not left[0]:
                os.rename(old, str(old).replace(str(os.getpid()), "1"))
                raise KilledError
            left[0] -= 1
            os.rename(old, new)

        with monkeypatch.context() as patched, suppress(KilledError):
            patched.setattr(os, "replace", rename)
            main(["--folder", str(folder), *words, *more])
        killed = not left[0]
        assert main(["--folder", str(folder), *words]) == 0
        assert signed in (None, (folder / "ca.pem").read_bytes())
        Credentials.load_server(folder)
        assert Authority(folder, 1).list_hosts() == ["fl.example.org"]
        for name in ("edge-1", "edge-2"):
            assert name_of(Credentials.load_client(folder / "clients" / name).certificate) == name
        assert RevocationList(folder / "revoked.pem", (folder / "ca.pem").read_bytes()) is not None
        assert main(["--folder", str(folder), *words, "--renew"]) == 0
        assert not list(folder.rglob("*.key.*"))
        if not killed:
            break
    assert writes > 5


def test_certificates_whose_authority_s_key_is_kept_elsewhere_outlive_the_command(made, capsys):
    """A new authority in its place would make all of them worthless, and forget who is revoked."""
    assert main(["--folder", str(made), "--revoke", "edge-2"]) == 0
    (made / "ca.key").unlink()
    before = {p: p.read_bytes() for p in made.rglob("*") if p.is_file()}
    for words in (["--clients", "edge-3"], ["--revoke", "edge-1"], ["--renew"], ["--roster"]):
        assert main(["--folder", str(made), *words]) == 2
        assert has_error(capsys.readouterr().err, "FP5027")
    assert {p: p.read_bytes() for p in made.rglob("*") if p.is_file()} == before
    shutil.rmtree(made / "clients")  # handed out
    for file in made.glob("server.*"):
        file.unlink()
    assert main(["--folder", str(made), "--clients", "edge-3"]) == 2


def test_who_asks_for_a_certificate_that_nobody_accepts_any_more_hears_of_it(made, capsys):
    assert main(["--folder", str(made), "--clients", "edge-1,old", "--days", "1e-9"]) == 0
    assert f"kept       {made}/clients/edge-1\n" in capsys.readouterr().out
    assert main(["--folder", str(made), "--revoke", "edge-2", "--clients", "edge-1,edge-2,old"]) == 0
    said = capsys.readouterr().out
    assert f"kept       {made}/clients/edge-2, but it is revoked: --renew makes a new one" in said
    assert f"kept       {made}/clients/old, but it expired on" in said
    assert main(["--folder", str(made), "--clients", "edge-2,old", "--renew"]) == 0
    capsys.readouterr()
    assert main(["--folder", str(made), "--clients", "edge-2,old"]) == 0
    assert "but it" not in capsys.readouterr().out


def test_without_the_authority_s_certificate_no_client_s_folder_is_begun(made, capsys):
    (made / "ca.pem").unlink()
    assert main(["--folder", str(made), "--clients", "edge-3"]) == 2
    assert has_error(capsys.readouterr().err, "FP5029")
    assert not (made / "clients" / "edge-3").exists()


def test_a_client_s_key_that_was_moved_to_it_is_no_half_state(made):
    (made / "clients" / "edge-1" / "client.key").unlink()
    before = (made / "clients" / "edge-1" / "client.pem").read_bytes()
    assert main(["--folder", str(made), "--clients", "edge-1"]) == 0
    assert (made / "clients" / "edge-1" / "client.pem").read_bytes() == before

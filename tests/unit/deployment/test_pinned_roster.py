"""Rosters that clients pin: what `certs --roster` writes, and what is no roster."""

from __future__ import annotations

import hashlib

import pytest
from cryptography import x509

from fedpeft.commands.certs import main as certs
from fedpeft.deployment.identity.credentials import Credentials
from fedpeft.deployment.identity.pinned_roster import PinnedRoster
from tests.refusals import has_error, refuses


@pytest.fixture
def made(tmp_path):
    folder = tmp_path / "certs"
    assert certs(["--folder", str(folder), "--clients", "edge-2,edge-1,lost"]) == 0
    assert certs(["--folder", str(folder), "--revoke", "lost", "--roster"]) == 0
    return folder


def test_a_roster_names_the_present_certificates_and_its_hash_is_that_of_the_file(made, capsys):
    assert certs(["--folder", str(made), "--roster"]) == 0
    text = (made / "roster.txt").read_text()
    assert hashlib.sha256(text.encode()).hexdigest() in capsys.readouterr().out
    found = PinnedRoster.read(made / "roster.txt")
    assert list(found.members) == ["edge-1", "edge-2"], "without the one that was revoked"
    certificate = x509.load_pem_x509_certificate((made / "clients/edge-1/client.pem").read_bytes())
    assert found.members["edge-1"] == hashlib.sha256(certificate.tbs_certificate_bytes).hexdigest()
    assert found.to_text() == text


def test_a_hash_is_compared_as_far_as_it_was_told(made):
    file = made / "roster.txt"
    known = PinnedRoster.read(file).hash
    for told in (known, known[:16], known[:32].upper(), ":".join(known[i : i + 4] for i in range(0, 24, 4))):
        PinnedRoster.read(file, told)
    for told in (known[:15], "0" * 64, known + "0", known[:20] + "x"):
        with refuses("FP1127"):
            PinnedRoster.read(file, told)


@pytest.mark.parametrize(
    "text", ["", "edge-1\n", f"{'0' * 63} edge-1\n", f"{'0' * 64} ../edge\n", f"{'0' * 64} a\n{'0' * 64} b\n",
             f"{'0' * 64} a\n{'1' * 64} a\n", f"{'0' * 64} a\n\n"]
)  # fmt: skip
def test_what_is_no_roster(tmp_path, text):
    (tmp_path / "roster.txt").write_text(text)
    with refuses("FP1126"):
        PinnedRoster.read(tmp_path / "roster.txt")


def test_what_can_not_be_read(tmp_path):
    (tmp_path / "binary").write_bytes(b"\xff\xfe")
    for file in (tmp_path / "nowhere", tmp_path / "binary", tmp_path):
        with refuses("FP1125"):
            PinnedRoster.read(file)


def test_a_client_stands_in_its_own_roster(made):
    roster = PinnedRoster.read(made / "roster.txt")
    roster.check_own(Credentials.load_client(made / "clients" / "edge-1"))
    with refuses("FP1124", "lost"):
        roster.check_own(Credentials.load_client(made / "clients" / "lost"))


def test_a_roster_of_nobody_is_one_sentence(tmp_path, capsys):
    assert certs(["--folder", str(tmp_path / "certs"), "--roster"]) == 2
    assert has_error(capsys.readouterr().err, "FP1123")

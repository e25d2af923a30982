"""Real clients in secure sums: what a server is told that lies, asks twice or invents members; what lies on disk."""

from __future__ import annotations

import random
import stat
from types import SimpleNamespace

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509.oid import ExtendedKeyUsageOID
from fedpeft.clients.masking import FILE, Masking, MaskPlan

from fedpeft.communication.messages import Instruction
from fedpeft.deployment.identity.certificates import Authority
from fedpeft.deployment.identity.credentials import Credentials
from fedpeft.deployment.identity.pinned_roster import PinnedRoster
from fedpeft.parts.families import SUMS
from fedpeft.privacy.secure_sum import words
from fedpeft.privacy.secure_sum.announcement import Announcement
from fedpeft.privacy.secure_sum.certificates import CertifiedRoster, Identity
from fedpeft.privacy.secure_sum.contribution import BESIDE, Contribution, Total
from fedpeft.privacy.secure_sum.coordinator import Coordinator
from fedpeft.privacy.secure_sum.member import Member
from fedpeft.privacy.secure_sum.neighbours import graph
from tests.conftest import SilentObserver
from tests.here import MORE_ROWS, ROWS, TINY, Federation
from tests.refusals import has_error

CLIENTS = 5
SECURE = SUMS.build("secure_sum")


@pytest.fixture(scope="module")
def started(tmp_path_factory):
    made = Federation(tmp_path_factory.mktemp("sums"), SilentObserver(), privacy="secure_sum", clients=CLIENTS)
    return SimpleNamespace(made=made, edges=list(made.server.edges), run=made.server.roster.run)


@pytest.fixture
def clients(started):
    """As they are when they have taken part in nothing."""
    for k in range(CLIENTS):
        notes(started, k).unlink(missing_ok=True)
    started.edges = list(started.made.server.edges)
    return started


def notes(clients, k):
    return clients.made.folder / f"edge-{k}" / "clients" / FILE


class Asked:
    """The sum before round 1, by hand."""

    def __init__(self, clients, nonce=b"n" * 16, announced=CLIENTS):
        self.clients, self.ids = clients, list(range(CLIENTS))
        self.told = Announcement(nonce, announced, 0, BESIDE, 1.0)
        self.terms = self.told.terms(SECURE, TINY["seed"], 0, clients.run)
        self.at = Coordinator(self.terms, graph(self.ids, 100, TINY["seed"], 0))

    def said(self, k, step):
        at = self.at
        return (self.told.to_bytes, lambda: at.peers(k), lambda: at.sealed_for(k), at.write_survivors,
                lambda: at.witnesses_for(k))[step - 1]()  # fmt: skip

    def asked(self, k, step, said=None, client=None):
        kind = "prepare" if step == 3 else "sum"
        said = self.said(k, step) if said is None else said
        return Instruction(kind, 0, k if client is None else client, b"", step=step, said=said)

    def ask(self, k, step, said=None, client=None):
        return self.clients.edges[k].handle(self.asked(k, step, said, client))

    def until(self, last):
        at = self.at
        taking = (at.take_keys, at.take_sealed, at.take_vector, at.take_witness, at.take_shares)
        for step in range(1, last + 1):
            answers = {k: self.ask(k, step) for k in self.ids}
            assert not [report.error for report in answers.values() if report.error]
            for k, report in answers.items():
                taking[step - 1](k, report.payload)
        return self


def test_the_sum_is_that_of_what_clients_weigh(clients):
    asked = Asked(clients).until(5)
    total = Total.of(asked.at.sum(), CLIENTS, asked.told, SECURE, TINY["seed"], 0)
    assert total.weight == total.rows == sum((*ROWS, *MORE_ROWS)[:CLIENTS])
    assert {stat.S_IMODE(notes(clients, k).stat().st_mode) for k in range(CLIENTS)} == {0o600}


@pytest.mark.parametrize("step", [1, 2, 3, 4, 5])
def test_asked_the_same_again_a_client_answers_the_same_also_after_a_restart(clients, step):
    asked = Asked(clients).until(step - 1)
    first = asked.ask(0, step)
    again = asked.ask(0, step)
    clients.edges[0] = clients.made.edge(0)
    after = asked.ask(0, step)
    assert first.payload == again.payload == after.payload
    assert not first.error


def test_secrets_are_gone_after_the_last_step_and_after_one_that_fails(clients):
    asked = Asked(clients).until(4)
    secret = asked.clients.edges[1].workers.pool._local.clients.reports.masking._load_kept(asked.asked(1, 4)).member
    assert len(secret) > 96
    asked.ask(1, 5)
    asked.ask(2, 5, said=b"nonsense")
    for k in (1, 2):
        assert secret[36:68] not in notes(clients, k).read_bytes()
        assert not clients.edges[k].workers.pool._local.clients.reports.masking._load_kept(asked.asked(k, 5)).member


# ------------------------------------------------------------------------------------------------- a server that lies


@pytest.mark.parametrize("restarted", [False, True])
def test_a_second_sum_of_a_round_is_refused_under_whatever_name(clients, restarted):
    Asked(clients).until(3)
    if restarted:
        clients.edges[0] = clients.made.edge(0)
    second = Asked(clients, nonce=b"2" * 16)
    for client in (0, 4):
        assert has_error(second.ask(0, 1, client=client).error, "FP6014", "0")


def test_until_a_vector_has_left_a_sum_may_begin_anew(clients):
    Asked(clients).until(2)
    Asked(clients, nonce=b"2" * 16).until(5)


def test_another_unmasking_request_is_refused(clients):
    asked = Asked(clients).until(4)
    everybody = words.read_witnesses(asked.said(0, 5))
    assert not asked.ask(0, 5).error
    fewer = words.write_witnesses(dict(list(everybody.items())[:-1]))
    assert has_error(asked.ask(0, 5, said=fewer).error, "FP6018")


def test_different_sets_of_survivors(clients):
    asked = Asked(clients).until(3)
    for k in asked.ids:
        told = [0, 1, 2, 3] if k == 1 else asked.ids
        asked.at.take_witness(k, asked.ask(k, 4, said=words.write_ids(told)).payload)
    assert has_error(asked.ask(0, 5).error, "FP6138", "1")
    assert has_error(asked.ask(1, 5).error, "FP6138", "0")


def test_all_but_one_dropped(clients):
    asked = Asked(clients).until(3)
    assert has_error(asked.ask(0, 4, said=words.write_ids([0])).error, "FP6133", 0, 3)
    assert has_error(asked.ask(1, 4, said=words.write_ids([0, 1, 2])).error, "FP6133", 2, 3)


def test_neighbours_kept_away(clients):
    asked = Asked(clients).until(1)
    peers = words.read_peers(asked.said(0, 2))
    assert has_error(asked.ask(0, 2, said=words.write_peers({4: peers[4]})).error, "FP6133", 1, 3)


def test_keys_of_another_sum_are_no_keys(clients):
    old = Asked(clients).until(1)
    new = Asked(clients, nonce=b"2" * 16)
    new.ask(0, 1)
    assert has_error(new.ask(0, 2, said=old.said(0, 2)).error, "FP6138", "1")


def test_keys_of_another_federation_are_no_keys(clients):
    asked = Asked(clients).until(1)
    elsewhere = asked.told.terms(SECURE, TINY["seed"], 0, "0" * 16)
    peers = words.read_peers(asked.said(0, 2))
    peers[2] = words.read_keys(stranger(clients, elsewhere, 2, own(clients, 2)).keys())
    assert has_error(asked.ask(0, 2, said=words.write_peers(peers)).error, "FP6138", "2")


def own(clients, k):
    return Credentials.load_client(clients.made.folder / "certs" / "clients" / f"edge-{k}")


def stranger(clients, terms, client, credentials):
    """Return a member that the server invents with a certificate of its own."""
    identity = Identity(clients.run, credentials.key, credentials.certificate, credentials.authority)
    roster = CertifiedRoster(identity, CLIENTS)
    return Member(client, terms, identity.private_key, roster, identity.shown)


@pytest.mark.parametrize(("posing", "whose"), [(2, 1), (2, 0)], ids=["another's", "its own"])
def test_two_members_with_one_certificate(clients, posing, whose):
    asked = Asked(clients).until(1)
    peers = words.read_peers(asked.said(0, 2))
    peers[posing] = words.read_keys(stranger(clients, asked.terms, posing, own(clients, whose)).keys())
    assert has_error(asked.ask(0, 2, said=words.write_peers(peers)).error, "FP6123")


def test_certificates_that_make_no_client(clients, tmp_path):
    other = Authority(tmp_path / "other", 1)
    other.ensure()
    folder = other.client("edge-2")
    asked = Asked(clients).until(1)
    peers = words.read_peers(asked.said(0, 2))
    peers[2] = words.read_keys(stranger(clients, asked.terms, 2, Credentials.load_client(folder)).keys())
    assert has_error(asked.ask(0, 2, said=words.write_peers(peers)).error, "FP6106")

    mine = Authority(clients.made.folder / "certs", 1)
    mine.server(["localhost"])
    asked = Asked(clients, nonce=b"2" * 16).until(1)
    server = Credentials.load_server(clients.made.folder / "certs")
    peers = words.read_peers(asked.said(0, 2))
    peers[2] = words.read_keys(stranger(clients, asked.terms, 2, server).keys())
    assert has_error(asked.ask(0, 2, said=words.write_peers(peers)).error, "FP6107")

    asked = Asked(clients, nonce=b"3" * 16).until(1)
    peers = words.read_peers(asked.said(0, 2))
    peers[2] = words.Keys(**vars(peers[2]) | {"certificate": b"none"})
    assert has_error(asked.ask(0, 2, said=words.write_peers(peers)).error, "FP6106")


def test_an_expired_certificate(clients, tmp_path):
    mine = Authority(clients.made.folder / "certs", -0.5)
    folder = mine.client("late")
    asked = Asked(clients).until(1)
    peers = words.read_peers(asked.said(0, 2))
    credentials = Credentials(*((folder / name).read_bytes() for name in ("ca.pem", "client.pem", "client.key")))
    peers[2] = words.read_keys(stranger(clients, asked.terms, 2, credentials).keys())
    assert has_error(asked.ask(0, 2, said=words.write_peers(peers)).error, "FP6109", "late")


def test_a_name_that_is_not_printable_is_written_otherwise(clients, tmp_path):
    """It is an authority's word, in a sentence that both ends show their users."""
    mine = Authority(clients.made.folder / "certs", -0.5)
    mine._sign(tmp_path, "client", "la\x1bte\n", [x509.DNSName("late")], ExtendedKeyUsageOID.CLIENT_AUTH)
    (tmp_path / "ca.pem").write_bytes((mine.folder / "ca.pem").read_bytes())
    asked = Asked(clients).until(1)
    peers = words.read_peers(asked.said(0, 2))
    credentials = Credentials(*((tmp_path / name).read_bytes() for name in ("ca.pem", "client.pem", "client.key")))
    peers[2] = words.read_keys(stranger(clients, asked.terms, 2, credentials).keys())
    assert has_error(asked.ask(0, 2, said=words.write_peers(peers)).error, "FP6109", "la\\x1bte\\n")


def test_whoever_is_not_in_the_pinned_roster_is_refused(clients):
    """A client that the authority has made, and nobody knows: without a roster it is taken."""
    made = clients.made
    roster = PinnedRoster.from_authority(made.folder / "certs")
    known = PinnedRoster({name: roster.members[name] for name in roster.members if name in map(name_of, range(4))})
    (made.folder / "roster.txt").write_text(known.to_text())
    made.options[0] = {"roster": str(made.folder / "roster.txt"), "roster_hash": known.hash[:16]}
    clients.edges[0] = made.edge(0)
    made.options[0] = {}
    asked = Asked(clients).until(1)
    said = asked.ask(0, 2).error
    assert has_error(said, "FP6110", "4")
    assert has_error(said, "FP6110", "edge-4")
    assert not asked.ask(1, 2).error
    again = Asked(clients, nonce=b"2" * 16).until(1)
    peers = {k: keys for k, keys in words.read_peers(again.said(0, 2)).items() if k != 4}
    assert not again.ask(0, 2, said=words.write_peers(peers)).error


def name_of(k):
    return f"edge-{k}"


def test_sums_of_too_few(clients):
    made = clients.made
    made.options[0] = {"fewest": 6}
    clients.edges[0] = made.edge(0)
    made.options[0] = {}
    assert has_error(Asked(
        clients
    ).ask(0, 1).error, "FP6015", "5", "6", "--fewest")  # fmt: skip
    assert has_error(Asked(clients, announced=2).ask(1, 1).error, "FP6104", "3")


@pytest.mark.parametrize("lost", [2, 3, 4])
def test_sums_that_have_become_too_few(clients, lost):
    """Masks would come off a sum of 4 where one of the 5 has dropped out, and edge-0 takes part in those of 5."""
    made = clients.made
    made.options[0] = {"fewest": CLIENTS}
    clients.edges[0] = made.edge(0)
    made.options[0] = {}
    asked = Asked(clients).until(lost - 1)
    asked.ids = list(range(CLIENTS - 1))
    if lost == 2:
        del asked.at.keys[4]
    elif lost == 3:
        del asked.at.sealed[4]
    else:
        asked.at.survivors.remove(4)
    assert has_error(asked.ask(0, lost).error, "FP6134", "4", "--fewest 5")
    assert not asked.ask(1, lost).error


def test_a_server_that_announces_more_clients_than_it_asks(tmp_path):
    """With 2 neighbours each, 3 in a ring see no others; that 2 more survive is the server's word."""
    secure = SUMS.build("secure_sum(neighbours=2)")
    authority = Authority(tmp_path / "certs", 1)
    authority.ensure()
    sides = []
    for k in range(3):
        own = Credentials.load_client(authority.client(f"edge-{k}"))
        identity = Identity("run", own.key, own.certificate, own.authority, fewest=CLIENTS)
        sides.append(Masking(MaskPlan(secure, False, CLIENTS, identity), tmp_path / str(k), TINY["seed"]))
    asked = Asked(SimpleNamespace(run="run", edges=sides))
    terms = asked.told.terms(secure, TINY["seed"], 0, "run")
    asked.at, asked.ids = Coordinator(terms, {0: [1, 2], 1: [0, 2], 2: [0, 1]}), [0, 1, 2]
    asked.at.write_survivors = lambda: words.write_ids(range(CLIENTS))
    for side in sides:
        side.handle = lambda i, own=side: own.add(i, lambda _: Contribution(1.0, 3)) if i.step == 3 else own.answer(i)
    error = asked.ask(0, 1).error
    if not error:  # what it would lead to
        asked.until(5)
        total = Total.of(asked.at.sum(), 3, asked.told, SUMS.build(secure), TINY["seed"], 0)
        pytest.fail(f"{total.rows:g} rows of 3 clients are summed, where each has asked for sums of {CLIENTS}")
    assert has_error(error, "FP6017", "2", "5")
    assert has_error(error, "FP6017", "4")


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"payload": b"x"}, ("FP6180", "payload=b'x'")),
        ({"learning_rate": 1.0}, ("FP6180", "learning_rate=1.0")),
        ({"step": 3}, ("FP6012", "step 3")),
        ({"step": 6}, ("FP6052", "step=6", 0, 5)),
        ({"step": 0}, ("FP6012", "step 0")),
        ({"said": b"x"}, ("FP6103", 1)),
    ],
    ids=str,
)
def test_steps_that_no_server_of_good_faith_asks_for(clients, change, says):
    plain = vars(Asked(clients).asked(0, 1))
    report = clients.edges[0].handle(Instruction(**plain | change))
    assert has_error(report.error, *says)


@pytest.mark.parametrize("step", [1, 2, 3, 4, 5])
def test_what_a_server_passes_on_may_be_any_bytes(clients, step):
    """Each of them is an answer or one sentence; what is cut, doubled or missing is never an answer."""
    asked = Asked(clients).until(step - 1)
    honest, chance = asked.said(0, step), random.Random(step)
    before = notes(clients, 0).read_bytes() if step > 1 else b""
    cut = [honest[: len(honest) * i // 8] for i in range(8)] + [honest * 2, honest + b"\0"]
    flipped = [bytearray(honest) for _ in range(40)]
    for content in flipped:
        content[chance.randrange(len(content))] ^= 1 << chance.randrange(8)
    for wrong, content in [*((True, c) for c in cut), *((False, bytes(c)) for c in flipped)]:
        notes(clients, 0).unlink(missing_ok=True)
        if before:
            notes(clients, 0).write_bytes(before)
        report = asked.ask(0, step, said=content)
        assert bool(report.error) is not bool(report.payload)
        assert report.error or not wrong
        assert "\n" not in report.error


def test_a_client_says_nothing_of_its_rows_when_it_joins(clients):
    assert clients.edges[0].create_registration().rows == 1
    assert has_error(
        clients.edges[0].handle(Instruction("evaluate", 1, 0, b"", rank=2, alpha=32.0)).error, "FP6179", "without masks"
    )


def test_damaged_notes_are_one_sentence(clients):
    asked = Asked(clients).until(1)
    notes(clients, 0).write_bytes(notes(clients, 0).read_bytes()[:-1])
    assert has_error(asked.ask(0, 2).error, "FP5002")


def test_certificates_travel_as_members_show_them(clients):
    asked = Asked(clients).until(1)
    shown = asked.at.keys[3].certificate
    held = x509.load_pem_x509_certificate(own(clients, 3).certificate)
    assert shown == held.public_bytes(Encoding.DER)
    assert serialization.load_pem_private_key(own(clients, 3).key, None).public_key() == held.public_key()

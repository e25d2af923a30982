"""One admitted client tries to void every sum that it is in: the server drops it, and the others' sum is formed."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest

from fedpeft.deployment.identity.credentials import Credentials
from fedpeft.privacy.secure_sum import words
from fedpeft.privacy.secure_sum.member import Member
from tests.conftest import SilentObserver
from tests.here import Federation
from tests.refusals import refuses

CLIENTS, LIAR = 5, 3
LOW_ORDER = [bytes(32), (1).to_bytes(32, "little"), (2**255 - 20).to_bytes(32, "little"),
             bytes.fromhex("e0eb7a7c3b41b8ae1656e3faf19fc46ada098deb9c32b1fd866205165f49b800")]  # fmt: skip
"""Points of orders 4, 1, 2 and 8 on Curve25519 (RFC 7748, section 7: their products with any key are zero)."""


class Lying:
    """What the client sends instead of its keys, signed by itself where that is possible."""

    def __init__(self, folder):
        self.folder = folder

    def signed(self, member, **change):
        from fedpeft.privacy.secure_sum.member import format_key_message
        from fedpeft.privacy.secure_sum.roster import signature

        keys = words.Keys(**vars(words.read_keys(self.honest(member))) | change)
        signed = signature(member.key, format_key_message(member.terms, member.client, keys))
        return words.Keys(**vars(keys) | {"signature": signed}).to_bytes()

    def unsigned(self, member, **change):
        return words.Keys(**vars(words.read_keys(self.honest(member))) | change).to_bytes()

    def of(self, kind, member):
        """Return the keys that the client advertises."""
        if kind.startswith("low order"):
            which, number = kind.split(": ")[1].split()
            return self.signed(member, **{which: LOW_ORDER[int(number)]})
        if kind == "no signature":
            return self.unsigned(member, signature=b"")
        if kind == "false signature":
            return self.unsigned(member, commitment=bytes(32))
        if kind == "no certificate":
            return self.unsigned(member, certificate=b"")
        if kind == "another's certificate":
            own = Credentials.load_client(self.folder / "certs" / "clients" / "edge-0").certificate
            from cryptography import x509
            from cryptography.hazmat.primitives.serialization import Encoding

            return self.signed(member, certificate=x509.load_pem_x509_certificate(own).public_bytes(Encoding.DER))
        return b"no keys"


KINDS = ["no signature", "false signature", "no certificate", "another's certificate", "no keys",
         *(f"low order: {which} {k}" for which in ("mask", "share") for k in range(len(LOW_ORDER)))]  # fmt: skip


def results(made):
    lines = [json.loads(line) for line in (made.folder / "server" / "clients.jsonl").read_text().splitlines()]
    return {(line["round"], line["client"]): line.get("rejected") for line in lines}


def norms(made):
    lines = [json.loads(line) for line in (made.folder / "server" / "rounds.jsonl").read_text().splitlines()]
    return [line["update_norm"] for line in lines if line["round"]]


def voiding(folder, monkeypatch, name, lie):
    """Run a federation in which one client answers a step of each sum with what `lie` makes of its member."""
    made = Federation(folder, SilentObserver(), privacy="secure_sum", clients=CLIENTS, rounds=2)
    real = getattr(Member, name)

    def answer(member, *said):
        return lie(made, real, member, *said) if member.client == LIAR else real(member, *said)

    with monkeypatch.context() as patch:
        patch.setattr(Member, name, answer)
        made.run()
    return made


@pytest.mark.parametrize("kind", KINDS)
def test_keys_that_no_member_would_take_drop_their_client_alone(tmp_path, monkeypatch, kind):
    """The other members would have refused them, and with them the sum: every round was void."""

    def lie(made, real, member):
        lying = Lying(made.folder)
        lying.honest = real
        return lying.of(kind, member)

    made = voiding(tmp_path, monkeypatch, "keys", lie)
    assert all(norm > 0 for norm in norms(made))
    told = results(made)
    assert all((said is not None) == (client == LIAR) for (_, client), said in told.items())


@pytest.mark.parametrize("content", [b"", b"no signature", bytes(72)], ids=len)
def test_a_false_signature_over_the_survivors_is_left_out(tmp_path, monkeypatch, content):
    """Another step, the same aim: whoever heard it refused to unmask. The client's vector has arrived, and counts."""
    made = voiding(tmp_path, monkeypatch, "witness", lambda _made, real, member, said: (real(member, said), content)[1])
    assert all(norm > 0 for norm in norms(made))
    assert not any(results(made).values())


def test_two_clients_with_the_same_keys_do_not_void_the_sum(tmp_path, monkeypatch):
    """The second to arrive is dropped: members refuse neighbors with equal keys."""
    first = {}

    def lie(_made, real, member):
        member.draw = lambda size: bytes([7]) * size
        return real(member)

    real = Member.keys

    def keys(member):
        if member.client == LIAR - 1:
            member.draw = lambda size: bytes([7]) * size
            first[member.client] = True
        return real(member)

    with monkeypatch.context() as patch:
        patch.setattr(Member, "keys", keys)
        made = voiding(tmp_path, monkeypatch, "keys", lie)
    assert first
    assert all(norm > 0 for norm in norms(made))
    assert {client for (_, client), said in results(made).items() if said} == {LIAR}


class Lines(SilentObserver):
    """Keeps what the server tells its user."""

    def __init__(self):
        super().__init__()
        self.lines = []

    def say(self, text):
        self.lines.append(text)


def before_round_1(folder, monkeypatch, answers, **given):
    """Run a federation in which clients answer steps of the sum before round 1 with what `answers` makes of it."""
    observer = Lines()
    settings = {"privacy": "secure_sum", "clients": CLIENTS, "rounds": 2, "head": "ridge"}
    made = Federation(folder, observer, **settings | given)
    for (client, step), change in answers.items():
        edge = made.server.edges[client]

        def handle(instruction, honest=edge.handle, step=step, change=change):
            report = honest(instruction)
            return change(report) if (instruction.round, instruction.step) == (0, step) else report

        monkeypatch.setattr(edge, "handle", handle)
    return made, observer


def seal_garbage(report):
    sealed = words.read_sealed(report.payload)
    return replace(report, payload=words.write_sealed({peer: bytes(len(said)) for peer, said in sealed.items()}))


def send_garbage(report):
    return replace(report, payload=bytes([255]) * len(report.payload))


def leave(report):
    return replace(report, payload=b"", error="gone")


@pytest.mark.parametrize(("step", "change"), [(2, seal_garbage), (3, send_garbage)], ids=["shares", "vector"])
def test_a_void_sum_before_round_1_does_not_end_the_federation(tmp_path, monkeypatch, step, change):
    """The clients take part in no second sum of it, so the run ended for good by one client's lie."""
    made, observer = before_round_1(tmp_path, monkeypatch, {(LIAR, step): change})
    progress = made.run()
    assert progress.round == 2
    assert all(norm > 0 for norm in norms(made))
    assert sum("before round 1:" in line and "the head keeps its start" in line for line in observer.lines) == 1


def test_clients_that_leave_before_a_vector_has_arrived_are_left_out_of_a_second_sum(tmp_path, monkeypatch):
    """Two of five are too many for the sum that was begun; the other three are enough for another one."""
    made, observer = before_round_1(tmp_path, monkeypatch, {(k, 2): leave for k in (0, 1)})
    progress = made.run()
    assert all(norm > 0 for norm in norms(made))
    assert progress.fixed["summed weights"][1] == CLIENTS - 2
    assert [line for line in observer.lines if "asks the other 3 clients again" in line]
    assert not [line for line in observer.lines if "the head keeps its start" in line]


def test_a_void_sum_that_the_run_needs_is_one_sentence(tmp_path, monkeypatch):
    made, _ = before_round_1(tmp_path, monkeypatch, {(LIAR, 3): send_garbage}, drift="label_shift")
    with refuses("FP5252", "label_shift", "begin another federation"):
        made.run()

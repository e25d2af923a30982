"""One admitted client tries to void every sum that it is in: the server drops it, and the others' sum is formed."""

from __future__ import annotations

import json

import pytest

from fedpeft.deployment.credentials import Credentials
from fedpeft.privacy.secure_sum import words
from fedpeft.privacy.secure_sum.member import Member
from tests.conftest import SilentObserver
from tests.here import Federation

CLIENTS, LIAR = 5, 3
LOW_ORDER = [bytes(32), (1).to_bytes(32, "little"), (2**255 - 20).to_bytes(32, "little"),
             bytes.fromhex("e0eb7a7c3b41b8ae1656e3faf19fc46ada098deb9c32b1fd866205165f49b800")]  # fmt: skip
"""Points of orders 4, 1, 2 and 8 on Curve25519 (RFC 7748, section 7: their products with any key are zero)."""


class Lying:
    """What the client sends instead of its keys, signed by itself where that is possible."""

    def __init__(self, folder):
        self.folder = folder

    def signed(self, member, **change):
        from fedpeft.privacy.secure_sum.member import advertised
        from fedpeft.privacy.secure_sum.roster import signature

        keys = words.Keys(**vars(words.keys_of(self.honest(member))) | change)
        signed = signature(member.key, advertised(member.terms, member.client, keys))
        return words.Keys(**vars(keys) | {"signature": signed}).to_bytes()

    def unsigned(self, member, **change):
        return words.Keys(**vars(words.keys_of(self.honest(member))) | change).to_bytes()

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
            own = Credentials.of_client(self.folder / "certs" / "clients" / "edge-0").certificate
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

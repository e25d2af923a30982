"""Actions of a malicious server in one secure sum: it requests single steps from single clients."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Final

import numpy as np
from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding, load_pem_private_key

from fedpeft.communication.messages import Instruction
from fedpeft.deployment.identity.certificates import Authority
from fedpeft.deployment.identity.credentials import Credentials
from fedpeft.errors import PayloadError
from fedpeft.machine.files import read
from fedpeft.privacy.secure_sum import words
from fedpeft.privacy.secure_sum.announcement import Announcement, signs
from fedpeft.privacy.secure_sum.certificates import CertifiedRoster, Identity
from fedpeft.privacy.secure_sum.contribution import Total
from fedpeft.privacy.secure_sum.coordinator import VoidError
from fedpeft.privacy.secure_sum.member import Member, format_key_message
from fedpeft.privacy.secure_sum.neighbours import Terms
from fedpeft.privacy.secure_sum.roster import signature
from fedpeft.rounds.masked_sum import MaskedSum

if TYPE_CHECKING:
    from fedpeft.attack.stage import AttackStage

LOW_ORDER: Final = (bytes(32), (1).to_bytes(32, "little"), (2**255 - 20).to_bytes(32, "little"),
                    bytes.fromhex("e0eb7a7c3b41b8ae1656e3faf19fc46ada098deb9c32b1fd866205165f49b800"))  # fmt: skip
"""Points of orders 4, 1, 2 and 8 on Curve25519: their products with any key are zero (RFC 7748, section 7)."""


@dataclass(frozen=True)
class RemoteMember:
    """A real client as a member of a sum that the attacker announces."""

    hands: SumAttacker
    client: int

    def keys(self) -> bytes:
        """Take step 1."""
        return self.hands.ask(self.client, 1, self.hands.told.to_bytes())

    def shares_for(self, peers: bytes) -> bytes:
        """Take step 2."""
        return self.hands.ask(self.client, 2, peers)

    def add(self, sealed: bytes) -> bytes:
        """Take step 3."""
        return self.hands.ask(self.client, 3, sealed)

    def witness(self, survivors: bytes) -> bytes:
        """Take step 4."""
        return self.hands.ask(self.client, 4, survivors)

    def unmask(self, witnesses: bytes) -> bytes:
        """Take step 5."""
        return self.hands.ask(self.client, 5, witnesses)


class SumAttacker:
    """Attacker within one sum."""

    def __init__(self, stage: AttackStage, masked: MaskedSum, asked: Sequence[Instruction], clients: int) -> None:
        """Announce the attacker's own sum, based on the server's.

        Args:
            stage: the stage of the attack.
            masked: the sum that the server's own code has started.
            asked: the training instructions.
            clients: number of clients that the attacker announces.
        """
        self.stage, self.masked = stage, masked
        self.work = {instruction.client: instruction for instruction in asked}
        self.told = Announcement(os.urandom(16), clients, masked.size, masked.numbers, masked.clip)
        assert masked.journal is not None
        run = masked.journal.run + masked.clients.recorded
        self.terms = self.told.terms(masked.secure, masked.seed, masked.round, run)

    def ask(self, client: int, step: int, said: bytes, round_number: int | None = None) -> bytes:
        """Return a client's answer to one step.

        Raises:
            PayloadError: the client refuses.
        """
        round_number = self.masked.round if round_number is None else round_number
        plain = self.work[client] if step == 3 else Instruction("sum", round_number, client, b"")
        [report] = self.masked.clients.send_in_order([replace(plain, step=step, said=said)], 1, "attack")
        report.raise_error()
        return report.payload

    def try_step(self, client: int, step: int, said: bytes) -> bytes | None:
        """Return a client's answer to one step, or None if it refuses."""
        try:
            return self.ask(client, step, said)
        except PayloadError:
            return None

    def create_confederate(self, client: int) -> Member:
        """Return a colluding client: a member of the federation whose key the attacker holds."""
        return self._create_member(
            client, Credentials.load_client(self.stage.certs / "clients" / self.stage.names[client])
        )

    def invent_member(self, client: int, days: float = 30) -> Member:
        """Return a member that the attacker created with the authority's key; valid for `days` days."""
        folder = Authority(self.stage.certs, days).client(f"invented-{client}")
        files = (read(folder / name) for name in ("ca.pem", "client.pem", "client.key"))
        return self._create_member(client, Credentials(*files))

    def _create_member(self, client: int, own: Credentials) -> Member:
        shown = x509.load_pem_x509_certificate(own.certificate).public_bytes(Encoding.DER)
        key: Any = load_pem_private_key(own.key, None)
        roster = CertifiedRoster(Identity("", own.key, own.certificate, own.authority), len(self.stage.names))
        return Member(client, self.terms, key, roster, shown)

    def hold(self, integers: np.ndarray) -> None:
        """Keep a client's vector, modulo 2^bits, that the attacker has read."""
        masked = self.masked
        grid = self.told.integers(masked.secure, masked.round)
        vector, _ = grid.decode(integers, 1, signs(masked.seed, masked.round, masked.size))
        self.stage.held[masked.round].append(vector)


def take_over_round(stage: AttackStage, round_number: int, clients: int, work: Callable[[SumAttacker], None]) -> None:
    """Let the attacker do its `work` instead of the secure sum of a round, and end the attack after it."""

    def change(of: Callable[..., Total]) -> Callable[..., Total]:
        def attack_sum(masked: MaskedSum, asked: Sequence[Instruction], *given: Any) -> Total:
            if masked.round != round_number:
                return of(masked, asked, *given)
            try:
                work(SumAttacker(stage, masked, asked, clients))
            except PayloadError as error:  # the stage has recorded the client's refusal
                raise VoidError(str(error)) from None
            finally:
                stage.over.set()
            raise VoidError("FP6186 the attacker forms no sum")

        return attack_sum

    stage.replace(MaskedSum, "compute_total", change)


def sign_keys(terms: Terms, client: int, own: Credentials, keys: words.Keys) -> words.Keys:
    """Return keys with a client's true signature over them."""
    key: Any = load_pem_private_key(own.key, None)
    return replace(keys, signature=signature(key, format_key_message(terms, client, keys)))

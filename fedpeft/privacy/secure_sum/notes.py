"""The notes that a client keeps of a secure sum between its steps, in a file that nobody else can read."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Self

from fedpeft.privacy.secure_sum.announcement import Announcement
from fedpeft.privacy.secure_sum.words import Reader

DIGEST = 32


@dataclass(frozen=True)
class Notes:
    """The notes on the last sum that a client was asked for.

    Attributes:
        round: round of the sum.
        told: the announcement.
        member: progress of its member (`Member.to_bytes`); empty: its part is over.
        sent: whether its vector may have left it.
        asked: digest of the instruction that it has answered last, 32 bytes.
        answer: its answer to that, which it repeats if the instruction is repeated.
    """

    round: int
    told: Announcement
    member: bytes = b""
    sent: bool = False
    asked: bytes = bytes(DIGEST)
    answer: bytes = b""

    def to_bytes(self) -> bytes:
        """Return the notes as bytes for the file."""
        head = self.round.to_bytes(4, "big") + self.told.to_bytes() + bytes([self.sent]) + self.asked
        return head + b"".join(len(part).to_bytes(4, "big") + part for part in (self.member, self.answer))

    @classmethod
    def of_bytes(cls, content: bytes) -> Self:
        """Parse notes that `to_bytes` has written.

        Raises:
            PayloadError: the bytes are damaged.
        """
        reader = Reader(content, "a client's own notes")
        round_number, told = reader.number(), Announcement.of_bytes(reader.take(Announcement.SIZE))
        sent, asked = bool(reader.take(1)[0]), reader.take(DIGEST)
        member, answer = (reader.take(reader.number()) for _ in range(2))
        reader.end()
        return cls(round_number, told, member, sent, asked, answer)

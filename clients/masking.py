"""A client's half of secure sums: the five steps of a round (`fedpeft.privacy.secure_sum.member`), one at a time.

Between steps a member lies in the client's folder, where nobody else may read: a simulation's workers are processes,
and any of them may take a client's next step. The last step, and a step that fails, removes it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from fedpeft.communication.messages import Instruction, Report
from fedpeft.errors import PayloadError, RunError
from fedpeft.machine import files
from fedpeft.privacy.noise import read_key
from fedpeft.privacy.secure_sum.announcement import Announcement
from fedpeft.privacy.secure_sum.contribution import Contribution
from fedpeft.privacy.secure_sum.identities import simulated_key, simulated_roster
from fedpeft.privacy.secure_sum.member import Member
from fedpeft.privacy.secure_sum.shared_noise import SharedNoise
from fedpeft.privacy.secure_sum.sum import SUMS, SecureSum

FILE = "secure_sum.member"


@dataclass(frozen=True)
class MaskPlan:
    """What clients need to know of secure sums, as plain data.

    Attributes:
        secure: as the user describes it.
        by_rows: whether a client weighs as many as it has rows.
        clients: how many there are.
        noise: what clients add, and the file with the key that theirs is drawn from; None: nothing.
    """

    secure: str
    by_rows: bool
    clients: int
    noise: tuple[SharedNoise, Path] | None = None


class Masking:
    """The members that one worker speaks for; their states lie in `folder`."""

    def __init__(self, plan: MaskPlan, folder: Path, seed: int) -> None:
        self.by_rows, self.folder, self.seed = plan.by_rows, folder, seed
        self.noise = plan.noise
        self.secure: SecureSum = SUMS.build(plan.secure) if plan.noise is None else plan.noise[0]
        self.roster = simulated_roster(seed, plan.clients)

    def answer(self, instruction: Instruction) -> Report:
        """A step other than the third: what the member says, or why it has dropped out."""
        steps: dict[int, Callable[[Member], bytes]] = {
            2: lambda member: member.shares_for(instruction.said),
            4: lambda member: member.witness(instruction.said),
            5: lambda member: member.unmask(instruction.said),
        }
        if instruction.step == 1:
            return self._reported(instruction, lambda: self._begin(instruction))
        if instruction.step not in steps:
            raise PayloadError(f"the server asks for step {instruction.step} of a secure sum; legal are 1, 2, 4 and 5")
        return self._reported(instruction, lambda: self._go_on(instruction, steps[instruction.step]))

    def add(self, instruction: Instruction, made: Callable[[Announcement], Contribution]) -> Report:
        """The third step: the contribution under masks, and nothing else that the client knows.

        `made`: the contribution, as the sum is announced.
        """

        def masked() -> bytes:
            announcement, _ = self._load(instruction)
            client, round = instruction.client, instruction.round
            given, secret = made(announcement), self._secret(instruction)
            numbers = given.integers(announcement, self.secure, self.seed, round, client, secret)
            return self._go_on(instruction, lambda member: member.vector(instruction.said, numbers))

        return self._reported(instruction, masked)

    def _reported(self, instruction: Instruction, work: Callable[[], bytes]) -> Report:
        try:
            return Report(instruction.client, instruction.round, work())
        except PayloadError as error:
            self._file(instruction).unlink(missing_ok=True)
            return Report(instruction.client, instruction.round, b"", error=str(error))

    def rate(self, own: float) -> float:
        """With which each of a client's rows joins a round: as the sums say of all clients' rows, or its own."""
        return own if self.noise is None else self.noise[0].rate

    def _secret(self, instruction: Instruction) -> np.random.Generator | None:
        """What a client's share of noise is drawn from: anew in each attempt, each of which is one sum."""
        if self.noise is None:
            return None
        _, key = self.noise
        return read_key(key).stream("share of noise", instruction.round, instruction.attempt, instruction.client)

    def _begin(self, instruction: Instruction) -> bytes:
        announcement = Announcement.of_bytes(instruction.said)
        member = self._member(instruction, announcement)
        keys = member.keys()
        self._keep(instruction, announcement, member)
        return keys

    def _go_on(self, instruction: Instruction, step: Callable[[Member], bytes]) -> bytes:
        announcement, notes = self._load(instruction)
        new = self._member(instruction, announcement)
        member = Member.of_bytes(notes, new.client, new.terms, new.key, new.roster)
        said = step(member)
        if instruction.step == 5:
            self._file(instruction).unlink(missing_ok=True)
        else:
            self._keep(instruction, announcement, member)
        return said

    def _member(self, instruction: Instruction, announcement: Announcement) -> Member:
        terms = announcement.terms(self.secure, self.seed, instruction.round)
        return Member(instruction.client, terms, simulated_key(self.seed, instruction.client), self.roster)

    def _file(self, instruction: Instruction) -> Path:
        return self.folder / f"{instruction.client:06d}" / FILE

    def _keep(self, instruction: Instruction, announcement: Announcement, member: Member) -> None:
        file = self._file(instruction)
        try:
            files.make_private_folder(self.folder)
            files.make_private_folder(file.parent)
            files.replace(file, announcement.to_bytes() + member.to_bytes(), private=True)
        except OSError as error:
            raise RunError(f"the state of client {instruction.client} can't be written to {file}: {error}") from error

    def _load(self, instruction: Instruction) -> tuple[Announcement, bytes]:
        try:
            content = files.read(self._file(instruction))
        except OSError:
            raise PayloadError(f"client {instruction.client} takes part in no secure sum") from None
        return Announcement.of_bytes(content[: Announcement.SIZE]), content[Announcement.SIZE :]

"""A client's half of secure sums: the five steps of a round (`fedpeft.privacy.secure_sum.member`), one at a time.

Between steps a member lies in the client's folder, which only its owner can read. A simulation's workers are processes,
and any of them may take a client's next step. The last step, and a step that fails, removes the member's secrets.

A real client also keeps its last answer. If a restarted server repeats its question, the client repeats its answer.
Once its vector may have left it, it takes part in no other sum of that round: two sums with one client more or less
would reveal that client's update.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from fedpeft.communication.broadcast_digests import compute_instruction_digest
from fedpeft.communication.messages import Instruction, Report
from fedpeft.errors import PayloadError, RunError
from fedpeft.machine import files
from fedpeft.privacy.noise import read_key
from fedpeft.privacy.secure_sum.announcement import Announcement
from fedpeft.privacy.secure_sum.certificates import CertifiedRoster, Identity
from fedpeft.privacy.secure_sum.collusion import explain_excess
from fedpeft.privacy.secure_sum.contribution import Contribution
from fedpeft.privacy.secure_sum.identities import simulated_key, simulated_roster
from fedpeft.privacy.secure_sum.member import Member
from fedpeft.privacy.secure_sum.neighbours import degree
from fedpeft.privacy.secure_sum.notes import Notes
from fedpeft.privacy.secure_sum.roster import Membership
from fedpeft.privacy.secure_sum.sum import SecureSum

if TYPE_CHECKING:
    from fedpeft.privacy.secure_sum.shared_noise import SharedNoise

FILE = "secure_sum.member"


@dataclass(frozen=True)
class MaskPlan:
    """What clients need for secure sums; it can be pickled.

    Attributes:
        secure: the secure sum.
        by_rows: whether a client weighs as much as it has examples.
        clients: number of all clients.
        identity: of a real client; None: of simulated ones, whose keys are public.
        noise: the noise that clients add, and the file with the key that theirs is drawn from; None: no noise.
    """

    secure: SecureSum
    by_rows: bool
    clients: int
    identity: Identity | None = None
    noise: tuple[SharedNoise, Path] | None = None


class Masking:
    """The members that one worker speaks for; their states lie in `folder`."""

    def __init__(self, plan: MaskPlan, folder: Path, seed: int) -> None:
        """Choose the roster: simulated keys from `seed`, or a real client's certificates."""
        self.by_rows, self.folder, self.seed = plan.by_rows, folder, seed
        self.noise, self.identity = plan.noise, plan.identity
        self.secure = plan.secure
        self.roster: Membership
        if self.identity is None:
            self.roster = simulated_roster(seed, plan.clients)
        else:
            self.roster = CertifiedRoster(self.identity, plan.clients)

    def answer(self, instruction: Instruction) -> Report:
        """Take a step other than the third, and return the member's message, or why it has dropped out.

        Raises:
            PayloadError: the instruction is not one of these steps, or asks for more than a step.
        """
        if (before := self.get_repeated_report(instruction)) is not None:
            return before
        plain = Instruction("sum", instruction.round, instruction.client, b"", recorded=instruction.recorded)
        if instruction != replace(plain, step=instruction.step, said=instruction.said, attempt=instruction.attempt):
            raise PayloadError("FP6011 the server asks for additional work in a step of a secure sum")
        steps: dict[int, Callable[[Member], bytes]] = {
            2: lambda member: member.shares_for(instruction.said),
            4: lambda member: member.witness(instruction.said),
            5: lambda member: member.unmask(instruction.said),
        }
        if instruction.step == 1:
            return self._report(instruction, lambda: self._begin(instruction))
        if instruction.step not in steps:
            raise PayloadError(
                f"FP6012 the server asks for step {instruction.step} of a secure sum; legal are 1, 2, 4 and 5"
            )
        return self._report(instruction, lambda: self._go_on(instruction, steps[instruction.step]))

    def add(self, instruction: Instruction, made: Callable[[Announcement], Contribution]) -> Report:
        """Take the third step: send the contribution under masks, and nothing else that the client knows.

        Args:
            instruction: the server's third step.
            made: returns the contribution, given the sum's announcement.
        """

        def add_masks() -> bytes:
            told = self._load_notes(instruction).told
            client, round_number = instruction.client, instruction.round
            given, secret = made(told), self._create_noise_generator(instruction)
            numbers = given.integers(told, self.secure, self.seed, round_number, client, secret)
            return self._go_on(instruction, lambda member: member.vector(instruction.said, numbers))

        return self._report(instruction, add_masks)

    def begin_third(self, instruction: Instruction) -> None:
        """Refuse a third step that the member would not take, before a real client's ledger is charged for it.

        From now on refuse any other third step of this sum. So a server is charged once for what it asks of a sum that
        the client's neighbors are in, whatever it sends.

        Raises:
            PayloadError: the step is not one of this sum, or differs from the one that was answered.
        """
        asked = _compute_digest(replace(instruction, attempt=0))
        try:
            notes = self._load_notes(instruction)
            self._create_member(instruction, notes.told).restore(notes.member).hear(instruction.said)
        except PayloadError:
            self._end(instruction)
            raise
        if notes.sent and notes.asked != asked:
            raise PayloadError("FP6013 the server asks for a second vector in one secure sum")
        self._write(instruction, replace(notes, sent=True, asked=asked, answer=b""))

    def get_repeated_report(self, instruction: Instruction) -> Report | None:
        """Return a real client's last answer if the instruction is the same as then; None: it is not."""
        if self.identity is None:
            return None
        notes = self._load_kept(instruction)
        if notes is None or not notes.answer or notes.asked != _compute_digest(instruction):
            return None
        return Report(instruction.client, instruction.round, notes.answer)

    def _report(self, instruction: Instruction, work: Callable[[], bytes]) -> Report:
        try:
            return Report(instruction.client, instruction.round, work())
        except PayloadError as error:
            self._end(instruction)
            return Report(instruction.client, instruction.round, b"", error=str(error))

    def compute_rate(self, own: float) -> float:
        """Return the probability with which each example joins a round: that of the sum, or the client's `own`."""
        return own if self.noise is None else self.noise[0].rate

    def _create_noise_generator(self, instruction: Instruction) -> np.random.Generator | None:
        """Return the generator of a client's share of noise, new for each attempt, because each attempt is one sum."""
        if self.noise is None:
            return None
        _, key = self.noise
        return read_key(key).stream("share of noise", instruction.round, instruction.attempt, instruction.client)

    def _begin(self, instruction: Instruction) -> bytes:
        told = Announcement.of_bytes(instruction.said)
        if self.identity is not None:
            self._check_first(instruction, told, self.identity)
        member = self._create_member(instruction, told)
        keys = member.keys()
        self._keep(instruction, Notes(instruction.round, told, member.to_bytes()), keys)
        return keys

    def _check_first(self, instruction: Instruction, told: Announcement, identity: Identity) -> None:
        """Refuse a real client's second sum of a round, and sums of too few clients.

        Raises:
            PayloadError: names the number that is too small, and the server's remedy.
        """
        before, round_number = self._load_kept(instruction), instruction.round
        if before is not None and (round_number < before.round or (round_number == before.round and before.sent)):
            raise PayloadError(
                f"FP6014 the server asks for a second sum of round {round_number} after one of round {before.round} "
                "that has this client's part: together they could reveal its update; a client joins one sum a round"
            )
        if told.clients < identity.fewest:
            raise PayloadError(
                f"FP6015 a secure sum of {told.clients} clients is announced; this client takes part in those of "
                f"{identity.fewest} or more (--fewest)"
            )
        collude = max(identity.collude, self.secure.assumed_colluding)
        if excess := explain_excess(self.secure.terms(told.clients), told.clients, collude):
            raise PayloadError(f"FP6194 {excess}; ask for a larger threshold or more neighbors, or lower --collude")
        neighbours = degree(told.clients, self.secure.neighbours)
        if self.noise is not None and neighbours < told.clients - 1:
            raise PayloadError(
                f"FP6016 each client sees {neighbours} others of {told.clients} in a sum, and counts on the noise of "
                f"all; run the server with mask_neighbours={told.clients - 1} or more, or with a smaller cohort"
            )
        if neighbours + 1 < identity.fewest:  # the client has only the server's word for clients that it does not see
            raise PayloadError(
                f"FP6017 each client sees {neighbours} others in a secure sum of {told.clients}; this client takes "
                f"part in sums of {identity.fewest} or more (--fewest): run the server with "
                f"`neighbours={identity.fewest - 1}` or more"
            )

    def _go_on(self, instruction: Instruction, step: Callable[[Member], bytes]) -> bytes:
        notes = self._load_notes(instruction)
        member = self._create_member(instruction, notes.told).restore(notes.member)
        said = step(member)
        over = instruction.step == 5
        if over and self.identity is None:
            self._get_file(instruction).unlink(missing_ok=True)
            return said
        after = replace(notes, member=b"" if over else member.to_bytes(), sent=notes.sent or instruction.step == 3)
        self._keep(instruction, after, said)
        return said

    def _create_member(self, instruction: Instruction, told: Announcement) -> Member:
        identity, client = self.identity, instruction.client
        run = identity.run + instruction.recorded if identity else ""  # members with the same record are in one sum
        terms = told.terms(self.secure, self.seed, instruction.round, run)
        if identity is None:
            return Member(client, terms, simulated_key(self.seed, client), self.roster)
        wary = self.noise is not None
        fewest = identity.fewest - 1  # others, without the client itself
        return Member(client, terms, identity.private_key, self.roster, identity.shown, fewest, wary)

    def _get_file(self, instruction: Instruction) -> Path:
        """Return the member's file; a real client has one file, whatever id the server uses for it."""
        if self.identity is not None:
            return self.folder / FILE
        return self.folder / f"{instruction.client:06d}" / FILE

    def _keep(self, instruction: Instruction, notes: Notes, answer: bytes) -> None:
        if self.identity is not None:
            notes = replace(notes, asked=_compute_digest(instruction), answer=answer)
        self._write(instruction, notes)

    def _write(self, instruction: Instruction, notes: Notes) -> None:
        file = self._get_file(instruction)
        try:
            files.make_private_folder(self.folder)
            files.make_private_folder(file.parent)
            files.replace(file, notes.to_bytes(), private=True)
        except OSError as error:
            raise RunError(
                f"FP5001 the state of client {instruction.client} can't be written to {file}: {error}"
            ) from error

    def _end(self, instruction: Instruction) -> None:
        """End the client's part in the sum; a real client remembers that it had one."""
        if self.identity is None:
            self._get_file(instruction).unlink(missing_ok=True)
            return
        notes = self._load_kept(instruction)
        if notes is not None and notes.member and notes.round == instruction.round:
            self._write(instruction, replace(notes, member=b""))

    def _load_kept(self, instruction: Instruction) -> Notes | None:
        """Return the notes that were written last; None: there are none.

        Raises:
            RunError: the file can't be read.
        """
        file = self._get_file(instruction)
        try:
            return Notes.of_bytes(files.read(file))
        except FileNotFoundError:
            return None
        except (OSError, PayloadError) as error:
            raise RunError(
                f"FP5002 what client {instruction.client} keeps of secure sums in {file} can't be read "
                f"({error}); restore it from a backup, or join another federation"
            ) from None

    def _load_notes(self, instruction: Instruction) -> Notes:
        notes = self._load_kept(instruction)
        if notes is None or not notes.member:
            raise PayloadError(f"FP6018 client {instruction.client} takes part in no secure sum")
        return notes


def _compute_digest(instruction: Instruction) -> bytes:
    return bytes.fromhex(compute_instruction_digest(instruction))

"""The server's journal of a running secure sum of real clients, step by step, on disk.

A client takes part in one sum a round. So a server that is killed during a sum continues that one. It reads finished
steps from here, and clients that are asked again in the other steps give the same answer.

    FOLDER/announced   round, cohort and announcement
    FOLDER/1 ... 5     the outcome of each finished step
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from fedpeft.errors import PayloadError, RunError
from fedpeft.machine import files
from fedpeft.privacy.secure_sum.announcement import Announcement

ANNOUNCED = "announced"
STEPS = ("5", "4", "3", "2", "1")


@dataclass(frozen=True)
class OpenSum:
    """A sum that has begun.

    Attributes:
        round: its round; 0: before round 1.
        cohort: the clients that are asked.
        told: what they are told alike.
    """

    round: int
    cohort: Sequence[int]
    told: Announcement


@dataclass
class Step:
    """The outcome of one step.

    Attributes:
        answers: by client; empty for the third step, whose sum is kept.
        total: that sum (`Coordinator.write_sum`).
        taken: the clients whose answers were valid.
        failed: why the others failed.
        sent, received: bytes, by client.
    """

    answers: dict[int, bytes] = field(default_factory=dict)
    total: bytes = b""
    taken: list[int] = field(default_factory=list)
    failed: dict[int, str] = field(default_factory=dict)
    sent: Counter[int] = field(default_factory=Counter)
    received: Counter[int] = field(default_factory=Counter)


@dataclass(frozen=True)
class SumJournal:
    """The running sum.

    Attributes:
        folder: where it is kept; created with the first sum.
        run: name of the federation.
    """

    folder: Path
    run: str

    def load_opened(self, round_number: int) -> OpenSum | None:
        """Return the sum of a round, if it has begun.

        Raises:
            RunError: the file can't be read.
        """
        try:
            stored = files.read_json(self.folder / ANNOUNCED)
            found = OpenSum(stored["round"], stored["cohort"], Announcement.of_bytes(bytes.fromhex(stored["told"])))
        except FileNotFoundError:
            return None
        except (OSError, ValueError, KeyError, TypeError, PayloadError) as error:
            raise self._create_damage_error(ANNOUNCED, error) from None
        return found if found.round == round_number else None

    def load_cohort(self, round_number: int) -> list[int]:
        """Return the clients that were asked for the sum of a round before a restart; empty: it has not begun.

        Raises:
            RunError: the file can't be read.
        """
        opened = self.load_opened(round_number)
        return [] if opened is None else list(opened.cohort)

    def begin(self, opened: OpenSum) -> None:
        """Begin another sum, and forget the previous one.

        Raises:
            RunError: the disk is full, or can't be written.
        """
        stored = {"round": opened.round, "cohort": list(opened.cohort), "told": opened.told.to_bytes().hex()}
        with files.raise_write_errors(self.folder):
            files.make_private_folder(self.folder)
            self.forget()
            files.replace(self.folder / ANNOUNCED, json.dumps(stored).encode(), private=True)

    def forget(self) -> None:
        """Forget the sum, which has failed and is not continued.

        Raises:
            RunError: the files can't be removed.
        """
        if not self.folder.exists():
            return
        with files.raise_write_errors(self.folder):
            for name in (*STEPS, ANNOUNCED):  # backward: what an interruption leaves is the start of a sum
                (self.folder / name).unlink(missing_ok=True)
            files.sync(self.folder)

    def step(self, number: int) -> Step | None:
        """Return the outcome of a step of the sum; None: it was not finished.

        Raises:
            RunError: the file can't be read.
        """
        try:
            head, _, rest = files.read(self.folder / str(number)).partition(b"\n")
            stored, answers, at = json.loads(head), {}, 0
            for client, length in stored["lengths"]:
                answers[client] = rest[at : at + length]
                at += length
            total = rest[at:]
            if len(total) != stored["total"]:
                raise ValueError(f"{len(rest)} bytes of answers instead of {at + stored['total']}")
            failed, sent, received = ({int(k): v for k, v in stored[n].items()} for n in ("failed", "sent", "received"))
        except FileNotFoundError:
            return None
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise self._create_damage_error(str(number), error) from None
        return Step(answers, total, stored["taken"], failed, Counter(sent), Counter(received))

    def finish(self, number: int, step: Step) -> None:
        """Record a finished step.

        Raises:
            RunError: the disk is full, or can't be written.
        """
        stored = {
            "lengths": [(client, len(content)) for client, content in step.answers.items()],
            "total": len(step.total),
            "taken": step.taken,
            "failed": step.failed,
            "sent": step.sent,
            "received": step.received,
        }
        with files.raise_write_errors(self.folder):
            files.replace(
                self.folder / str(number),
                b"".join((json.dumps(stored).encode(), b"\n", *step.answers.values(), step.total)),
                private=True,
            )

    def _create_damage_error(self, name: str, error: Exception) -> RunError:
        return RunError(
            f"FP5208 the journal of a secure sum in {self.folder / name} can't be read ({error}); restore it "
            "from a backup, or remove the folder: the round is then void for clients that have sent their part "
            "of it"
        )

"""The results so far, in one JSON file that is complete after every step."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

from fedpeft.errors import RunError
from fedpeft.machine import files
from fedpeft.machine.files import raise_write_errors
from fedpeft.machine.json_values import convert_to_plain

Status = Literal["done", "left out", "too slow", "failed"]

FINAL: tuple[Status, ...] = ("done", "too slow")
"""Final statuses. Steps that were left out or failed are tried again, since their cause may be gone."""


@dataclass(frozen=True)
class Outcome:
    """The outcome of a step: its row, or the reason for having none."""

    section: str
    status: Status
    seconds: float = 0.0
    row: Mapping[str, Any] = field(default_factory=dict)
    reason: str = ""


@dataclass
class Record:
    """The results file.

    Attributes:
        file: path of the file.
        machine: the machine; one file belongs to one machine.
        outcomes: outcomes by step.
    """

    file: Path
    machine: dict[str, Any]
    outcomes: dict[str, Outcome] = field(default_factory=dict)

    @classmethod
    def from_file(cls, file: Path, machine: dict[str, Any]) -> Record:
        """Read the record in `file`, or create a new one.

        Raises:
            RunError: the file can't be read, or belongs to another machine.
        """
        if not file.exists():
            return cls(file, machine)
        try:
            found = files.read_json(file)
            before, steps = found["machine"], found["steps"]
            outcomes = {name: Outcome(**outcome) for name, outcome in steps.items()}
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise RunError(f"{file} is no record of this kit ({error}); name another file with --output") from error
        for name, value in machine.items():
            if before.get(name) != value:
                raise RunError(
                    f"{file} was begun with {name} = {before.get(name)!r}, and here it is {value!r}; "
                    "name another file with --output"
                )
        return cls(file, machine, outcomes)

    def put(self, name: str, outcome: Outcome) -> None:
        """Add an outcome, on the disk.

        Raises:
            RunError: the disk is full or can't be written.
        """
        self.outcomes[name] = outcome
        self.save()

    def save(self) -> None:
        """Write the whole record.

        Raises:
            RunError: the disk is full or can't be written.
        """
        steps = {step: asdict(outcome) for step, outcome in self.outcomes.items()}
        content = convert_to_plain({"machine": self.machine, "steps": steps})
        with raise_write_errors(self.file):
            self.file.parent.mkdir(parents=True, exist_ok=True)
            files.replace(self.file, (json.dumps(content, indent=1, allow_nan=False) + "\n").encode())

    def is_settled(self, name: str) -> bool:
        """Return whether a step needs no further try."""
        return name in self.outcomes and self.outcomes[name].status in FINAL

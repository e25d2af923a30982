"""A client's own state between rounds (error feedback, control variates, private factors), versioned by round.

State is staged under the round in which it was made. It becomes valid when the server says, in its next instruction
to this client, that it has recorded that round; a version that the server never acknowledged is never read. So a
kill, a rejected payload or a lost reply applies nothing twice, and a resumed run finds what it had.

Which clients have files says who took part, and what is in them is theirs: nobody else may read them.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from safetensors import SafetensorError
from safetensors.torch import load_file, save

from fedpeft.errors import RunError
from fedpeft.machine import files
from fedpeft.peft.adapter import State


def section(state: State, label: str) -> State:
    """The part of a client's state that is called `label` (its names begin with it and a slash), without the label."""
    start = f"{label}/"
    return {name.removeprefix(start): tensor for name, tensor in state.items() if name.startswith(start)}


def labelled(label: str, part: State) -> State:
    """The inverse of `section`: `part` as part of a client's state."""
    return {f"{label}/{name}": tensor for name, tensor in part.items()}


@dataclass(frozen=True)
class ClientStore:
    """States in files `folder/<client>/<round>.safetensors`."""

    folder: Path

    def file(self, client: int, round: int) -> Path:
        """Where a version is, or would be."""
        return self.folder / f"{client:06d}" / f"{round:06d}.safetensors"

    def stage(self, client: int, round: int, state: State) -> None:
        """Store `state` as that of `round`, whole or not at all; an earlier attempt of the same round is replaced.

        Raises:
            RunError: the disk is full or can't be written.
        """
        file = self.file(client, round)
        try:
            files.make_private_folder(self.folder)
            files.make_private_folder(file.parent)
            files.replace(file, save(state), private=True)
        except OSError as error:
            raise RunError(f"the state of client {client} can't be written to {self.folder}: {error}") from error

    def load(self, client: int, acknowledged: int, tidy: bool = True) -> State | None:
        """The state of round `acknowledged`, None where the client has no acknowledged one.

        Other versions are removed if `tidy`, which is right only for a round that the server has stored safely.

        Raises:
            RunError: the server acknowledged a round whose state is gone or damaged.
        """
        file = self.file(client, acknowledged)
        for other in file.parent.glob("*.safetensors") if tidy else ():
            if other != file:
                other.unlink(missing_ok=True)
        if not acknowledged:
            return None
        if not file.exists():
            raise RunError(f"the state of client {client} after round {acknowledged} is missing from {self.folder}")
        try:
            return load_file(files.regular(file))
        except (OSError, SafetensorError) as error:
            raise RunError(f"the state of client {client} in {file} can't be read: {error}") from error

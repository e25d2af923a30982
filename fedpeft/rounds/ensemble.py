"""`--measure ensemble` in the round loop: keep the last global states on disk."""

from __future__ import annotations

from pathlib import Path

from safetensors.torch import save

from fedpeft.machine import files
from fedpeft.machine.files import raise_write_errors
from fedpeft.rounds.hooks import RoundHook
from fedpeft.rounds.progress import ServerState

STATES = "states"
"""Folder of a run's last global states."""


class EnsembleHook(RoundHook):
    """Keeps the global state after each of the `last` rounds, by round number, in `folder`."""

    def __init__(self, folder: Path, last: int) -> None:
        """Hold the folder and the number of states to keep."""
        self.folder, self.last = folder, last

    def before_commit(self, state: ServerState) -> ServerState:
        """Write the state of this round, and remove those that are too old.

        Raises:
            RunError: the disk is full or cannot be written.
        """
        with raise_write_errors(self.folder):
            self.folder.mkdir(exist_ok=True)
            tensors = {name: tensor.contiguous() for name, tensor in state.adapter.items()}
            files.replace(self.folder / f"{state.round:06d}.safetensors", save(tensors))
            for file in self.folder.glob("*.safetensors"):
                if not state.round - self.last < int(file.stem) <= state.round:
                    file.unlink()
        return state

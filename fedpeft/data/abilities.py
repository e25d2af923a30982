"""What some datasets do beyond `fedpeft.data.rows.Source`. Code asks for an ability, never for the name of a dataset.

A dataset has an ability if it defines the members; it need not inherit the protocol.
"""

from __future__ import annotations

from typing import ClassVar, Protocol, runtime_checkable


@runtime_checkable
class ReadsClips(Protocol):
    """The examples may be clips, whose number of frames the settings determine before anything is read."""

    def count_frames(self) -> int:
        """Return the number of frames of each clip; 0: the examples are images or texts."""
        ...


@runtime_checkable
class HeldByClients(Protocol):
    """Only real clients hold the examples, so this machine can't read or evaluate on them."""

    held_by_clients: ClassVar[bool]


@runtime_checkable
class NamesFiles(Protocol):
    """The settings name files or folders of the user's own, which must exist."""

    def list_files(self) -> tuple[str, ...]:
        """Return their paths as given."""
        ...

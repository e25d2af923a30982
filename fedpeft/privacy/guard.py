"""The mechanism at a client: it clips an update and adds noise before the update leaves."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from fedpeft.errors import PrivacyError
from fedpeft.peft.adapter import State
from fedpeft.privacy.abilities import ProtectsUpdates
from fedpeft.privacy.mechanism import Mechanism
from fedpeft.privacy.noise import RunKey, read_key


@dataclass(frozen=True)
class Guard:
    """A mechanism at the point where updates leave a client.

    Attributes:
        mechanism: the mechanism.
        noise: noise multiplier of updates.
        key: returns the key; it is called at each release, because the key may be made late.
        start: noise multiplier of the release before round 1; None: there is none.
    """

    mechanism: Mechanism
    noise: float
    key: Callable[[], RunKey]
    start: float | None = None

    def protect_update(self, update: State, ids: tuple[int, int, int]) -> State:
        """Return the update, clipped and noised if the mechanism does that to whole updates.

        Args:
            update: the client's update.
            ids: round, attempt and client, which select the noise.
        """
        if not isinstance(self.mechanism, ProtectsUpdates):
            return update
        return self.mechanism.protect_update(update, self.noise, self.key(), ids)

    def protect_statistics(self, statistics: State, ids: tuple[int, int]) -> State:
        """Return what a client sends of its statistics before round 1.

        Args:
            statistics: the client's statistics.
            ids: attempt and client, which select the noise.

        Raises:
            PrivacyError: the settings allow no release before round 1.
        """
        if not self.mechanism.noises_updates:
            return statistics
        if self.start is None:
            raise PrivacyError(
                f"FP7037 {self.mechanism.name} does not protect the head's statistics here; use --head zero"
            )
        return self.mechanism.start_release.protect(statistics, self.start, self.key(), ids)


@dataclass(frozen=True)
class ClientPrivacy:
    """The settings of a mechanism that clients need; they can be pickled.

    On an edge machine the key is the client's own.

    Attributes:
        mechanism: the mechanism.
        noise: noise multiplier of updates.
        key: file of the key.
        start: noise multiplier of the release before round 1; None: there is none.
    """

    mechanism: Mechanism
    noise: float
    key: Path
    start: float | None = None

    def guard(self) -> Guard:
        """Build the guard that applies the mechanism."""
        return Guard(self.mechanism, self.noise, lambda: read_key(self.key), self.start)

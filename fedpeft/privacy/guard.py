"""The mechanism at a client: what clips and noises an update before it leaves."""

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
    """A mechanism where updates leave a client; `key` is read when something is released, as it may be made late.

    `start` is the noise multiplier of what is released before round 1; None: nothing is.
    """

    mechanism: Mechanism
    noise: float
    key: Callable[[], RunKey]
    start: float | None = None

    def protect_update(self, update: State, ids: tuple[int, int, int]) -> State:
        """The update, clipped and noised where the mechanism does that to whole updates.

        `ids`: round, attempt and client, whose noise it is.
        """
        if not isinstance(self.mechanism, ProtectsUpdates):
            return update
        return self.mechanism.protect_update(update, self.noise, self.key(), ids)

    def protect_statistics(self, statistics: State, ids: tuple[int, int]) -> State:
        """What a client sends of its statistics before round 1; `ids`: attempt and client, whose noise it is.

        Raises:
            PrivacyError: nothing is to be released before round 1.
        """
        if not self.mechanism.noises_updates:
            return statistics
        if self.start is None:
            raise PrivacyError(f"FP7037 {self.mechanism.name} does not protect sums over rows here; take --head zero")
        return self.mechanism.start_release.protect(statistics, self.start, self.key(), ids)


@dataclass(frozen=True)
class ClientPrivacy:
    """What clients need for privacy, and can be pickled: the mechanism, noise multipliers, and the file of their key.

    On an edge machine the key is the client's own.
    """

    mechanism: Mechanism
    noise: float
    key: Path
    start: float | None = None

    def guard(self) -> Guard:
        """The mechanism at work."""
        return Guard(self.mechanism, self.noise, lambda: read_key(self.key), self.start)

"""Local DP on updates: a client hides all of its data from everyone, including the server.

    released = clip(update, C) + z * 2 C gauss

A clipped update lies in a ball of radius C, whatever the client's data are. So any two of them are at most 2 C apart.
This is the sensitivity, which z is relative to. Nothing is amplified, because the server knows who answers. Each
participation is one release with q = 1 on the client's own account. All later steps are post-processing, so every
strategy works. The noise is large: use this mechanism if you trust no server and have few parameters or many clients.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from fedpeft.peft.adapter import State, compute_norm
from fedpeft.privacy.accountant import Event
from fedpeft.privacy.exposure import Exposure
from fedpeft.privacy.ledger import Charges
from fedpeft.privacy.mechanism import Mechanism
from fedpeft.privacy.noise import RunKey, draw_gaussian
from fedpeft.privacy.start_release import StartRelease


@dataclass(frozen=True)
class LocalDP(Mechanism):
    """Clipped and noised updates."""

    privacy_unit: ClassVar[str] = "client"
    neighbours: ClassVar[str] = "any other data at one client (replace)"
    sampling: ClassVar[str] = "none: the server sees whose update it is, and nothing is amplified"
    start_release: ClassVar[StartRelease] = StartRelease(clips_clients=True, sensitivity=2.0)

    def units(self, exposure: Exposure) -> int:
        """Return the number of clients."""
        return exposure.clients

    def plan_releases(self, exposure: Exposure) -> list[tuple[float, int]]:
        """Return one release for each round that a client takes part in."""
        return [(1.0, int(count)) for count in sorted(set(exposure.participations.tolist())) if count]

    def charges(self, exposure: Exposure, cohort: Sequence[int], noise: float) -> Charges:
        """Return one release for each client."""
        return {client: (Event(noise, 1.0), 1) for client in cohort}

    def protect_update(self, update: State, noise: float, key: RunKey, ids: tuple[int, ...]) -> State:
        """Return clip(update, C) + z 2 C gauss.

        Values that are not finite count as 0: no factor could clip them, and they would reveal something about the
        data.

        Args:
            update: the client's update.
            noise: z, at least 0.
            key: what the noise is drawn from.
            ids: round, attempt and client, which select the noise.
        """
        update = {name: tensor.nan_to_num(nan=0.0, posinf=0.0, neginf=0.0) for name, tensor in update.items()}
        length = compute_norm(update)
        factor = min(1.0, self.clip / length) if length else 1.0
        stream, deviation = key.stream("local noise", *ids), noise * 2 * self.clip
        return {name: tensor * factor + deviation * draw_gaussian(stream, tensor) for name, tensor in update.items()}


part = LocalDP

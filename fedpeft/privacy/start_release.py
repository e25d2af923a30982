"""The release of clients' statistics for the start of the head, before round 1: who clips, and who adds noise."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from fedpeft.aggregation.head_start import VARIANCE
from fedpeft.peft.adapter import State, compute_norm
from fedpeft.privacy.noise import RunKey, draw_gaussian


@dataclass(frozen=True)
class StartRelease:
    """The places at which statistics are clipped and noised; those of a bounded head have norm 1 for each example.

    Attributes:
        by_clients: whether each client clips and adds noise of its own; else the server, or a sum under masks, adds one
            noise for all.
        clips_clients: whether all statistics of a client are clipped to norm 1, as one vector.
        sensitivity: the largest distance of two clipped contributions, 1 or 2; noise is in proportion.
    """

    by_clients: bool = True
    clips_clients: bool = False
    sensitivity: float = 1.0

    def compute_deviation(self, noise: float, clients: int) -> float:
        """Return the standard deviation of the noise in each entry of the sum over all clients."""
        return self.sensitivity * (noise * math.sqrt(clients)) if self.by_clients else noise

    def protect(self, statistics: State, noise: float, key: RunKey, ids: tuple[int, ...]) -> State:
        """Return what a client sends of its statistics; `ids` are attempt and client."""
        if not self.by_clients:
            return statistics
        return add_noise(self._clip(statistics), self.sensitivity * noise, key.stream("start noise", *ids))

    def take(self, statistics: State) -> State:
        """Return what the server adds to the sum for a client's statistics."""
        return statistics if self.by_clients else self._clip(statistics)

    def finish(self, total: State, noise: float, key: RunKey, attempt: int) -> State:
        """Return the sum over clients, with noise if the server adds it."""
        return total if self.by_clients else add_noise(total, noise, key.stream("start noise", attempt))

    def _clip(self, statistics: State) -> State:
        return clip_block(statistics) if self.clips_clients else statistics


def add_noise(statistics: State, deviation: float, stream: np.random.Generator) -> State:
    """Return statistics of a bounded head with noise of this standard deviation in each entry.

    The entry `VARIANCE` reports the variance of the noise.
    """
    found = {n: t + deviation * draw_gaussian(stream, t) for n, t in statistics.items() if n != VARIANCE}
    return found | {VARIANCE: statistics[VARIANCE] + deviation**2}


def clip_block(statistics: State) -> State:
    """Return a client's statistics, clipped as one vector to norm 1; values that are not finite count as 0."""
    block = {n: t.nan_to_num(nan=0.0, posinf=0.0, neginf=0.0) for n, t in statistics.items() if n != VARIANCE}
    factor = 1 / max(1.0, compute_norm(block))
    return {name: tensor * factor for name, tensor in block.items()} | {VARIANCE: statistics[VARIANCE]}

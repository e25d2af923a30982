"""Precision that changes: how many bits per parameter each client of a cohort spends on its update.

Rules stand in front of a codec whose precision can be set, and are applied one after the other:

    over_time(high=2.0) | by_rows | lowrank(share=0.5) | adaptive(bits=0.5) | rans

All clients start from the codec's own bits. The server computes the bits when it draws a cohort, and sends each client
its own number. It remembers nothing for that but the training losses so far.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

Bits = dict[int, float]
"""Bits per parameter, by client."""

LOWEST, HIGHEST = 0.1, 10.0
"""Limits of the bits that rules give; a codec has limits of its own, see `Codec.set_bits`."""


@dataclass(frozen=True)
class Situation:
    """The facts that the server has when it draws a cohort.

    Attributes:
        losses: the mean training loss of each round so far, oldest first.
        weights: aggregation weight of each client of the cohort, above 0.
        speeds: speed of each client's uplink, above 0, in any unit.
    """

    losses: Sequence[float]
    weights: Mapping[int, float]
    speeds: Mapping[int, float]


class PrecisionRule(ABC):
    """A precision rule: a part. Subclasses are frozen dataclasses; their fields are the user's settings."""

    reads_losses: ClassVar[bool] = False
    """Whether the rule depends on the clients' training losses."""

    @abstractmethod
    def bits(self, bits: Bits, situation: Situation) -> Bits:
        """Return the bits of each client, given the bits without this rule."""


def limit_bits(bits: Bits) -> Bits:
    """Return the bits, none below `LOWEST` or above `HIGHEST`."""
    return {client: min(HIGHEST, max(LOWEST, b)) for client, b in bits.items()}

"""Precision that changes: how many bits a parameter each client of a cohort spends on its update.

Rules stand in front of a codec whose quantizer has a precision to set, and are applied one after the other:

    over_time(high=2.0) | by_rows | lowrank(share=0.5) | adaptive(bits=0.5) | rans

All clients start from the codec's own bits. The server works the bits out when it draws a cohort and sends each client
its own; nothing but the training losses so far is remembered.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

from fedpeft.families import PRECISION_RULES as PRECISION_RULES

Bits = dict[int, float]
"""Bits a parameter, by client."""

LOWEST, HIGHEST = 0.1, 10.0
"""Bits that no rule goes beyond; a codec has limits of its own, see `Codec.set_bits`."""


@dataclass(frozen=True)
class Situation:
    """What the server knows when it draws a cohort.

    Attributes:
        losses: the mean training loss of each round so far, oldest first.
        weights: aggregation weight of each client of the cohort, above 0.
        speeds: speed of each client's uplink, above 0, in any unit.
    """

    losses: Sequence[float]
    weights: Mapping[int, float]
    speeds: Mapping[int, float]


class PrecisionRule(ABC):
    """One rule: a part. Subclasses are frozen dataclasses; their fields are the user's settings."""

    reads_losses: ClassVar[bool] = False
    """Whether it goes by the clients' training losses."""

    @abstractmethod
    def bits(self, bits: Bits, situation: Situation) -> Bits:
        """The bits of each client, from what they would be without the rule."""


def limit_bits(bits: Bits) -> Bits:
    """The same bits, none below `LOWEST` or above `HIGHEST`."""
    return {client: min(HIGHEST, max(LOWEST, b)) for client, b in bits.items()}

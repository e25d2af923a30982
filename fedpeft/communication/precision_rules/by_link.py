"""Coarser updates over slow links: all uploads of a cohort take the same time, and its mean bits do not change.

A round lasts as long as its slowest upload. Speeds come from the clients' profiles (`link`), in any unit.
"""

from __future__ import annotations

from dataclasses import dataclass

from fedpeft.communication.precision_rule import Bits, PrecisionRule, Situation, limit_bits


@dataclass(frozen=True)
class ByLink(PrecisionRule):
    """Bits in proportion to the speed of the client's link."""

    def bits(self, bits: Bits, situation: Situation) -> Bits:
        """Return b_k speed_k / (the cohort's mean speed); clipping can move the mean."""
        mean = sum(situation.speeds[client] for client in bits) / len(bits)
        return limit_bits({client: b * situation.speeds[client] / mean for client, b in bits.items()})


part = ByLink

"""Finer updates from clients with a larger weight (DAdaQuant, Hoenig et al., arXiv 2111.00465, section 4.2).

    q_k = sqrt(a / b) w_k^(2/3),   a = sum w^(2/3),   b = sum w^2 / q^2

With q = 2^bits levels for all, these q_k levels give the aggregate the same variance with fewer levels in total. A
client's weight is its number of examples, unless the run weights all clients alike; then the rule changes nothing.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import log2, sqrt

from fedpeft.communication.precision_rule import Bits, PrecisionRule, Situation, limit_bits


@dataclass(frozen=True)
class ByRows(PrecisionRule):
    """The rule with log2(q_k) bits for client k."""

    def bits(self, bits: Bits, situation: Situation) -> Bits:
        """Return each client's bits, changed by log2(q_k / q)."""
        w = {client: situation.weights[client] for client in bits}
        a = sum(x ** (2 / 3) for x in w.values())
        b = sum(x**2 for x in w.values())  # in units of 1 / q^2
        return limit_bits({client: bits[client] + log2(sqrt(a / b) * w[client] ** (2 / 3)) for client in bits})


part = ByRows

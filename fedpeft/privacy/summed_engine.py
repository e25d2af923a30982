"""A mechanism whose noise is in sums under masks, at work in one run: two claims, and no noise that is used twice.

Accounts are those of clients, as the server knows them: each sum that a client was asked for counts. What those who see
the models alone have learned follows from the number of sums, and is told beside it.

A sum that is formed again may be of other clients, who have dropped out or have not; the difference of two sums with
equal noise would be one client's. So what is tried again, after a kill, has new noise, a new cohort and a new charge.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from fedpeft.communication.round_plan import RoundPlan
from fedpeft.privacy.accountant import Event, epsilon, rdp_epsilon
from fedpeft.privacy.engine import PrivacyEngine
from fedpeft.privacy.ledger import Charges
from fedpeft.privacy.mechanisms.distributed_dp import DistributedDP
from fedpeft.privacy.secure_sum.cohorts import FEWEST
from fedpeft.privacy.secure_sum.shared_noise import SharedNoise


class SummedEngine(PrivacyEngine):
    """The mechanism, its ledger and its key; see `PrivacyEngine`."""

    mechanism: DistributedDP

    @property
    def sums(self) -> SharedNoise:
        """How sums are formed, with the noise in them."""
        return self.mechanism.sums_of(self.federation, self.noise, self.start)

    def start_cost(self) -> Charges:
        """What the release before round 1 costs."""
        assert self.start is not None
        return self.mechanism.begun(self.federation, self.start)

    def enter(self, round: int, state: str, drawn: Sequence[int]) -> RoundPlan | None:
        """Draw a cohort by secret coins, and charge it; None where its budget is spent, and the run is to end.

        With `at_budget=sit_out` whoever's budget is spent is left out; None where that is everyone.
        """
        coins = self.key.stream("cohort", round, self._sums_begun).random(self.federation.clients)
        heads = {int(k) for k in np.flatnonzero(coins < self.mechanism.share(self.federation))}
        cohort = [client for client in self._candidates(drawn) if client in heads]
        costs = dict(self.cost(cohort))
        spent = {client for client, (event, n) in costs.items() if not self._affordable(client, event, n)}
        if spent and (not self.sits_out or self._all_spent()):
            return None
        self.sat_out |= spent
        left = {client: cost for client, cost in costs.items() if client not in spent}
        if len(left) < FEWEST:  # of so few there is no sum, and nobody is asked
            left = {}
        attempt = self.ledger.charge(round, self._fingerprint(round, state), left, spent)
        return RoundPlan(round, list(left), attempt, tuple(sorted(spent)))

    def _candidates(self, drawn: Sequence[int]) -> Sequence[int]:
        """Who may be asked, ascending; a simulation's clients are all there, whoever is `drawn` in public."""
        return range(self.federation.clients)

    @property
    def _sums_begun(self) -> int:
        """In all of the run, those that led to nothing included."""
        return sum(1 for _ in self.ledger.charged())

    def _fingerprint(self, round: int, state: str) -> str:
        """Never that of another sum."""
        return super()._fingerprint(round, f"{state} {self._sums_begun}")

    # ----------------------------------------------------------------------------------------------------- the claims

    def _sums(self) -> list[int]:
        """The round of each sum that was begun."""
        return [round for round, _, _ in self.ledger.charged()]

    def told_to_all(self) -> float:
        """Epsilon against those who see the released models alone."""
        rounds = self._sums()
        starts = rounds.count(0)
        events = self.mechanism.to_all(self.federation, self.noise, self.start, starts, len(rounds) - starts)
        return epsilon(events, self.delta)

    def if_gaussian(self) -> tuple[float, float]:
        """Epsilon of the worst account if its noise were Gaussian, and as long: by RDP, and by PRV."""
        worst = max(self.ledger.spent.values(), key=lambda events: rdp_epsilon(events, self.delta), default={})
        first = None if self.start is None else self.start_cost()[0][0]
        left = math.sqrt(1 - self.mechanism.known)
        plain: dict[Event, int] = {}
        for event, count in worst.items():
            noise = self.start if self.start is not None and event == first else self.noise
            plain[Event(noise * left, event.rate)] = count
        return rdp_epsilon(plain, self.delta), epsilon(plain, self.delta)

    def terms(self) -> str:
        """One line for the start of a run."""
        sums, m = self.sums, self.mechanism
        line = super().terms().removesuffix("; clients have uniform weights")
        if sums.later is None:
            return f"{line}; {m.dropouts:.0%} of a cohort may drop out"
        return (
            f"{line}, on a grid of {m.bits} bits that lengthens it by {sums.later.growth - 1:.1%}; {m.dropouts:.0%} of "
            f"a cohort may drop out, and {m.collude:.0%} collude with the server, whom the budget is against"
        )

    def summary(self) -> Mapping[str, Any]:
        """What the run may claim, against the server and against all others; for `summary.json`."""
        found, mechanism = dict(super().summary()), self.mechanism
        rdp, prv = self.if_gaussian()
        found["privacy"] |= {
            "composition": "RDP at whole orders, upper bound, over all rounds and resumes",
            "against": "the server, who knows cohorts and the noise of those who collude with it",
            "epsilon_models": self.told_to_all(),
            "sat_out": None if self.draws else found["privacy"]["sat_out"],
            "epsilon_gaussian_rdp": rdp,
            "epsilon_gaussian_prv": prv,
            "collude": mechanism.collude,
            "dropouts": mechanism.dropouts,
        }
        return found

"""The accounts of a run: whose budget a release spends, at which delta, and what it costs.

    CommonAccounts     all alike: the mechanism states one budget and one delta, and costs follow from the settings
    DeclaredAccounts   real clients add noise of their own: each declares its costs, its budget and its delta
    SumAccounts        real clients share the noise of a sum: costs are common, and each declares a budget of its own

All three answer the same questions. `sits_out`: whether the run goes on without a client whose budget is spent; else it
ends. `fewest`: the fewest clients that a round needs.

The first ledger of a real client that adds noise is its own (`fedpeft.privacy.client_protection`). Only the client
knows its examples, and it refuses when its budget is spent. The server keeps a second ledger with what clients declare.
It charges that before it asks, and leaves out a client whose budget does not allow the charge. If a client's own ledger
contains more, the server adopts it: a client that crashed may have been charged twice.
"""

from __future__ import annotations

import math
from bisect import bisect_left
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

from fedpeft.errors import RunError
from fedpeft.privacy.accountant import Event, Events, is_within, merge_events
from fedpeft.privacy.declared_terms import LEAST_DELTA, DeclaredTerms
from fedpeft.privacy.exposure import Exposure
from fedpeft.privacy.ledger import POPULATION, Charges, Ledger
from fedpeft.privacy.mechanism import Mechanism
from fedpeft.privacy.secure_sum.cohorts import FEWEST

if TYPE_CHECKING:
    from fedpeft.privacy.noise_sources import NoiseLevels


class Limit(NamedTuple):
    """The largest `epsilon` that an account may spend, stated at `delta`."""

    epsilon: float
    delta: float


@dataclass(frozen=True)
class CommonAccounts:
    """One budget and one delta for all, which the mechanism states.

    Attributes:
        mechanism: states the budget, and what a release costs.
        exposure: what costs depend on.
        levels: the noise of the run.
    """

    mechanism: Mechanism
    exposure: Exposure
    levels: NoiseLevels
    fewest = 1

    @property
    def sits_out(self) -> bool:
        """Whether the run goes on without a client whose budget is spent."""
        return self.mechanism.at_budget == "sit_out"

    def limits_of(self, account: int) -> Sequence[Limit]:
        """Return the common limit, which an account must keep; empty: there is no budget."""
        budget = self.mechanism.epsilon
        return [] if budget is None else [Limit(budget, self.levels.delta)]

    def cost_of_round(self, cohort: Sequence[int]) -> Charges:
        """Return what a round with this cohort costs."""
        return self.mechanism.charges(self.exposure, cohort, self.levels.multiplier)

    def cost_of_start(self) -> Charges:
        """Return what the release before round 1 costs."""
        assert self.levels.start is not None
        return self.mechanism.start_charges(self.exposure, self.levels.start)

    def list_spent(self, ledger: Ledger) -> list[tuple[Events, float]]:
        """Return what each account has spent, and the common delta."""
        delta = self.levels.delta
        accounts: list[tuple[Events, float]] = [(events, delta) for events in ledger.spent.values()]
        if POPULATION not in ledger.spent:
            accounts += [({}, delta) for _ in range(self.exposure.clients - len(accounts))]
        return accounts

    def claims(self) -> Mapping[str, Any]:
        """Return nothing: the summary is right as it is."""
        return {}

    def is_declared(self, client: int) -> bool:
        """Return False: clients keep no ledgers of their own."""
        return False


@dataclass(frozen=True)
class DeclaredAccounts:
    """Real clients with noise of their own: the server's ledger contains what they declare.

    Attributes:
        declared: returns the terms of each client that has registered, by id.
        steps: returns the local steps that the server asks of a client, each one a release; 0: what it declares.
    """

    declared: Callable[[], Mapping[int, DeclaredTerms]]
    steps: Callable[[int], int]
    fewest = 1
    sits_out = True  # one client's spent budget does not end the others' federation

    def limits_of(self, account: int) -> Sequence[Limit] | None:
        """Return the limit that the client declares; None: it may not be charged at all."""
        terms = self.declared().get(account)
        return None if terms is None else _limit_in(terms)

    def cost_of_round(self, cohort: Sequence[int]) -> Charges:
        """Return what the registered clients of the cohort declare."""
        declared, costs = self.declared(), {}
        for client in cohort:
            if (terms := declared.get(client)) is not None:
                costs[client] = Event(terms.noise, terms.rate), self.steps(client) or terms.releases
        return costs

    def cost_of_start(self) -> Charges:
        """Return what the registered clients declare of their start."""
        return {
            client: (Event(terms.start, 1.0), 1) for client, terms in self.declared().items() if terms.start is not None
        }

    def list_spent(self, ledger: Ledger) -> list[tuple[Events, float]]:
        """Return the accounts of all registered clients; a charged client without known terms is unprotected."""
        declared = self.declared()
        known: list[tuple[Events, float]] = [
            (ledger.spent.get(client, {}), terms.delta) for client, terms in declared.items()
        ]
        return known + [({Event(0.0, 1.0): 1}, LEAST_DELTA) for _ in ledger.spent.keys() - declared.keys()]

    def claims(self) -> Mapping[str, Any]:
        """Return the largest delta and the least noise of all clients, for the summary."""
        declared = self.declared().values()
        return {
            "dp_delta": max((terms.delta for terms in declared), default=None),
            "noise_multiplier": min((terms.noise for terms in declared), default=None),
            "privacy": {
                "start_noise_multiplier": min((t.start for t in declared if t.start is not None), default=None),
                "kept_by": "the clients; this is the server's book of what they declared",
            },
        }

    def check_terms(self, terms: DeclaredTerms) -> None:
        """Accept any terms: each client's noise is its own."""

    def is_declared(self, client: int) -> bool:
        """Return whether a client has declared its terms."""
        return client in self.declared()


@dataclass(frozen=True)
class SumAccounts:
    """Real clients that share the noise of sums: costs are common, and each client declares a budget and a delta.

    A client that can't afford a sum is not asked for it, so that its share of the noise is not missing.

    Attributes:
        common: what a sum costs, and the common budget.
        rate: with which a unit is in a sum that its client is in.
        declared: returns the terms of each client that has registered, by id.
    """

    common: CommonAccounts
    rate: float
    declared: Callable[[], Mapping[int, DeclaredTerms]]
    fewest = FEWEST
    sits_out = True  # one client's spent budget does not end the others' federation

    def limits_of(self, account: int) -> Sequence[Limit] | None:
        """Return the common limit and the client's own; None: it may not be charged at all."""
        terms = self.declared().get(account)
        return None if terms is None else [*self.common.limits_of(account), *_limit_in(terms)]

    def cost_of_round(self, cohort: Sequence[int]) -> Charges:
        """Return what a sum of this cohort costs."""
        return self.common.cost_of_round(cohort)

    def cost_of_start(self) -> Charges:
        """Return what the sum before round 1 costs all registered clients."""
        declared = self.declared()
        return {client: cost for client, cost in self.common.cost_of_start().items() if client in declared}

    def list_spent(self, ledger: Ledger) -> list[tuple[Events, float]]:
        """Return what each account has spent, and the common delta."""
        return self.common.list_spent(ledger)

    def claims(self) -> Mapping[str, Any]:
        """Return whose ledger this is."""
        return {"privacy": {"kept_by": "the clients; this is the server's book of the sums that they were asked for"}}

    def is_declared(self, client: int) -> bool:
        """Return whether a client has declared its terms."""
        return client in self.declared()

    def check_terms(self, terms: DeclaredTerms) -> None:
        """Reject a client whose noise differs from that of the others.

        Raises:
            RunError: the client has computed another noise.
        """
        levels = self.common.levels
        own = (levels.multiplier, self.rate, levels.start)
        told = (terms.noise, terms.rate, terms.start)
        if any((a is None) != (b is None) or not math.isclose(a or 0, b or 0) for a, b in zip(own, told, strict=True)):
            raise RunError(
                "FP5162 this client has computed noise multiplier, sampling rate and noise of the start as "
                f"{told}, and the server as {own}, so their noise can't be summed; install the same versions of "
                "the libraries"
            )

    def describe_shortfall(self) -> str:
        """Return a sentence on clients whose own budgets pay for fewer rounds than are planned; empty: none."""
        if not self.common.levels.trains:
            return ""
        [(_, planned)] = self.common.mechanism.plan_releases(self.common.exposure)
        declared = self.declared()
        paid = {client: self._count_paid(client, terms, planned) for client, terms in declared.items()}
        few = sorted(rounds for rounds in paid.values() if rounds < planned)
        if not few:
            return ""
        span = f"{few[0]}" if few[0] == few[-1] else f"{few[0]} to {few[-1]}"
        return (
            f"the own budgets of {len(few)} of {len(declared)} clients pay for {span} rounds, and {planned} are "
            f"planned for each: they sit out the others, and with fewer than {FEWEST} clients left the run ends; ask "
            "them for a larger --max-epsilon or --max-delta, or begin again with fewer --rounds"
        )

    def _count_paid(self, client: int, terms: DeclaredTerms, planned: int) -> int:
        """Return for how many rounds, at most those planned, the budget pays that a client declares."""
        if terms.budget is None:
            return planned
        before: Events = {} if self.common.levels.start is None else dict([self.cost_of_start()[client]])
        event, _ = self.cost_of_round([client])[client]
        budget, delta = terms.budget, terms.delta

        def exceeds(rounds: int) -> bool:
            return not is_within(merge_events(before, {event: rounds}), delta, budget)

        return bisect_left(range(1, planned + 1), True, key=exceeds)


Accounts = CommonAccounts | DeclaredAccounts | SumAccounts
"""Whose budget the releases of a run spend, at which delta, and what they cost."""


def _limit_in(terms: DeclaredTerms) -> list[Limit]:
    return [] if terms.budget is None else [Limit(terms.budget, terms.delta)]

"""The server's ledger of real clients that share the noise of its sums: a second book beside each client's own.

It knows what a sum costs whom, since noise and grid follow from settings that all have in common, and of each client
what it declares: its own budget and delta. Whoever could not afford a sum is not asked for it, so that its share of the
noise is not missed.

A sum that was under way when the server was killed is gone on with: it has the same cohort, and no other charge.
"""

from __future__ import annotations

import math
from bisect import bisect_left
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from fedpeft.communication.messages import Report
from fedpeft.communication.round_plan import RoundPlan
from fedpeft.errors import RunError
from fedpeft.privacy.accountant import Event, Events, together, within
from fedpeft.privacy.exposure import Exposure
from fedpeft.privacy.ledger import Charges
from fedpeft.privacy.mechanisms.distributed_dp import DistributedDP
from fedpeft.privacy.remote_engine import Terms
from fedpeft.privacy.secure_sum.cohorts import FEWEST
from fedpeft.privacy.summed_engine import SummedEngine

SAYS = "client "
"""How fingerprints of charges begin that clients have told of."""


class SummedBook(SummedEngine):
    """The mechanism as the server of real clients sees it.

    Args:
        mechanism, federation, folder, identity, seed: as `PrivacyEngine`'s.
        declared: the terms of each client that has registered, by id.
        under_way: whom a server that was restarted has asked for the sum of a round; empty: nobody.

    Raises:
        PrivacyError: the settings would not protect, or the ledger was begun on other terms.
    """

    def __init__(
        self,
        mechanism: DistributedDP,
        federation: Exposure,
        folder: Path,
        identity: str,
        seed: int,
        declared: Callable[[], Mapping[int, Terms]],
        under_way: Callable[[int], Sequence[int]],
    ) -> None:
        self._declared, self._under_way = declared, under_way
        self.done: set[int] = set()
        super().__init__(mechanism, federation, folder, identity, seed)
        self.sits_out = True  # one client's spent budget does not end the others' federation

    def check_terms(self, terms: Terms) -> None:
        """Refuse a client whose noise would not be that of the others.

        Raises:
            RunError: it has worked out another one.
        """
        own = (self.noise, self.mechanism.rate(self.federation), self.start)
        told = (terms.noise, terms.rate, terms.start)
        if any((a is None) != (b is None) or not math.isclose(a or 0, b or 0) for a, b in zip(own, told, strict=True)):
            raise RunError(
                f"FP5162 this client has worked out noise multiplier, sampling rate and noise of the start as {told}, "
                f"and the server as {own}: their noise would not be in one sum; take the same versions of the libraries"
            )

    def start_cost(self) -> Charges:
        """Of all that have registered."""
        known = self._declared().keys()
        return {client: cost for client, cost in super().start_cost().items() if client in known}

    def enter_start(self, state: str) -> RoundPlan:
        """As `PrivacyEngine.enter_start`, of all that have registered."""
        if cohort := self._under_way(0):
            return self._again(0, cohort)
        asked, plan = self.start_cost().keys(), super().enter_start(state)
        return RoundPlan(0, [client for client in plan.cohort if client in asked], plan.attempt, plan.spent)

    def enter(self, round: int, state: str, drawn: Sequence[int]) -> RoundPlan | None:
        """As `SummedEngine.enter`; `drawn` are those that are there."""
        if cohort := self._under_way(round):
            return self._again(round, cohort)
        return super().enter(round, state, drawn)

    def _again(self, round: int, cohort: Sequence[int]) -> RoundPlan:
        """The round as it was opened last; charges that clients have told of since are no attempts of the server's."""
        told = [said.startswith(SAYS) for r, said, _ in self.ledger.charged() if r == round]
        opened = [attempt for attempt, by_client in enumerate(told) if not by_client]
        return RoundPlan(round, list(cohort), opened[-1] if opened else -1)

    def _candidates(self, drawn: Sequence[int]) -> Sequence[int]:
        return drawn

    def _affordable(self, account: int, event: Event, count: int) -> bool:
        terms = self._declared().get(account)
        if account in self.done or terms is None or not super()._affordable(account, event, count):
            return False
        return terms.budget is None or within(self.ledger.after(account, event, count), terms.delta, terms.budget)

    def too_little(self) -> str:
        """A sentence on clients whose own budgets pay for fewer rounds than are planned; empty: there are none."""
        if not self.trains:
            return ""
        [(_, planned)] = self.mechanism.planned(self.federation)
        declared = self._declared()
        paid = {client: self._paid(client, terms, planned) for client, terms in declared.items()}
        few = sorted(rounds for rounds in paid.values() if rounds < planned)
        if not few:
            return ""
        span = f"{few[0]}" if few[0] == few[-1] else f"{few[0]} to {few[-1]}"
        return (
            f"the own budgets of {len(few)} of {len(declared)} clients pay for {span} rounds, and {planned} are "
            f"planned for each: they sit out the others, and with fewer than {FEWEST} clients left the run ends; ask "
            "them for a larger --max-epsilon or --max-delta, or begin again with fewer --rounds"
        )

    def _paid(self, client: int, terms: Terms, planned: int) -> int:
        """For how many rounds, at most those planned, the budget pays that a client declares."""
        if terms.budget is None:
            return planned
        before: Events = {} if self.start is None else dict([self.start_cost()[client]])
        event, _ = self.cost([client])[client]
        budget, delta = terms.budget, terms.delta

        def spent(rounds: int) -> bool:
            return not within(together(before, {event: rounds}), delta, budget)

        return bisect_left(range(1, planned + 1), True, key=spent)

    def _all_spent(self) -> bool:
        """Whether there are too few left for a sum."""
        costs = self.cost(list(self._declared()))
        return sum(self._affordable(client, *cost) for client, cost in costs.items()) < FEWEST

    def heard(self, report: Report) -> None:
        """Take over what the client's own ledger says where that is more, and remember whose budget is spent."""
        if report.client not in self._declared():
            return
        if report.spent:
            self.done.add(report.client)
            self.sat_out.add(report.client)
        more = report.charged - self.ledger.releases(report.client)
        new = {report.client} & self.done - self.ledger.left_out
        if more > 0 or new:
            event, _ = self.cost([report.client])[report.client]
            says = f"{SAYS}{report.client} says {report.charged}" + (" and no more" if new else "")
            self.ledger.charge(report.round, says, {report.client: (event, more)} if more > 0 else {}, new)

    def _sums(self) -> list[int]:
        """But for what clients have said of their own ledgers, which is no sum."""
        return [round for round, fingerprint, _ in self.ledger.charged() if not fingerprint.startswith(SAYS)]

    def terms(self) -> str:
        """One line for the start of a run."""
        return f"{super().terms()}; each client keeps its own key and ledger, this server a second one"

    def summary(self) -> Mapping[str, Any]:
        """What the run may claim."""
        found = dict(super().summary())
        found["privacy"] |= {"kept_by": "the clients; this is the server's book of the sums that they were asked for"}
        return found

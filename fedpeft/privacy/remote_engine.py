"""The server's ledger of real clients that add noise themselves: a second book, kept by what they declare.

The first book of each account is its client's own (`fedpeft.privacy.client_engine`): only a client knows its rows,
draws its noise and refuses when its budget is spent. When it registers it says what a participation costs it, at which
delta, and what its budget is. The server charges that before it asks, leaves out whom the charge would take above its
budget, and takes over what clients report where their own books say more: a client that crashed may have been charged
twice.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fedpeft.communication.messages import Report
from fedpeft.errors import PrivacyError, RunError
from fedpeft.peft.adapter import State
from fedpeft.privacy.accountant import Event, Events
from fedpeft.privacy.engine import PrivacyEngine
from fedpeft.privacy.exposure import Exposure
from fedpeft.privacy.ledger import Charges
from fedpeft.privacy.mechanism import Mechanism

EACH_ITS_OWN = "each client's own"


LEAST_NOISE, MOST_NOISE = 0.01, 1e6
LEAST_RATE = 1e-12
LEAST_DELTA = 1e-15
MOST_RELEASES = 1_000_000
"""Of a participation. Within these bounds epsilon can be computed; no federation is near them."""


@dataclass(frozen=True)
class Terms:
    """What a client declares.

    Attributes:
        noise, rate: noise multiplier (0, or 0.01 to a million) and sampling rate (1e-12 to 1) of a release.
        releases: of one participation, 1 to a million.
        delta: that its epsilon is stated at, at least 1e-15 and below 1.
        budget: the largest epsilon that it spends, above 0; None: any.
        start: noise multiplier of its one release before round 1, as `noise`; None: there is none.

    Raises:
        RunError: something else.
    """

    noise: float
    rate: float
    releases: int
    delta: float
    budget: float | None
    start: float | None = None

    def __post_init__(self) -> None:
        for what, value, good, legal in (
            ("a noise multiplier", self.noise, self.noise == 0 or LEAST_NOISE <= self.noise <= MOST_NOISE,
             f"0, or {LEAST_NOISE:g} to {MOST_NOISE:g}"),
            ("a noise multiplier of the start", self.start,
             self.start is None or self.start == 0 or LEAST_NOISE <= self.start <= MOST_NOISE,
             f"0, or {LEAST_NOISE:g} to {MOST_NOISE:g}"),
            ("a sampling rate", self.rate, LEAST_RATE <= self.rate <= 1, f"{LEAST_RATE:g} to 1"),
            ("releases", self.releases, 1 <= self.releases <= MOST_RELEASES, f"1 to {MOST_RELEASES}"),
            ("dp_delta", self.delta, LEAST_DELTA <= self.delta < 1, f"{LEAST_DELTA:g} to 1"),
            ("a budget", self.budget, self.budget is None or 0 < self.budget < math.inf, "above 0"),
        ):  # fmt: skip
            if not good:
                raise RunError(
                    f"FP5161 the client declares {what} of {value:g}, of which no epsilon follows; legal: {legal}"
                )


class SecondBook(PrivacyEngine):
    """The mechanism as the server of real clients sees it.

    Args:
        mechanism, federation, folder, identity, seed: as `PrivacyEngine`'s.
        declared: the terms of each client that has registered, by id.
        steps: local steps that the server asks of a client, by id; 0: the client's own number.

    Raises:
        PrivacyError: the settings would not protect, or the ledger was begun on other terms.
    """

    def __init__(
        self,
        mechanism: Mechanism,
        federation: Exposure,
        folder: Path,
        identity: str,
        seed: int,
        declared: Callable[[], Mapping[int, Terms]],
        steps: Callable[[int], int],
    ) -> None:
        self._declared, self._steps = declared, steps
        self.done: set[int] = set()
        super().__init__(mechanism, federation, folder, identity, seed)
        self.sits_out = True  # one client's spent budget does not end the others' federation

    def _settle(self) -> tuple[float, float, float | None]:
        """Noise, delta and noise of the start; NaN: each has its own. What rows decide is checked where they are."""
        mechanism = self.mechanism
        if mechanism.epsilon is None and mechanism.noise_multiplier is None:
            mechanism.check(self.federation)
        if mechanism.per_example and self.federation.method.privacy == "refused":
            mechanism.check(self.federation)
        noise = math.nan if mechanism.noise_multiplier is None else mechanism.noise_multiplier
        delta = math.nan if mechanism.dp_delta is None else mechanism.dp_delta
        return noise, delta, math.nan if self.federation.start else None

    @property
    def start_share(self) -> float | None:
        """As the settings say; None: each client has its own."""
        return self.mechanism.start

    @property
    def trains(self) -> bool:
        """Unless all are told that starts have everything; else whoever has spent its budget sits out."""
        return self.mechanism.start != 1 or not self.federation.start

    def start_cost(self) -> Charges:
        """What those have declared that have registered."""
        return {
            client: (Event(terms.start, 1.0), 1)
            for client, terms in self._declared().items()
            if terms.start is not None
        }

    def budget(self, account: int) -> float | None:
        """The client's."""
        terms = self._declared().get(account)
        return 0.0 if terms is None else terms.budget

    def delta_of(self, account: int) -> float:
        """The client's.

        Raises:
            PrivacyError: an account of a client that is not known any more.
        """
        terms = self._declared().get(account)
        if terms is None:
            raise PrivacyError(f"FP7076 the ledger has an account of client {account}, which the list of clients lacks")
        return terms.delta

    def cost(self, cohort: Sequence[int]) -> Charges:
        """What those of the cohort have declared that have registered."""
        declared = self._declared()
        costs = {}
        for client in cohort:
            if (terms := declared.get(client)) is not None:
                releases = (self.mechanism.per_example and self._steps(client)) or terms.releases
                costs[client] = Event(terms.noise, terms.rate), releases
        return costs

    def accounts(self) -> list[tuple[Events, float]]:
        """Of all that have registered; one that was charged, and whose terms are not known any more, is unprotected."""
        declared = self._declared()
        known: list[tuple[Events, float]] = [
            (self.ledger.spent.get(client, {}), terms.delta) for client, terms in declared.items()
        ]
        return known + [({Event(0.0, 1.0): 1}, LEAST_DELTA) for _ in self.ledger.spent.keys() - declared.keys()]

    def heard(self, report: Report) -> None:
        """Take over what the client's own ledger says where that is more, and remember whose budget is spent."""
        terms = self._declared().get(report.client)
        if terms is None:
            return
        if report.spent:
            self.done.add(report.client)
            self.sat_out.add(report.client)
        more = report.charged - self.ledger.releases(report.client)
        new = {report.client} & self.done - self.ledger.left_out
        if more > 0 or new:
            says = f"client {report.client} says {report.charged}" + (" and no more" if new else "")
            charges = {report.client: (Event(terms.noise, terms.rate), more)} if more > 0 else {}
            self.ledger.charge(report.round, says, charges, new)

    def _affordable(self, account: int, event: Event, count: int) -> bool:
        return account not in self.done and super()._affordable(account, event, count)

    def _header(self) -> dict[str, Any]:
        plain = {"noise_multiplier": self.mechanism.noise_multiplier, "dp_delta": self.mechanism.dp_delta}
        if self.federation.start:
            plain["start_noise_multiplier"] = None
        return super()._header() | {name: EACH_ITS_OWN if v is None else v for name, v in plain.items()}

    def start_summed(self, total: State, attempt: int) -> State:
        """As it is: clients have noised it."""
        return total

    def plan(self) -> str:
        """Each client has its own."""
        return ""

    def terms(self) -> str:
        """One line for the start of a run."""
        m = self.mechanism
        budget = f"epsilon at most {m.epsilon:g}" if m.epsilon is not None else "no common budget"
        return (
            f"{m.name} by the clients themselves, per {m.hides}: {budget}; each keeps its own key and ledger, this "
            "server a second one; clients have uniform weights"
        )

    def summary(self) -> Mapping[str, Any]:
        """What the run may claim: the largest delta and the least noise of all clients, beside the worst epsilon."""
        found = dict(super().summary())
        declared = self._declared().values()
        found["dp_delta"] = max((terms.delta for terms in declared), default=None)
        found["noise_multiplier"] = min((terms.noise for terms in declared), default=None)
        found["privacy"] = {
            **found["privacy"],
            "start_noise_multiplier": min((t.start for t in declared if t.start is not None), default=None),
            "kept_by": "the clients; this is the server's book of what they declared",
        }
        return found

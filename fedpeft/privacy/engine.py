"""A privacy mechanism at work in one run: who may still take part, what is charged, and what can be claimed at the end.

`enter` opens a round: it looks at what the round would cost, leaves out clients whose budget is spent (or refuses),
charges the ledger, and only then says who is asked. The charge is on the disk before any instruction is sent.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from fedpeft.aggregation.aggregator import Aggregator
from fedpeft.aggregation.server_optimizer import ServerOptimizer
from fedpeft.aggregation.strategy import Strategy
from fedpeft.communication.messages import Report
from fedpeft.communication.round_plan import RoundPlan
from fedpeft.errors import PrivacyError
from fedpeft.peft.adapter import Layout, State
from fedpeft.privacy.accountant import Event, Events, epsilon, rdp_epsilon, within
from fedpeft.privacy.exposure import Exposure
from fedpeft.privacy.ledger import POPULATION, Charges, Ledger
from fedpeft.privacy.mechanism import MECHANISMS, Mechanism, ServerRound
from fedpeft.privacy.noise import RunKey, make_key, read_key
from fedpeft.privacy.spending import spending
from fedpeft.privacy.uncovered import LABELS, uncovered

LEDGER = "ledger.jsonl"
KEY = "privacy.key"
"""The run's files of these names; the key is nobody's but the run's."""


@dataclass(frozen=True)
class Guard:
    """A mechanism where updates leave a client; `key` is read when something is released, as it may be made late.

    `start` is the noise multiplier of what is released before round 1; None: nothing is.
    """

    mechanism: Mechanism
    noise: float
    key: Callable[[], RunKey]
    start: float | None = None

    def released(self, update: State, ids: tuple[int, int, int]) -> State:
        """The update, clipped and noised where the mechanism does that to whole updates.

        `ids`: round, attempt and client, whose noise it is.
        """
        if not self.mechanism.noises_updates:
            return update
        return self.mechanism.released(update, self.noise, self.key(), ids)

    def started(self, statistics: State, ids: tuple[int, int]) -> State:
        """What a client sends of its statistics before round 1; `ids`: attempt and client, whose noise it is.

        Raises:
            PrivacyError: nothing is to be released before round 1.
        """
        if not self.mechanism.noises_updates:
            return statistics
        if self.start is None:
            raise PrivacyError(f"FP7037 {self.mechanism.name} does not protect sums over rows here; take --head zero")
        return self.mechanism.start_released(statistics, self.start, self.key(), ids)


@dataclass(frozen=True)
class ClientPrivacy:
    """What clients need to know of the mechanism, as plain data: its text, the noise multipliers, and their key's file.

    On an edge machine the key is the client's own.
    """

    mechanism: str
    noise: float
    key: Path
    start: float | None = None

    def guard(self) -> Guard:
        """The mechanism at work."""
        return Guard(MECHANISMS.build(self.mechanism), self.noise, lambda: read_key(self.key), self.start)


class PrivacyEngine:
    """The mechanism, its ledger and its key.

    Args:
        mechanism: as the user describes it.
        federation: what costs depend on.
        folder: the run's; the ledger and the key lie in it.
        identity: what else a round's outcome depends on (settings, data, versions), in any form.
        seed: of the run.
        labels_of_rows: whether the names of classes are those that protected rows happen to have.

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
        labels_of_rows: bool = False,
    ) -> None:
        if mechanism.at_budget == "sit_out" and mechanism.epsilon is None:
            raise PrivacyError(f"FP7038 at_budget=sit_out needs a budget: give {mechanism.name} an epsilon, too")
        self.mechanism, self.federation = mechanism, federation
        self.identity, self.seed, self.labels_of_rows = identity, seed, labels_of_rows
        self.sits_out = mechanism.at_budget == "sit_out"
        self.folder = folder
        self.noise, self.delta, self.start = self._settle()

    def _settle(self) -> tuple[float, float, float | None]:
        """Noise multiplier, delta and the noise multiplier of the start, once the mechanism has been checked."""
        mechanism, federation = self.mechanism, self.federation
        mechanism.check(federation)
        return mechanism.multiplier(federation), mechanism.delta(federation), mechanism.start_noise(federation)

    @property
    def trains(self) -> bool:
        """Whether the start leaves anything for rounds of training."""
        return self.start is None or self.mechanism.trains(self.federation)

    # -------------------------------------------------------------------------------------------------- what is costed

    def budget(self, account: int) -> float | None:
        """The largest epsilon that an account may spend; None: any."""
        return self.mechanism.epsilon

    def delta_of(self, account: int) -> float:
        """The delta that an account's epsilon is stated at."""
        return self.delta

    def cost(self, cohort: Sequence[int]) -> Charges:
        """What a round with this cohort costs."""
        return self.mechanism.charges(self.federation, cohort, self.noise)

    def accounts(self) -> list[tuple[Events, float]]:
        """What each account has spent, and its delta; clients that never took part have spent nothing."""
        found: list[tuple[Events, float]] = [
            (events, self.delta_of(account)) for account, events in self.ledger.spent.items()
        ]
        if POPULATION not in self.ledger.spent:
            found += [({}, self.delta) for _ in range(self.federation.clients - len(found))]
        return found

    def open(self, resumed: bool) -> None:
        """Open the ledger and the key; a resumed run must have its ledger.

        Raises:
            PrivacyError: the ledger of a resumed run is gone, damaged, or was begun on other terms.
        """
        path = self.folder / LEDGER
        if resumed and not path.exists():
            raise PrivacyError(f"FP7039 {path} is missing, so what the run has spent is unknown; start a new run")
        mechanism = self.mechanism
        self.ledger = Ledger(path, self._header())
        self.sat_out = set(self.ledger.left_out)
        test = hashlib.sha256(f"fedpeft test key {self.seed}".encode()).digest() if mechanism.test_noise else None
        self.key: RunKey = make_key(self.folder / KEY, test)

    def _header(self) -> dict[str, Any]:
        """The terms of the ledger."""
        mechanism = self.mechanism
        return {
            "mechanism": mechanism.name,
            "unit": mechanism.hides,
            "neighbours": mechanism.neighbours,
            "sampling": mechanism.sampling,
            "clip": mechanism.clip,
            "noise_multiplier": self.noise,
            "dp_delta": self.delta,
            "test_noise": mechanism.test_noise,
            **({} if self.start is None else {"start_noise_multiplier": self.start}),
        }

    # -------------------------------------------------------------------------------------------------- before round 1

    def start_cost(self) -> Charges:
        """What the release before round 1 costs."""
        assert self.start is not None
        return self.mechanism.start_charges(range(self.federation.clients), self.start)

    @property
    def start_share(self) -> float | None:
        """The share of the budget that the start has; None: there is no start."""
        return None if self.start is None else self.mechanism.start_share(self.federation)

    def enter_start(self, state: str) -> RoundPlan:
        """Charge the release before round 1. Repeated with equal inputs it is charged once.

        Args:
            state: a digest of what the run starts from.

        Raises:
            PrivacyError: somebody's budget does not allow it, since what was released before had other inputs; and the
                run is not told to leave them out.
        """
        fingerprint, charges = self._fingerprint(0, state), self.start_cost()
        known = self.ledger.attempt(0, fingerprint)
        if known is None:
            spent = {account for account, (event, n) in charges.items() if not self._affordable(account, event, n)}
            if spent and not self.sits_out:
                raise PrivacyError(self._exceeded(0, min(spent)))
        else:
            spent = charges.keys() - self.ledger.accounts(0, known)
        charges = {account: charge for account, charge in charges.items() if account not in spent}
        attempt = self.ledger.charge(0, fingerprint, charges)
        cohort = [] if POPULATION in spent else [k for k in range(self.federation.clients) if k not in spent]
        return RoundPlan(0, cohort, attempt, tuple(sorted(spent)))

    def start_taken(self, statistics: State) -> State:
        """What of a client's statistics for the start goes into the sum."""
        return self.mechanism.start_taken(statistics)

    def start_summed(self, total: State, attempt: int) -> State:
        """The sum of all clients' statistics, as it may be used."""
        return total if self.start is None else self.mechanism.start_summed(total, self.start, self.key, attempt)

    # ------------------------------------------------------------------------------------------------------- a round

    def enter(self, round: int, state: str, drawn: Sequence[int]) -> RoundPlan | None:
        """Charge a round; None where nobody's budget allows another one.

        Args:
            round: from 1.
            state: a digest of what the round starts from.
            drawn: the cohort, ascending, where it is no secret; a secret one is drawn here.

        Raises:
            PrivacyError: the round would exceed somebody's budget, and the run is not told to leave them out.
        """
        mechanism, fingerprint = self.mechanism, self._fingerprint(round, state)
        asked = [] if mechanism.secret_cohort else list(drawn)
        charges = dict(self.cost(asked))
        known = self.ledger.attempt(round, fingerprint)
        if known is None:
            spent = {account for account, (event, n) in charges.items() if not self._affordable(account, event, n)}
            if spent and not self.sits_out:
                raise PrivacyError(self._exceeded(round, min(spent)))
            self.sat_out |= spent - {POPULATION}
        else:
            spent = charges.keys() - self.ledger.accounts(round, known)
        charges = {account: charge for account, charge in charges.items() if account not in spent}
        if spent and not charges and self._all_spent():
            return None
        attempt = self.ledger.charge(round, fingerprint, charges, spent - {POPULATION})
        if not mechanism.secret_cohort:
            return RoundPlan(round, [client for client in asked if client not in spent], attempt, tuple(sorted(spent)))
        coins = self.key.stream("cohort", round, attempt).random(self.federation.clients)
        rate = self.federation.cohort / self.federation.clients
        return RoundPlan(round, [int(client) for client in np.flatnonzero(coins < rate)], attempt)

    def heard(self, report: Report) -> None:
        """A client has answered; those that keep a ledger of their own say what is in it."""

    def _affordable(self, account: int, event: Event, count: int) -> bool:
        budget = self.budget(account)
        return budget is None or within(self.ledger.after(account, event, count), self.delta_of(account), budget)

    def _all_spent(self) -> bool:
        every = self.cost(range(self.federation.clients))
        return not any(self._affordable(account, event, count) for account, (event, count) in every.items())

    def _exceeded(self, round: int, account: int) -> str:
        who = "the population" if account == POPULATION else f"client {account}"
        spent = epsilon(self.ledger.spent.get(account, {}), self.delta_of(account))
        return (
            f"FP7040 round {round} would take {who} above its budget: epsilon {spent:.3g} of "
            f"{self.mechanism.epsilon:g} is spent; a new run with {self.mechanism.name}(at_budget=sit_out, ...) goes "
            "on without them"
        )

    def _fingerprint(self, round: int, state: str) -> str:
        """Of all that a round's outcome is a function of: what it starts from, the settings, data and key."""
        return hashlib.sha256(f"{self.identity} {self.key.name} {round} {state}".encode()).hexdigest()

    def aggregator(
        self,
        strategy: Strategy,
        optimizer: ServerOptimizer,
        layout: Layout,
        state: State,
        round: int,
        attempt: int,
        clip: float | None,
    ) -> Aggregator | None:
        """What takes the round's updates, where the mechanism acts at the server."""
        clip = self.mechanism.clip if clip is None else clip
        at = ServerRound(strategy, optimizer, layout, state, round, attempt, self.key, self.noise, clip)
        return self.mechanism.aggregator(at, self.federation)

    @property
    def guard(self) -> Guard:
        """The mechanism where updates leave clients that share this key."""
        return Guard(self.mechanism, self.noise, lambda: self.key, self.start)

    # ----------------------------------------------------------------------------------------------------- the claims

    def epsilons(self) -> tuple[float, float]:
        """Epsilon of the worst account, and of the median one (the upper, of an even number), each at its delta.

        Clients that never took part have spent nothing and count in the median.
        """
        bounded = sorted(((rdp_epsilon(*account), account) for account in self.accounts()), key=lambda pair: pair[0])
        if not bounded:
            return 0.0, 0.0
        worst, seen = 0.0, None
        for bound, account in reversed(bounded):
            if bound <= worst:  # it is never below epsilon: nor is that of those that follow
                break
            if account != seen:  # most are alike
                worst, seen = max(worst, epsilon(*account)), account
        return worst, epsilon(*bounded[len(bounded) // 2][1])

    @property
    def draws(self) -> bool:
        """Whether secret coins decide who is in a round, so that nobody may know who was: not where all are asked."""
        return self.mechanism.secret_cohort and self.federation.cohort < self.federation.clients

    def warnings(self) -> list[str]:
        """What the user should know before it starts."""
        found = []
        mechanism = self.mechanism
        if mechanism.test_noise:
            found.append("the noise comes from the run's seed (test_noise): this run protects nobody")
        if self.noise == 0:
            found.append("without noise nothing is protected: epsilon is infinite")
        if mechanism.epsilon is not None and mechanism.epsilon > 20:
            found.append(f"epsilon {mechanism.epsilon:g} is hardly a protection; below 10 is usual, 1 is strong")
        if mechanism.raw_metrics:
            found.append("clients report raw losses and row counts (raw_metrics), which epsilon does not cover")
        if self.labels_of_rows:
            found.append(
                f"{LABELS}, which epsilon does not cover; name them: file(..., labels='a,b,c'), or so with hf(...)"
            )
        return found

    def terms(self) -> str:
        """One line for the start of a run."""
        m = self.mechanism
        budget = f"epsilon {m.epsilon:g} at" if m.epsilon is not None else "epsilon reported at"
        return (
            f"{m.name}: {budget} dp_delta {self.delta:.2g} per {m.hides}, noise multiplier {self.noise:.4g}; clients "
            "have uniform weights"
        )

    def plan(self) -> str:
        """One line on what the budget is spent for; empty: for rounds alone."""
        return "" if self.start is None else spending(self.mechanism, self.federation, self.start)

    def summary(self) -> Mapping[str, Any]:
        """What the run may claim; for `summary.json`."""
        mechanism = self.mechanism
        worst, median = self.epsilons()
        return {
            "epsilon": worst,
            "epsilon_median": median,
            "dp_delta": self.delta,
            "noise_multiplier": self.noise,
            "privacy": {
                "mechanism": mechanism.name,
                "unit": mechanism.hides,
                "neighbours": mechanism.neighbours,
                "sampling": mechanism.sampling,
                "composition": "PRV, upper bound, over all rounds and resumes",
                "weighting": "uniform",
                "clip": mechanism.clip,
                "budget": mechanism.epsilon,
                "start_noise_multiplier": self.start,
                "start_share": self.start_share,
                "sat_out": sorted(self.sat_out),
                "not_covered": uncovered(mechanism, self.labels_of_rows),
                "test_noise": mechanism.test_noise,
            },
        }

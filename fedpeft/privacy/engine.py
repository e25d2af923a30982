"""A privacy mechanism at work in one run: who may still take part, what is charged, and the final claims.

One engine serves all runs. Two values decide what differs between runs: the accounts (`fedpeft.privacy.accounts`), and
the noise source (`fedpeft.privacy.noise_sources`). `enter` opens a round. It computes the cost of the round, leaves out
clients whose budget is spent (or refuses), charges the ledger, and only then returns the cohort. The charge is on the
disk before any instruction is sent.

    whose ledger                                     accounts            noise source
    a simulation, or a server that adds noise        CommonAccounts      DrawnNoise, or NoiseShares for sums
    a server whose clients add noise                 DeclaredAccounts    DrawnNoise(by_clients=True)
    a server whose clients share the noise of sums   SumAccounts         NoiseShares
    a real client (`client_protection`)              CommonAccounts      DrawnNoise, or NoiseShares for sums
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fedpeft.aggregation.aggregator import Aggregator
from fedpeft.aggregation.server_optimizer import ServerOptimizer
from fedpeft.aggregation.strategy import Strategy
from fedpeft.communication.messages import Report
from fedpeft.communication.round_plan import RoundPlan
from fedpeft.errors import PrivacyError
from fedpeft.peft.adapter import Layout, State
from fedpeft.privacy.abilities import AddsServerNoise, ServerRound
from fedpeft.privacy.accountant import Event, Events, epsilon, is_within, rdp_epsilon
from fedpeft.privacy.accounts import Accounts, CommonAccounts
from fedpeft.privacy.exposure import Exposure
from fedpeft.privacy.guard import Guard
from fedpeft.privacy.ledger import POPULATION, Ledger
from fedpeft.privacy.mechanism import Mechanism
from fedpeft.privacy.noise import RunKey, make_key
from fedpeft.privacy.noise_sources import REPORTED, DrawnNoise, NoiseShares, NoiseSource, settle_levels
from fedpeft.privacy.privacy_limits import LABELS, list_uncovered
from fedpeft.privacy.spending import describe_spending
from fedpeft.privacy.sum_mechanism import SumMechanism

if TYPE_CHECKING:
    from fedpeft.privacy.secure_sum.shared_noise import SharedNoise

LEDGER = "ledger.jsonl"
KEY = "privacy.key"
"""Names of the files in the run's folder. The key belongs to the run alone."""

EACH_ITS_OWN = "each client's own"
"""Placeholder in the first line of a ledger for noise that each real client chooses for itself."""


class PrivacyEngine:
    """The mechanism, its ledger and its key.

    Args:
        mechanism: the mechanism, as the user describes it.
        exposure: what costs depend on.
        folder: folder of the run, which holds the ledger and the key.
        identity: everything else that a round's outcome depends on (settings, data, versions), in any form.
        seed: seed of the run.
        accounts: whose budget is spent, at which delta, and what releases cost.
        noise_source: who adds the noise.
        labels_of_rows: whether the class names are those that happen to occur in protected examples.
        more_terms: further fields of the first line of the ledger.

    Attributes:
        sat_out: clients that were left out because their budget is spent.
        finished: clients whose own ledgers allow no more.
    """

    def __init__(  # noqa: PLR0913
        self,
        mechanism: Mechanism,
        exposure: Exposure,
        folder: Path,
        identity: str,
        seed: int,
        *,
        accounts: Accounts,
        noise_source: NoiseSource,
        labels_of_rows: bool = False,
        more_terms: Mapping[str, Any] | None = None,
    ) -> None:
        """Hold the parts and the noise levels; `open` opens the ledger and the key."""
        self.mechanism, self.exposure, self.folder = mechanism, exposure, folder
        self.identity, self.seed, self.labels_of_rows = identity, seed, labels_of_rows
        self.accounts, self.noise_source, self.more_terms = accounts, noise_source, more_terms or {}
        self.finished: set[int] = set()
        levels = noise_source.levels
        self.noise_multiplier, self.delta, self.start, self.trains = (
            levels.multiplier,
            levels.delta,
            levels.start,
            levels.trains,
        )

    @property
    def sums(self) -> SharedNoise | None:
        """The settings of sums under masks that contain the noise; None: there are no such sums."""
        return self.noise_source.sums

    def open(self, resumed: bool) -> None:
        """Open the ledger and the key; a resumed run must have its ledger.

        Raises:
            PrivacyError: the ledger of a resumed run is gone, damaged, or was begun on other terms.
        """
        path = self.folder / LEDGER
        if resumed and not path.exists():
            raise PrivacyError(f"FP7039 {path} is missing, so what the run has spent is unknown; start a new run")
        mechanism = self.mechanism
        self.ledger = Ledger(path, self._ledger_terms())
        self.sat_out = set(self.ledger.left_out)
        test = hashlib.sha256(f"fedpeft test key {self.seed}".encode()).digest() if mechanism.test_noise else None
        self.key: RunKey = make_key(self.folder / KEY, test)

    def _ledger_terms(self) -> dict[str, Any]:
        """Return the first line of the ledger, without its version."""
        mechanism = self.mechanism
        numbers = {"noise_multiplier": self.noise_multiplier, "dp_delta": self.delta}
        start = {} if self.start is None else {"start_noise_multiplier": self.start}
        return {
            "mechanism": mechanism.name,
            "unit": mechanism.privacy_unit,
            "neighbours": mechanism.neighbours,
            "sampling": mechanism.sampling,
            "clip": mechanism.clip,
            **{name: EACH_ITS_OWN if math.isnan(value) else value for name, value in numbers.items()},
            "test_noise": mechanism.test_noise,
            **{name: EACH_ITS_OWN if math.isnan(value) else value for name, value in start.items()},
            **self.more_terms,
        }

    # ------------------------------------------------------------------------------------------------------- a round

    def enter_start(self, state: str) -> RoundPlan:
        """Charge the release before round 1, and return the cohort.

        Args:
            state: a digest of the state that the run starts from.

        Raises:
            PrivacyError: an earlier release had other inputs, so that a budget does not allow this one, and the run may
                not continue without such clients.
        """
        return self.noise_source.charge_start(self, state)

    def enter(self, round_number: int, state: str, drawn: Sequence[int]) -> RoundPlan | None:
        """Charge a round, and return the cohort.

        Args:
            round_number: from 1.
            state: a digest of the state that the round starts from.
            drawn: the clients that the sampler has drawn, ascending; the key draws a secret cohort instead.

        Returns:
            The plan. None: no budget allows another round.

        Raises:
            PrivacyError: the round would exceed a budget, and the run may not continue without such clients.
        """
        return self.noise_source.charge_round(self, round_number, state, drawn)

    def record_report(self, report: Report) -> None:
        """Adopt the charges that a client's own ledger reports, if there are more, and remember a spent budget."""
        accounts, client = self.accounts, report.client
        if not accounts.is_declared(client):
            return
        if report.spent:
            self.finished.add(client)
            self.sat_out.add(client)
        more = report.charged - self.ledger.releases(client)
        new = {client} & self.finished - self.ledger.left_out
        if more > 0 or new:
            event, _ = accounts.cost_of_round([client])[client]
            says = f"{REPORTED}{client} says {report.charged}" + (" and no more" if new else "")
            self.ledger.charge(report.round, says, {client: (event, more)} if more > 0 else {}, new)

    def is_affordable(self, account: int, event: Event, count: int) -> bool:
        """Return whether an account may be charged with `count` releases."""
        limits = self.accounts.limits_of(account)
        if limits is None or account in self.finished:
            return False
        return all(is_within(self.ledger.after(account, event, count), delta, budget) for budget, delta in limits)

    def is_over(self) -> bool:
        """Return whether too few clients can afford another round."""
        costs, fewest = self.accounts.cost_of_round(range(self.exposure.clients)), self.accounts.fewest
        affordable = (account for account, cost in costs.items() if self.is_affordable(account, *cost))
        return len(list(islice(affordable, fewest))) < fewest

    def describe_excess(self, round_number: int, account: int) -> str:
        """Return a sentence on an account whose budget does not allow a round."""
        who = "the population" if account == POPULATION else f"client {account}"
        spent = epsilon(self.ledger.spent.get(account, {}), self.delta)
        return (
            f"FP7040 round {round_number} would take {who} above its budget: epsilon {spent:.3g} of "
            f"{self.mechanism.epsilon:g} is spent; a new run with {self.mechanism.name}(at_budget=sit_out, ...) goes "
            "on without them"
        )

    def fingerprint(self, round_number: int, state: str) -> str:
        """Return a digest of all that a round's outcome depends on: its start, the settings, data and key."""
        return hashlib.sha256(f"{self.identity} {self.key.name} {round_number} {state}".encode()).hexdigest()

    # ------------------------------------------------------------------------------------------- noise at the server

    def clip_statistics(self, statistics: State) -> State:
        """Return the part of a client's statistics for the start that goes into the sum."""
        return self.mechanism.start_release.take(statistics)

    def finish_statistics(self, total: State, attempt: int) -> State:
        """Return the sum of all clients' statistics, as it may be used."""
        if self.start is None:
            return total
        return self.mechanism.start_release.finish(total, self.start, self.key, attempt)

    def aggregator(
        self,
        strategy: Strategy,
        optimizer: ServerOptimizer,
        layout: Layout,
        state: State,
        round_number: int,
        attempt: int,
        clip: float | None,
    ) -> Aggregator | None:
        """Return the aggregator of the round's updates if the mechanism acts at the server; else None."""
        if not isinstance(self.mechanism, AddsServerNoise):
            return None
        clip = self.mechanism.clip if clip is None else clip
        at = ServerRound(
            strategy, optimizer, layout, state, round_number, attempt, self.key, self.noise_multiplier, clip
        )
        return self.mechanism.aggregator(at, self.exposure)

    @property
    def guard(self) -> Guard:
        """The mechanism at clients that share this key."""
        return Guard(self.mechanism, self.noise_multiplier, lambda: self.key, self.start)

    @property
    def has_secret_draws(self) -> bool:
        """Whether secret coins draw the cohort, so that nobody may know it; not if all clients are asked."""
        return self.mechanism.secret_cohort and self.exposure.cohort < self.exposure.clients

    # ----------------------------------------------------------------------------------------------------- the claims

    def epsilons(self) -> tuple[float, float]:
        """Return epsilon of the worst account and of the median one (the upper of an even number), each at its delta.

        Clients that never took part have spent nothing and count in the median.
        """
        return worst_and_median(self.accounts.list_spent(self.ledger))

    def warnings(self) -> list[str]:
        """Return what the user should know before the run starts."""
        found = []
        mechanism = self.mechanism
        if mechanism.test_noise:
            found.append("the noise comes from the run's seed (test_noise): this run protects nobody")
        if self.noise_multiplier == 0:
            found.append("without noise nothing is protected: epsilon is infinite")
        if mechanism.epsilon is not None and mechanism.epsilon > 20:
            found.append(f"epsilon {mechanism.epsilon:g} is hardly a protection; below 10 is usual, 1 is strong")
        if mechanism.raw_metrics:
            found.append(
                "clients report raw losses and numbers of examples (raw_metrics), which epsilon does not cover"
            )
        if self.labels_of_rows:
            found.append(
                f"{LABELS}, which epsilon does not cover; name them: file(..., labels='a,b,c'), or so with hf(...)"
            )
        return found

    def describe(self) -> str:
        """Return one line for the start of a run."""
        return self.noise_source.describe()

    def describe_plan(self) -> str:
        """Return one line on what the budget is spent for; empty: for rounds alone, or by each client's own plan."""
        if self.start is None or math.isnan(self.start):
            return ""
        return describe_spending(self.mechanism, self.exposure, self.start)

    def summary(self) -> Mapping[str, Any]:
        """Return what the run may claim, for `summary.json`."""
        mechanism = self.mechanism
        worst, median = self.epsilons()
        claims: dict[str, Any] = {
            "epsilon": worst,
            "epsilon_median": median,
            "dp_delta": self.delta,
            "noise_multiplier": self.noise_multiplier,
            "privacy": {
                "mechanism": mechanism.name,
                "unit": mechanism.privacy_unit,
                "neighbours": mechanism.neighbours,
                "sampling": mechanism.sampling,
                "composition": "PRV, upper bound, over all rounds and resumes",
                "weighting": "uniform",
                "clip": mechanism.clip,
                "budget": mechanism.epsilon,
                "start_noise_multiplier": self.start,
                "start_share": self.noise_source.levels.start_share,
                "sat_out": sorted(self.sat_out),
                "not_covered": list_uncovered(mechanism, self.labels_of_rows),
                "test_noise": mechanism.test_noise,
            },
        }
        for more in (self.noise_source.claims(self), self.accounts.claims()):
            claims |= {**more, "privacy": claims["privacy"] | more.get("privacy", {})}
        return claims


def worst_and_median(accounts: Sequence[tuple[Events, float]]) -> tuple[float, float]:
    """Return epsilon of the worst account and of the median one (the upper of an even number); 0 without accounts.

    Args:
        accounts: what each has spent, and the delta that its epsilon is stated at.
    """
    bounded = sorted(((rdp_epsilon(*account), account) for account in accounts), key=lambda pair: pair[0])
    if not bounded:
        return 0.0, 0.0
    worst, seen = 0.0, None
    for bound, account in reversed(bounded):
        if bound <= worst:  # it is never below epsilon: nor is that of those that follow
            break
        if account != seen:  # most are alike
            worst, seen = max(worst, epsilon(*account)), account
    return worst, epsilon(*bounded[len(bounded) // 2][1])


def make_engine(
    mechanism: Mechanism, exposure: Exposure, folder: Path, identity: str, seed: int, labels_of_rows: bool = False
) -> PrivacyEngine:
    """Return the engine of a run that draws all of its noise: a simulation, or a server that adds noise itself.

    Args:
        mechanism: the mechanism, as the user describes it.
        exposure: what costs depend on.
        folder: folder of the run, which holds the ledger and the key.
        identity: everything else that a round's outcome depends on, in any form.
        seed: seed of the run.
        labels_of_rows: whether the class names are those that happen to occur in protected examples.

    Raises:
        PrivacyError: the settings would not protect.
    """
    levels = settle_levels(mechanism, exposure)
    noise_source: NoiseSource = DrawnNoise(mechanism, levels)
    if isinstance(mechanism, SumMechanism):
        noise_source = NoiseShares(mechanism, exposure, levels)
    return PrivacyEngine(
        mechanism,
        exposure,
        folder,
        identity,
        seed,
        accounts=CommonAccounts(mechanism, exposure, levels),
        noise_source=noise_source,
        labels_of_rows=labels_of_rows,
    )

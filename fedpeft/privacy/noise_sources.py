"""The source of a run's noise: who adds it, how much it is, and what repeating a round means.

    DrawnNoise    the server, or each client for itself
    NoiseShares   all clients of a sum under masks, a share each

`DrawnNoise` draws the noise of a round from its number and attempt. So a repeated round with equal inputs has equal
noise, and is charged once. A repeated sum under masks may have other clients, and the difference of two sums with equal
noise would be one client's contribution. So `NoiseShares` gives it new noise, a new cohort and a new charge.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from fedpeft.communication.round_plan import RoundPlan
from fedpeft.errors import PrivacyError
from fedpeft.privacy.abilities import AddsServerNoise, ProtectsUpdates
from fedpeft.privacy.accountant import Event, epsilon, rdp_epsilon
from fedpeft.privacy.exposure import Exposure
from fedpeft.privacy.ledger import POPULATION, Charges
from fedpeft.privacy.mechanism import Mechanism
from fedpeft.privacy.secure_sum.cohorts import FEWEST
from fedpeft.privacy.sum_mechanism import SumMechanism

if TYPE_CHECKING:
    from fedpeft.privacy.engine import PrivacyEngine
    from fedpeft.privacy.secure_sum.shared_noise import SharedNoise

REPORTED = "client "
"""Start of the fingerprints of charges that clients have reported."""


@dataclass(frozen=True)
class NoiseLevels:
    """The amount of noise in a run. NaN: each real client has its own.

    Attributes:
        multiplier: noise multiplier of the rounds, at least 0.
        delta: the delta that epsilon is stated at.
        start: noise multiplier of the release before round 1; None: there is no such release.
        start_share: share of the budget that this release has, if it is known.
        trains: whether any budget is left for rounds of training.
    """

    multiplier: float
    delta: float
    start: float | None
    start_share: float | None
    trains: bool


def settle_levels(mechanism: Mechanism, exposure: Exposure) -> NoiseLevels:
    """Check a mechanism and return the noise that it needs.

    Raises:
        PrivacyError: the settings would not protect.
    """
    check_mechanism(mechanism)
    mechanism.check(exposure)
    multiplier, delta = mechanism.multiplier(exposure), mechanism.delta(exposure)
    start = mechanism.start_noise(exposure)
    if start is None:
        return NoiseLevels(multiplier, delta, None, None, True)
    return NoiseLevels(multiplier, delta, start, mechanism.start_share(exposure), mechanism.trains(exposure))


def settle_declared_levels(mechanism: Mechanism, exposure: Exposure) -> NoiseLevels:
    """Return the noise that the settings state for real clients; each client checks what depends on its examples.

    Raises:
        PrivacyError: no client could be protected.
    """
    check_mechanism(mechanism)
    unknown = mechanism.epsilon is None and mechanism.noise_multiplier is None
    if unknown or (mechanism.per_example and exposure.method.privacy == "refused"):
        mechanism.check(exposure)
    return NoiseLevels(
        multiplier=math.nan if mechanism.noise_multiplier is None else mechanism.noise_multiplier,
        delta=math.nan if mechanism.dp_delta is None else mechanism.dp_delta,
        start=math.nan if exposure.start else None,
        start_share=mechanism.start,
        trains=mechanism.start != 1 or not exposure.start,
    )


def check_mechanism(mechanism: Mechanism) -> None:
    """Reject a mechanism that adds no noise, and one whose clients sit out without a budget.

    Raises:
        PrivacyError: the message names the mechanism and what it lacks.
    """
    at_clients = mechanism.per_example or isinstance(mechanism, ProtectsUpdates)
    elsewhere = isinstance(mechanism, (AddsServerNoise, SumMechanism))
    if not (at_clients if mechanism.noises_updates else elsewhere):
        needs = "example_sampling or protect_update" if mechanism.noises_updates else "aggregator, or be a SumMechanism"
        raise PrivacyError(
            f"FP7129 the mechanism {mechanism.name} adds no noise: with noises_updates={mechanism.noises_updates} it "
            f"must define {needs}"
        )
    if mechanism.at_budget == "sit_out" and mechanism.epsilon is None:
        raise PrivacyError(f"FP7038 at_budget=sit_out needs a budget: give {mechanism.name} an epsilon, too")


class NoiseSource(Protocol):
    """The interface of noise sources."""

    @property
    def levels(self) -> NoiseLevels:
        """The amount of noise."""

    @property
    def sums(self) -> SharedNoise | None:
        """The settings of sums under masks that contain the noise; None: there are no such sums."""

    def charge_start(self, engine: PrivacyEngine, state: str) -> RoundPlan:
        """Charge the release before round 1; see `PrivacyEngine.enter_start`."""

    def charge_round(self, engine: PrivacyEngine, number: int, state: str, drawn: Sequence[int]) -> RoundPlan | None:
        """Charge a round; see `PrivacyEngine.enter`."""

    def describe(self) -> str:
        """Return one line for the start of a run."""

    def claims(self, engine: PrivacyEngine) -> Mapping[str, Any]:
        """Return the fields of the summary that this source changes; `privacy` is merged."""


@dataclass(frozen=True)
class DrawnNoise:
    """Noise that a key gives for a round and its attempt: the server's, or each client's own.

    Attributes:
        mechanism: states the budget, and whether cohorts are secret.
        levels: the amount of noise.
        by_clients: whether real clients draw it, each with its own key and multiplier.
    """

    mechanism: Mechanism
    levels: NoiseLevels
    by_clients: bool = False
    sums = None

    def charge_start(self, engine: PrivacyEngine, state: str) -> RoundPlan:
        """Charge the release before round 1; equal inputs are charged once."""
        return charge_start_once(engine, state)

    def charge_round(self, engine: PrivacyEngine, number: int, state: str, drawn: Sequence[int]) -> RoundPlan | None:
        """Charge a round; equal inputs are charged once. A secret cohort is drawn after the charge."""
        fingerprint = engine.fingerprint(number, state)
        asked = [] if self.mechanism.secret_cohort else list(drawn)
        charges = dict(engine.accounts.cost_of_round(asked))
        known = engine.ledger.attempt(number, fingerprint)
        spent = find_spent(engine, number, charges, known)
        if known is None:
            engine.sat_out |= spent - {POPULATION}
        charges = {account: charge for account, charge in charges.items() if account not in spent}
        if spent and not charges and engine.is_over():
            return None
        attempt = engine.ledger.charge(number, fingerprint, charges, spent - {POPULATION})
        if not self.mechanism.secret_cohort:
            cohort = [client for client in asked if client not in spent]
            return RoundPlan(number, cohort, attempt, tuple(sorted(spent)))
        coins = engine.key.stream("cohort", number, attempt).random(engine.exposure.clients)
        rate = engine.exposure.cohort / engine.exposure.clients
        return RoundPlan(number, [int(client) for client in np.flatnonzero(coins < rate)], attempt)

    def describe(self) -> str:
        """Return the budget and, if the run chooses it, the noise."""
        m = self.mechanism
        if not self.by_clients:
            return f"{describe_noise(m, self.levels)}; clients have uniform weights"
        budget = f"epsilon at most {m.epsilon:g}" if m.epsilon is not None else "no common budget"
        return (
            f"{m.name} by the clients themselves, per {m.privacy_unit}: {budget}; each keeps its own key and ledger, "
            "this server a second one; clients have uniform weights"
        )

    def claims(self, engine: PrivacyEngine) -> Mapping[str, Any]:
        """Return no changes: the summary is right as it is."""
        return {}


def describe_dropouts(sums: SharedNoise, cohort: int) -> str:
    """Return how many clients of a cohort may drop out, with a hint if a share above 0 amounts to nobody."""
    permitted = sums.count_permitted_dropouts(cohort)
    line = f"{sums.dropouts:.0%} of a cohort may drop out ({permitted} of {cohort})"
    if permitted or not sums.dropouts:
        return line
    return f"{line[:-1]}: one that fails voids a sum; 1 may drop out from {math.ceil(1 / sums.dropouts)} clients on)"


@dataclass(frozen=True)
class NoiseShares:
    """Noise of sums under masks, a share from each client: two claims, and no noise that is used twice.

    The accounts are those of clients, as the server knows them: each sum that a client was asked for counts. The number
    of sums decides what the released models reveal; the summary reports that as well.

    Attributes:
        mechanism: decides noise and grid.
        exposure: what costs depend on.
        levels: the noise of all shares together.
        under_way: returns the clients of a round's sum that the server began before a restart; empty: there is no such
            sum. None: a simulation, whose clients are always present.
    """

    mechanism: SumMechanism
    exposure: Exposure
    levels: NoiseLevels
    under_way: Callable[[int], Sequence[int]] | None = None

    @property
    def sums(self) -> SharedNoise:
        """The settings of the sums, with the noise in them."""
        return self.mechanism.sums_of(self.exposure, self.levels.multiplier, self.levels.start)

    def charge_start(self, engine: PrivacyEngine, state: str) -> RoundPlan:
        """Charge the sum before round 1, unless it is under way."""
        if cohort := self._find_under_way(0):
            return self._continue(engine, 0, cohort)
        asked = engine.accounts.cost_of_start().keys()
        plan = charge_start_once(engine, self._mark(engine, state))
        return replace(plan, cohort=[client for client in plan.cohort if client in asked])

    def charge_round(self, engine: PrivacyEngine, number: int, state: str, drawn: Sequence[int]) -> RoundPlan | None:
        """Draw a cohort by secret coins and charge it, unless its sum is under way.

        Returns:
            The plan. None: a budget is spent and the run must end, or too few clients can afford another sum.
        """
        if cohort := self._find_under_way(number):
            return self._continue(engine, number, cohort)
        coins = engine.key.stream("cohort", number, count_begun(engine)).random(self.exposure.clients)
        heads = {int(k) for k in np.flatnonzero(coins < self.mechanism.share(self.exposure))}
        present = range(self.exposure.clients) if self.under_way is None else drawn
        costs = dict(engine.accounts.cost_of_round([client for client in present if client in heads]))
        spent = {client for client, cost in costs.items() if not engine.is_affordable(client, *cost)}
        if spent and (not engine.accounts.sits_out or engine.is_over()):
            return None
        engine.sat_out |= spent
        left = {client: cost for client, cost in costs.items() if client not in spent}
        if len(left) < FEWEST:  # too few for a sum: nobody is asked
            left = {}
        attempt = engine.ledger.charge(number, engine.fingerprint(number, self._mark(engine, state)), left, spent)
        return RoundPlan(number, list(left), attempt, tuple(sorted(spent)))

    def _mark(self, engine: PrivacyEngine, state: str) -> str:
        """Return the state with a unique mark for this sum."""
        return f"{state} {count_begun(engine)}"

    def _find_under_way(self, number: int) -> Sequence[int]:
        """Return the clients of the round's sum that is under way; empty: there is none."""
        return [] if self.under_way is None else self.under_way(number)

    def _continue(self, engine: PrivacyEngine, number: int, cohort: Sequence[int]) -> RoundPlan:
        """Return the plan of the sum that is under way, without another charge; reported charges are not attempts."""
        reported = [said.startswith(REPORTED) for r, said, _ in engine.ledger.list_charges() if r == number]
        opened = [attempt for attempt, by_client in enumerate(reported) if not by_client]
        return RoundPlan(number, list(cohort), opened[-1] if opened else -1)

    def describe(self) -> str:
        """Return the budget, the noise and the tolerated shares of dropouts and colluding clients."""
        sums, m = self.sums, self.mechanism
        line = describe_noise(m, self.levels)
        if sums.later is None:
            line = f"{line}; {describe_dropouts(sums, self.exposure.cohort)}"
        else:
            line = (
                f"{line}, on a grid of {m.bits} bits that lengthens it by {sums.later.growth - 1:.1%}; "
                f"{describe_dropouts(sums, self.exposure.cohort)}, and {m.collude:.0%} collude with the server, whom "
                "the budget is against"
            )
        if self.under_way is None:
            return line
        return f"{line}; each client keeps its own key and ledger, this server a second one"

    def claims(self, engine: PrivacyEngine) -> Mapping[str, Any]:
        """Return the claims against the server and against all others."""
        rdp, prv = self._epsilons_if_gaussian(engine)
        claims = {
            "composition": "RDP at whole orders, upper bound, over all rounds and resumes",
            "against": "the server, who knows cohorts and the noise of those who collude with it",
            "epsilon_models": self.epsilon_of_models(engine),
            "sat_out": None if engine.has_secret_draws else sorted(engine.sat_out),
            "epsilon_gaussian_rdp": rdp,
            "epsilon_gaussian_prv": prv,
            "collude": self.mechanism.collude,
            "dropouts": self.mechanism.dropouts,
        }
        return {"privacy": claims}

    def epsilon_of_models(self, engine: PrivacyEngine) -> float:
        """Return epsilon against those who see only the released models."""
        rounds = [number for number, said, _ in engine.ledger.list_charges() if not said.startswith(REPORTED)]
        starts = rounds.count(0)
        levels = self.levels
        events = self.mechanism.to_all(self.exposure, levels.multiplier, levels.start, starts, len(rounds) - starts)
        return epsilon(events, levels.delta)

    def _epsilons_if_gaussian(self, engine: PrivacyEngine) -> tuple[float, float]:
        """Return epsilon of the worst account if its noise were Gaussian and as large: by RDP, and by PRV."""
        levels, delta = self.levels, self.levels.delta
        worst = max(engine.ledger.spent.values(), key=lambda events: rdp_epsilon(events, delta), default={})
        first = None if levels.start is None else self.mechanism.start_charges(self.exposure, levels.start)[0][0]
        left = math.sqrt(1 - self.mechanism.known)
        plain: dict[Event, int] = {}
        for event, count in worst.items():
            noise = levels.start if levels.start is not None and event == first else levels.multiplier
            plain[Event(noise * left, event.rate)] = count
        return rdp_epsilon(plain, delta), epsilon(plain, delta)


def describe_noise(mechanism: Mechanism, levels: NoiseLevels) -> str:
    """Return the budget and the noise that a run chooses."""
    budget = f"epsilon {mechanism.epsilon:g} at" if mechanism.epsilon is not None else "epsilon reported at"
    return (
        f"{mechanism.name}: {budget} dp_delta {levels.delta:.2g} per {mechanism.privacy_unit}, noise multiplier "
        f"{levels.multiplier:.4g}"
    )


def count_begun(engine: PrivacyEngine) -> int:
    """Return the number of charges in the whole run, including those that led to nothing."""
    return sum(1 for _ in engine.ledger.list_charges())


def find_spent(engine: PrivacyEngine, number: int, charges: Charges, known: int | None) -> set[int]:
    """Return the accounts that a release leaves out because their budgets are spent.

    Args:
        engine: the budgets and the ledger.
        number: number of the round; 0 before round 1.
        charges: the cost of the release for each account.
        known: attempt of the same release that is already charged, which leaves out the same accounts; None: it is new.

    Raises:
        PrivacyError: a budget does not allow a new release, and the run may not continue without such clients.
    """
    if known is not None:
        return charges.keys() - engine.ledger.accounts(number, known)
    spent = {account for account, cost in charges.items() if not engine.is_affordable(account, *cost)}
    if spent and not engine.accounts.sits_out:
        raise PrivacyError(engine.describe_excess(number, min(spent)))
    return spent


def charge_start_once(engine: PrivacyEngine, state: str) -> RoundPlan:
    """Charge the release before round 1; equal inputs are charged once.

    Raises:
        PrivacyError: an earlier release had other inputs, so that a budget does not allow this one, and the run may not
            continue without such clients.
    """
    fingerprint, charges = engine.fingerprint(0, state), engine.accounts.cost_of_start()
    spent = find_spent(engine, 0, charges, engine.ledger.attempt(0, fingerprint))
    charges = {account: charge for account, charge in charges.items() if account not in spent}
    attempt = engine.ledger.charge(0, fingerprint, charges)
    cohort = [] if POPULATION in spent else [k for k in range(engine.exposure.clients) if k not in spent]
    return RoundPlan(0, cohort, attempt, tuple(sorted(spent)))

"""`--budget-megabytes` in the round loop: a limit on the traffic of a run, both ways.

Each round may use an equal part of what is left. If the usual updates do not fit, all clients send fewer bits; if the
fewest bits do not fit either, fewer clients take part. The run ends when not even one client fits. The hook acts after
the draw and before privacy charges: a client that it leaves out is neither asked nor charged.

What a client costs is predicted: its update is as long as one of random numbers, and earlier rounds correct the
prediction if it was too low. What serves evaluation alone is not counted, as in summary.json.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any, ClassVar, Final

from fedpeft.aggregation.abilities import Buffered
from fedpeft.communication.round_plan import RoundPlan
from fedpeft.errors import ConfigError, PrivacyError
from fedpeft.machine import seeds
from fedpeft.privacy.mechanism import CohortForm
from fedpeft.reporting.phrases import count_of
from fedpeft.rounds.dispatch import Broadcast
from fedpeft.rounds.exchange import Transport
from fedpeft.rounds.hooks import RECORD, EndOfRun, RoundHook
from fedpeft.rounds.progress import ServerState
from fedpeft.rounds.round_log import RoundLog
from fedpeft.wiring.setup import Setup

SHARES: Final = (1.0, 0.75, 0.5, 0.375, 0.25)
"""Shares of their usual bits that updates may take, in the order in which they are tried."""

MOST: Final = 2.0
"""Factor by which earlier rounds raise a prediction at most: a client that sends too much must not end the run."""

MEGABYTE: Final = 1_000_000
"""Number of bytes."""


class TrafficBudget(RoundHook):
    """Keeps the traffic of a run within its budget.

    Args:
        setup: the parts of the run.
        remote: whether the clients are on other machines.
        say: receives messages about clients that are left out.
    """

    name: ClassVar[str] = "budget_megabytes"

    def __init__(self, setup: Setup, remote: bool, say: Callable[[str], None]) -> None:
        """Hold the budget, and find out whether updates can be sent in fewer bits."""
        self.setup, self.remote, self.say = setup, remote, say
        self.budget = setup.config.budget_megabytes * MEGABYTE
        self.shares = SHARES if can_lower_bits(setup) else SHARES[:1]
        self.correction, self.left_out, self.fewer_bits = 1.0, 0, 0
        self._terms, self._predicted, self._dropped = "", 0.0, 0
        self._uplink: dict[tuple[float, frozenset[str]], float] = {}

    def open(self, state: ServerState | None) -> None:
        """Restore the counts and the correction."""
        if state is not None and (saved := state.hooks.get(self.name)):
            self.correction, self.left_out = saved["correction"], saved["left_out"]
            self.fewer_bits = saved["fewer_bits"]

    def get_checkpoint(self) -> dict[str, Any]:
        """Return the counts and the correction."""
        return {"correction": self.correction, "left_out": self.left_out, "fewer_bits": self.fewer_bits}

    def fingerprint(self) -> str:
        """Return the terms of the next round, which other totals would change."""
        return self._terms

    def select(self, plan: RoundPlan, state: ServerState) -> RoundPlan:
        """Lower the bits, and then leave clients out, until the round fits.

        Raises:
            EndOfRun: not even one client fits.
        """
        if plan.kind == "prepare":
            return plan
        left = self.budget - count_bytes(state)
        allowance = left / (self.setup.rounds - state.round)
        costs = self._predict(plan, state)
        share = next((share for share, cost in costs.items() if cost * len(plan.cohort) <= allowance), self.shares[-1])
        cost = costs[share]
        if cost > left:
            raise EndOfRun(
                f"another round would exceed --budget-megabytes {self.setup.config.budget_megabytes:g}: the run ends "
                f"after round {state.round}"
            )
        most = max(1, int(allowance // cost))
        cohort = draw_clients(plan.cohort, most, self.setup.config.seed, plan.number)
        self._dropped, self._predicted = len(plan.cohort) - len(cohort), cost * len(cohort)
        self._terms = f"{self.name} {share} {cohort}"
        if self._dropped:
            who = count_of(self._dropped, "client")
            self.say(f"round {plan.number}: {who} left out, because the traffic budget has no room for more")
        return replace(plan, cohort=cohort, bits_share=share)

    def measure(self, state: ServerState, log: RoundLog) -> None:
        """Record the round, and correct the predictions if they were too low."""
        used = log.result.uplink_bytes + log.result.downlink_bytes
        if self._predicted:
            self.correction = min(MOST, max(1.0, used / self._predicted) * self.correction)
        self.left_out += self._dropped
        self.fewer_bits += log.plan.bits_share < 1
        line = {
            "round": log.plan.number,
            "hook": self.name,
            "megabytes": (count_bytes(state) + used) / MEGABYTE,
            "bits_share": log.plan.bits_share,
            "left_out": self._dropped,
        }
        log.lines.setdefault(RECORD, []).append(line)

    def section(self, state: ServerState) -> dict[str, Any]:
        """Return the used part of the budget, and what the limit has cost."""
        return {
            "megabytes": self.setup.config.budget_megabytes,
            "used_megabytes": count_bytes(state) / MEGABYTE,
            "rounds_with_fewer_bits": self.fewer_bits,
            "turns_left_out": self.left_out,
        }

    def _predict(self, plan: RoundPlan, state: ServerState) -> dict[float, float]:
        """Return the bytes that a client costs in the next round, both ways, by share of the bits."""
        broadcast, clients = Broadcast(self.setup, state, self.remote, plan.steps), self.setup.clients
        down, shared = 0.0, broadcast.downlink.shared  # some strategies train other tensors in each round
        for share in self.shares:
            if (share, shared) not in self._uplink or not down:
                expected = broadcast.estimate_traffic(clients, share)
                self._uplink[share, shared] = expected.uplink_bytes / clients
                down = expected.downlink_bytes / clients
        return {share: self.correction * (self._uplink[share, shared] + down) for share in self.shares}


def count_bytes(state: ServerState) -> int:
    """Return the bytes that all rounds so far have sent, both ways."""
    return state.counters.uplink_bytes + state.counters.downlink_bytes


def draw_clients(cohort: list[int], most: int, seed: int, number: int) -> list[int]:
    """Return at most `most` clients of a cohort, ascending; all clients are equally likely to stay."""
    if len(cohort) <= most:
        return cohort
    order = seeds.create_generator(seed, "traffic budget", number).permutation(len(cohort))
    return sorted(cohort[place] for place in order[:most])


def can_lower_bits(setup: Setup) -> bool:
    """Return whether the codec of the updates has a precision to set."""
    try:
        setup.uplink.codec.set_bits(setup.uplink.codec.bits)
    except ConfigError:
        return False
    return True


def check(setup: Setup) -> None:
    """Refuse a budget for rounds whose clients the server must not choose, or cannot.

    Raises:
        ConfigError, PrivacyError: names what does not fit, and a remedy.
    """
    if not setup.config.budget_megabytes:
        return
    fixed_cohorts = (CohortForm.SECRET, CohortForm.TURNS)
    if setup.secure_sum is not None or (setup.mechanism is not None and setup.mechanism.cohort_form in fixed_cohorts):
        raise PrivacyError(
            "FP7128 --budget-megabytes leaves clients out of a round, and under --privacy "
            f"{setup.config.privacy} its cohort is a secret, or must stay as it is drawn; leave "
            "--budget-megabytes out, or use dp_sgd or local_dp"
        )
    if isinstance(setup.strategy, Buffered):
        raise ConfigError(
            f"FP1514 {setup.config.strategy} waits for updates of clients that other rounds have asked, and "
            "--budget-megabytes plans whole rounds; leave --budget-megabytes out, or choose another strategy"
        )


def attach(setup: Setup, transport: Transport, say: Callable[[str], None]) -> RoundHook | None:
    """Return the hook of a run with a budget."""
    return TrafficBudget(setup, transport.remote, say) if setup.config.budget_megabytes else None

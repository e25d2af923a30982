"""A privacy mechanism in the round loop: charge each round, add the server's noise, and hide what is secret."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from fedpeft.aggregation.aggregator import Aggregator
from fedpeft.communication.messages import Report
from fedpeft.communication.round_plan import RoundPlan
from fedpeft.privacy.engine import PrivacyEngine
from fedpeft.privacy.mechanism import CohortForm
from fedpeft.rounds.exchange import Transport
from fedpeft.rounds.hooks import EndOfRun, RoundHook
from fedpeft.rounds.progress import ServerState
from fedpeft.rounds.round_log import RoundLog
from fedpeft.wiring.setup import Setup


class PrivacyHook(RoundHook):
    """Charges each round before the first byte, and leaves out clients whose budget is spent.

    Args:
        setup: the parts of the run.
        engine: the mechanism, its ledger and its key.
        transport: reports how many clients have answered, unless the cohort is secret.
        say: receives messages about spent budgets.
    """

    def __init__(self, setup: Setup, engine: PrivacyEngine, transport: Transport, say: Callable[[str], None]) -> None:
        """Hold the engine; under a secret cohort, hide how many clients have answered."""
        self.setup, self.engine, self.transport, self.say = setup, engine, transport, say
        if engine.mechanism.secret_cohort:
            transport.answered = _hide_training(transport.answered)

    def open(self, state: ServerState | None) -> None:
        """Open the ledger and the key.

        Raises:
            PrivacyError: the ledger of a resumed run is missing or damaged, or was begun on other terms.
        """
        self.engine.open(resumed=state is not None)

    def ends(self, state: ServerState) -> str:
        """Return why the run ends: the start has used the whole budget."""
        return "" if self.engine.trains else "the start has the whole privacy budget: the run ends before round 1"

    def select(self, plan: RoundPlan, state: ServerState) -> RoundPlan:
        """Charge the round, and ask those who can afford it; a secret cohort is drawn here.

        Raises:
            EndOfRun: no budget allows another round.
            PrivacyError: a client's budget is spent, and the settings do not allow leaving such clients out.
        """
        if plan.kind == "prepare":
            start = self.engine.enter_start(plan.digest())
            return replace(plan, cohort=start.cohort, attempt=start.attempt, spent=start.spent)
        charged = self.engine.enter(plan.number, plan.digest(), plan.cohort)
        if charged is None:
            raise EndOfRun(f"the privacy budget is spent after {state.round} rounds: the run ends here")
        if charged.spent:
            named = ", ".join(map(self.transport.called, charged.spent))
            who = "a randomly drawn client" if self.engine.has_secret_draws else named
            self.say(f"round {plan.number}: the privacy budget of {who} is spent; it sits out")
        mechanism = self.engine.mechanism
        return replace(
            plan,
            cohort=charged.cohort,
            attempt=charged.attempt,
            spent=charged.spent,
            expected_cohort=self.engine.exposure.cohort if mechanism.secret_cohort else None,
            steps_without_updates=mechanism.cohort_form in (CohortForm.SECRET, CohortForm.TURNS),
        )

    def aggregator(self, inner: Aggregator, plan: RoundPlan, state: ServerState) -> Aggregator:
        """Replace the aggregator if the server adds the noise."""
        setup, optimizer = self.setup, self.setup.server_optimizer.slow_down(state.standing.rate)
        private = self.engine.aggregator(
            setup.strategy, optimizer, setup.layout, state.adapter, plan.number, plan.attempt, state.clip
        )
        return private or inner

    def note_report(self, report: Report) -> None:
        """Charge the budget that a real client reports as spent."""
        self.engine.record_report(report)

    def measure(self, state: ServerState, log: RoundLog) -> None:
        """Remove from the record what must stay secret.

        The server judges updates without noise if it adds the noise itself, so the number of rejected updates is
        private.
        """
        if not self.engine.mechanism.noises_updates:
            log.result = replace(log.result, rejected=0)
        if log.plan.expected_cohort is not None:
            log.result = log.result.hide_cohort(log.plan.expected_cohort)


def _hide_training(answered: Callable[[str, int, int], None]) -> Callable[[str, int, int], None]:
    """Return a listener that ignores training, whose cohort is secret."""

    def listen(phase: str, done: int, total: int) -> None:
        if phase != "train":
            answered(phase, done, total)

    return listen


def attach(
    setup: Setup, engine: PrivacyEngine | None, transport: Transport, say: Callable[[str], None]
) -> RoundHook | None:
    """Return the hook of a run with a mechanism."""
    return None if engine is None else PrivacyHook(setup, engine, transport, say)

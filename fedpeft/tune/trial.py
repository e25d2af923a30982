"""A trial in its own process: a run that reports each validated round, and ends at a rung that it does not pass."""

from __future__ import annotations

from pathlib import Path

from fedpeft.reporting.observer import RoundResult
from fedpeft.reporting.records import Records
from fedpeft.tune.store import GIVEN_UP, get_cost, open_running_trial

NOT_PASSED = 3
"""Exit code of a trial that did not pass a rung."""


class TrialPruned(BaseException):
    """The trial did not pass a rung."""


class Reporter:
    """A callback that reports the rounds of trial `number` to the search in `folder`."""

    def __init__(self, folder: Path, number: int) -> None:
        """Open the trial, and read which rounds it has already reported."""
        self.trial, terms = open_running_trial(folder, number)
        self.objective, self.rounds, self.cost = terms["objective"], terms["most"], get_cost(self.trial)
        self.reported_rounds = set(self.trial.study.get_trials(deepcopy=False)[number].intermediate_values)

    def catch_up(self, folder: Path) -> None:
        """Report rounds of the run in `folder` that a kill kept from being reported.

        Raises:
            TrialPruned: the trial did not pass a rung.
        """
        for entry in Records(folder).read("rounds.jsonl"):
            if entry["round"] > 0 and entry.get(self.objective) is not None:
                self._report_value(entry["round"], entry[self.objective])

    def round_done(self, result: RoundResult) -> None:
        """Report a finished and recorded round.

        Raises:
            TrialPruned: the trial did not pass a rung in this round.
        """
        value = getattr(result, self.objective)
        if value is not None:
            self._report_value(result.round, value)

    def _report_value(self, round_number: int, value: float) -> None:
        if round_number not in self.reported_rounds:
            self.reported_rounds.add(round_number)
            self.trial.report(value + self.cost, round_number)
        elif round_number < max(self.reported_rounds):
            return
        if round_number < self.rounds and self.trial.should_prune():
            self.trial.set_user_attr(GIVEN_UP, round_number)
            raise TrialPruned

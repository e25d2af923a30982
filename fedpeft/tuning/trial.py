"""A trial in its own process: a run that tells the search of every validated round, and ends where it does not pass."""

from __future__ import annotations

from pathlib import Path

from fedpeft.reporting.observer import RoundResult
from fedpeft.reporting.records import Records
from fedpeft.tuning.store import GIVEN_UP, open_running_trial

NOT_PASSED = 3
"""Exit code of a trial that has not passed a rung."""


class TrialPruned(BaseException):
    """The trial has not passed a rung."""


class Reporter:
    """Tells the search in `folder` of the rounds of its trial `number`."""

    def __init__(self, folder: Path, number: int) -> None:
        self.trial, terms = open_running_trial(folder, number)
        self.objective, self.rounds = terms["objective"], terms["most"]
        self.told = set(self.trial.study.get_trials(deepcopy=False)[number].intermediate_values)

    def catch_up(self, folder: Path) -> None:
        """Tell what rounds of the run in `folder` a kill has kept from being told.

        Raises:
            GivenUp: the trial had not passed.
        """
        for entry in Records(folder).read("rounds.jsonl"):
            if entry["round"] > 0 and entry.get(self.objective) is not None:
                self._tell(entry["round"], entry[self.objective])

    def round_done(self, result: RoundResult) -> None:
        """A round is finished and recorded.

        Raises:
            GivenUp: the trial has not passed a rung there.
        """
        value = getattr(result, self.objective)
        if value is not None:
            self._tell(result.round, value)

    def _tell(self, round_number: int, value: float) -> None:
        if round_number not in self.told:
            self.told.add(round_number)
            self.trial.report(value, round_number)
        elif round_number < max(self.told):
            return
        if round_number < self.rounds and self.trial.should_prune():
            self.trial.set_user_attr(GIVEN_UP, round_number)
            raise TrialPruned

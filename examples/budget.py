"""A hook of my own: end a run when its wall-clock budget is spent.

fedpeft simulate --plugin examples/budget.py --hook "budget(seconds=60)"
"""

from dataclasses import dataclass

from fedpeft.parts import setting
from fedpeft.rounds.user_hook import UserHook


@dataclass(frozen=True)
class Budget(UserHook):
    """A limit on the wall-clock time of all rounds, those before a resume included."""

    seconds: float = setting(3600.0, "wall-clock time of all rounds", above=0)

    def measure(self, state, log):
        """Add the time of this round, which a secret cohort hides."""
        self.memory["spent"] = self.memory.get("spent", 0.0) + (log.result.seconds or 0.0)
        self.record(log, spent_seconds=self.memory["spent"])

    def ends(self, state):
        """Return why the run ends, if the budget is spent."""
        if self.memory.get("spent", 0.0) < self.seconds:
            return ""
        budget = f"the budget of {self.seconds:g} seconds"
        return f"{budget} is spent: the run ends after round {state.round}"

    def section(self, state):
        """Return the section of summary.json and of the report."""
        spent = self.memory.get("spent", 0.0)
        return {"seconds": spent, "budget_seconds": self.seconds, "is_spent": spent >= self.seconds}


part = Budget

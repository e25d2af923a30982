"""What a cross-cutting feature may do in the round loop: the base class of all hooks.

A feature overrides the methods that it needs and holds its whole part of the loop in one module. The loop calls each
method on all hooks, in the order that `fedpeft.rounds.features` fixes. A method that returns a state, a plan or an
aggregator hands it on to the next hook.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, ClassVar, Final, Protocol, runtime_checkable

from fedpeft.aggregation.aggregator import Aggregator
from fedpeft.communication.messages import Report
from fedpeft.communication.round_plan import RoundPlan
from fedpeft.rounds.progress import ServerState

if TYPE_CHECKING:
    from fedpeft.rounds.round_log import RoundLog, StartLog

RECORD: Final = "hooks.jsonl"
"""Record file of the hooks' lines."""


class EndOfRun(Exception):  # noqa: N818 - not an error
    """A hook ends the run while it selects the cohort; the message is for the user."""


class RoundHook:
    """A feature of the round loop; every method does nothing by default."""

    name: ClassVar[str] = ""
    """Key of the hook's part of the checkpoint and of its section; unique among hooks that have either."""

    def open(self, state: ServerState | None) -> None:
        """Begin: `state` is the checkpoint of a resumed run; None: the run is new."""

    def get_checkpoint(self) -> dict[str, Any]:
        """Return the hook's part of the checkpoint as JSON values; `open` finds it in `state.hooks[name]`."""
        return {}

    def fingerprint(self) -> str:
        """Return the hook's part of the state's digest: what can change the outcome of the next round.

        A changed digest turns a repeated private round into a new attempt with a new charge.
        """
        return ""

    def ends(self, state: ServerState) -> str:
        """Return why the run ends before the next round; empty: it goes on. Nothing is drawn or charged yet."""
        return ""

    def after_start(self, state: ServerState, log: StartLog) -> ServerState:
        """Return the state before round 1."""
        return state

    def before_round(self, state: ServerState) -> ServerState:
        """Return the state that the next round begins with."""
        return state

    def select(self, plan: RoundPlan, state: ServerState) -> RoundPlan:
        """Return the plan of a round, or of the preparation, such as another cohort or a charge. Nothing is sent yet.

        Raises:
            EndOfRun: there is no next round.
        """
        return plan

    def aggregator(self, inner: Aggregator, plan: RoundPlan, state: ServerState) -> Aggregator:
        """Return an aggregator that wraps or replaces `inner`."""
        return inner

    def after_step(self, before: ServerState, after: ServerState, log: RoundLog) -> ServerState:
        """Return the state after the step from `before` to `after`; the hook may undo the step."""
        return after

    def measure(self, state: ServerState, log: RoundLog) -> None:
        """Write fields of `log.result`, and lines of record files that `fedpeft.reporting.records.LINES` names."""

    def before_commit(self, state: ServerState) -> ServerState:
        """Write files that must exist before the checkpoint, and return the state to save; may be repeated."""
        return state

    def section(self, state: ServerState) -> Mapping[str, Any] | None:
        """Return the hook's section of summary.json and of the report: JSON values by label; None: it has none.

        The loop calls it after the run, with the last state.
        """
        return None


@runtime_checkable
class NotesReports(Protocol):
    """A hook that sees each report, valid or not; it has this ability if it defines the method."""

    def note_report(self, report: Report) -> None:
        """Take note of a report, as soon as it has arrived; it may be refused later."""

"""Reports of clients in secure sums: statistics, answers and updates leave under masks, and nothing else does."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, ClassVar

from fedpeft.clients.evaluating import compute_contribution
from fedpeft.clients.stages import Answer, ClientRound, Reports, TrainedRound, is_summand, refuse_form
from fedpeft.clients.workbench import Workbench

from fedpeft.aggregation.head_start import HeadStart, convert_to_summands
from fedpeft.communication.messages import Instruction, Report
from fedpeft.errors import PrivacyError
from fedpeft.peft.adapter import State
from fedpeft.privacy.guard import Guard
from fedpeft.privacy.secure_sum.announcement import Announcement
from fedpeft.privacy.secure_sum.contribution import BESIDE, Contribution
from fedpeft.privacy.secure_sum.member import VECTORS
from fedpeft.privacy.sum_mechanism import SumMechanism

if TYPE_CHECKING:
    from fedpeft.clients.masking import Masking


class MaskedReports(Reports):
    """Reports under masks: the third step of a sum answers a server that asks to prepare, to evaluate or to train.

    Args:
        masking: the client's half of secure sums.
        guard: the privacy mechanism; None: there is none.
        head: decides which statistics can be summed.
    """

    parallel: ClassVar[bool] = False

    def __init__(self, bench: Workbench, masking: Masking, guard: Guard | None, head: HeadStart) -> None:
        """Hold the workbench, the masks, the privacy mechanism and the head."""
        self.bench, self.masking, self.guard, self.head = bench, masking, guard, head

    @property
    def answers(self) -> Mapping[str, Answer]:
        """The steps of a sum that reveal nothing of the client's examples."""
        return {"sum": self._take_steps}

    def _take_steps(self, instructions: Sequence[Instruction]) -> list[Report]:
        return [self.masking.answer(instruction) for instruction in instructions]

    @property
    def uses_newest_state(self) -> bool:
        """True for a real client: the server must not choose among its states."""
        return self.masking.identity is not None

    def choose_rate(self, own: float) -> float:
        """Return the rate on which all clients of a noisy sum agree."""
        return self.masking.compute_rate(own)

    def replay(self, instruction: Instruction) -> Report | None:
        """Return a real client's last answer if the instruction is the same; `Masking.answer` also repeats steps."""
        return None if instruction.kind == "sum" else self.masking.get_repeated_report(instruction)

    def check(self, instruction: Instruction) -> None:
        """Refuse to send without masks what the server may only see as a sum.

        Raises:
            PrivacyError: the instruction is not a step of a sum, or asks a real client a question.
        """
        if instruction.asks and self.masking.identity is not None:
            raise PrivacyError(
                "FP7001 the server asks a real client a question; a real client answers no questions under masks"
            )
        if instruction.kind != "sum" and not (is_summand(instruction) and instruction.step == VECTORS):
            refuse_form(instruction, "without masks")

    def report_statistics(self, instruction: Instruction, rows: int, measure: Callable[[], State]) -> Report:
        """Return the statistics for the start under masks; a sum that announces none counts the examples."""

        def contribute(announced: Announcement) -> Contribution:
            asked = announced.numbers > BESIDE or announced.size
            sums = convert_to_summands(self.head, measure()) if asked else {}
            mechanism = None if self.guard is None else self.guard.mechanism
            sums = mechanism.start_summand(sums) if isinstance(mechanism, SumMechanism) else sums
            return Contribution(self._get_weight(rows), rows, statistics=sums)

        return self.masking.add(instruction, contribute)

    def report_evaluation(self, client_round: ClientRound) -> Report:
        """Return the sums over held-out examples under masks."""
        given = compute_contribution(self.bench, client_round)
        return self.masking.add(client_round.instruction, lambda _: given)

    def report_update(self, client_round: TrainedRound, seconds: float, keep: Callable[[State], None]) -> Report:
        """Return the weighted update under masks."""
        keep(client_round.state)
        result, handed = client_round.result, client_round.hand_in(client_round.update)
        ordered = {name: handed[name] for name in client_round.layout.names if name in handed}
        given = Contribution(self._get_weight(result.rows), result.rows, result.loss, ordered)
        return self.masking.add(client_round.instruction, lambda _: given)

    def _get_weight(self, rows: int) -> float:
        """Return the weight that a client applies to its own update."""
        return float(rows) if self.masking.by_rows else 1.0

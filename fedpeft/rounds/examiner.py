"""`--measure evaluate` in the round loop: ask the global model questions every few rounds."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from fedpeft.models.answers.exam import Exam, Said
from fedpeft.peft.adapter import State
from fedpeft.rounds.hooks import RoundHook
from fedpeft.rounds.progress import ServerState
from fedpeft.rounds.round_log import RoundLog


@dataclass(frozen=True)
class Examiner(RoundHook):
    """Asks the global model the questions of `--measure evaluate`, every few rounds.

    Attributes:
        exam: the questions.
        every: number of rounds between two exams.
        rounds: number of rounds of the run; the last one always has an exam.
        answers: returns the answers of a global state on the base of a version.
        say: receives the measures.
    """

    exam: Exam
    every: int
    rounds: int
    answers: Callable[[Exam, State, int], list[Said]]
    say: Callable[[str], None]

    def measure(self, state: ServerState, log: RoundLog) -> None:
        """Write the line of evaluations.jsonl if it is time to."""
        number = log.plan.number
        if number % self.every and number != self.rounds:
            return
        line = self.build_line(state)
        measures = ", ".join(f"{name} {value:.3f}" for name, value in line.items() if name not in ("round", "answers"))
        self.say(f"round {number}: {measures} of {len(line['answers'])} questions")
        log.lines["evaluations.jsonl"] = [line]

    def build_line(self, progress: ServerState) -> dict[str, Any]:
        """Return the line of evaluations.jsonl: round, measures, and each question with right and given answers."""
        said = self.answers(self.exam, progress.reached_state, progress.residual.version)
        asked = [
            {"question": question.asked, "right": list(question.right), "said": texts[0]}
            for question, texts in zip(self.exam.questions, said, strict=True)
        ]
        return {"round": progress.round, **self.exam.compute_measures(said), "answers": asked}

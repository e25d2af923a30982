"""Robustness: the accuracy under typos, synonyms, small movements of embeddings, or corrupted images.

Questions to a language model are mistyped and put into other words, and their choices change places
(`fedpeft.trust.prompt_changes`).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from fedpeft.errors import ConfigError
from fedpeft.parts import setting
from fedpeft.wiring.exam import check_trust, declare_questions, load_exam
from fedpeft.wiring.measurement import Measurement, NewRun, ScoredRun

if TYPE_CHECKING:
    from fedpeft.models.answers.exam import Exam
    from fedpeft.wiring.setup import Setup


@dataclass(frozen=True)
class Robustness(Measurement):
    """The finished model on changed test examples (`fedpeft.trust.corruption`), in the worst of some draws."""

    rows: int = setting(300, "number of test examples, always the same", low=1)
    draws: int = setting(5, "draws of each change; an example counts with its worst", low=1, high=100)
    attack: bool = setting(True, "for texts: also move embeddings along the gradient (fedpeft.trust.embedding_attack)")
    questions: str = declare_questions()
    new_tokens: int = setting(40, "language models: the most tokens of a free answer", low=1)

    simulated: ClassVar[bool] = True
    of_kept_state: ClassVar[bool] = True

    def check(self, setup: Setup) -> None:
        """Reject tasks that have neither classes nor answers."""
        if check_trust(setup, self.name, self.questions):
            return
        if setup.facts.task != "classification":
            raise ConfigError("FP1313 robustness needs classes; leave it out of --measure")
        if setup.facts.kind == "clip":
            raise ConfigError("FP1734 robustness changes texts and images, not clips; leave it out of --measure")

    def begin(self, run: NewRun) -> Exam | None:
        """Read the questions to a language model, and refuse those that can't be put into other words."""
        from fedpeft.trust.prompt_changes import check_letters, frame_questions

        exam = load_exam(self, run, self.rows)
        if exam is not None:
            check_letters(exam.questions)
            frame_questions(exam.questions, "{}")
        return exam

    def compute(self, run: ScoredRun, answers: dict[str, Any]) -> Mapping[str, Any] | None:
        """Score the saved model on changed test examples."""
        from fedpeft.simulation.robustness import evaluate_robustness

        if run.begun is not None:
            from fedpeft.simulation.language import evaluate_prompts

            run.note_phase("robustness: changed questions to the base and to the saved model")
            return evaluate_prompts(self, run.begun, run.setup, run.folder)
        assert run.simulation is not None
        run.simulation.observer.phase("robustness: test examples that were changed", 1)
        return evaluate_robustness(self, run.setup, run.simulation.rows, run.folder)

    @classmethod
    def lines(cls, section: Mapping[str, Any]) -> dict[str, str]:
        """Return the accuracy on unchanged examples, and under the strongest change of each type in the worst draws."""
        if not (clean := section.get("clean")):
            return {}
        if "base" in section:
            return _compare_with_base(section)
        strongest = {kind: points[-1] for kind, points in section.items() if isinstance(points, list)}
        return {
            f"{kind} at {point['strength']:g}, worst draws": f"{clean['accuracy']:.4f} -> {point['worst']:.4f}"
            for kind, point in strongest.items()
        }


def _compare_with_base(section: Mapping[str, Any]) -> dict[str, str]:
    """Return the lines about a language model, beside its base."""
    base, rows = section["base"], section["rows"]

    def show(find: Callable[[Mapping[str, Any]], tuple[float, float]]) -> str:
        (before, after), (base_before, base_after) = find(section), find(base)
        return f"{before:.4f} -> {after:.4f} (base {base_before:.4f} -> {base_after:.4f})"

    strength = section["typos"][-1]["strength"]
    lines = {
        f"typos at {strength:g}, worst draws of {rows} questions": show(
            lambda of: (of["clean"]["accuracy"], of["typos"][-1]["worst"])
        ),
        "other words around a question, mean": show(lambda of: (of["clean"]["accuracy"], of["frames"]["accuracy"])),
        "other words around a question, worst": show(lambda of: (of["clean"]["accuracy"], of["frames"]["worst"])),
    }
    if "order" in section:
        lines["listed choices -> in every order"] = show(lambda of: (of["order"]["listed"], of["order"]["worst"]))
    return lines


part = Robustness

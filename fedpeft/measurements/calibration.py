"""Calibration: how well the finished model's confidence matches its accuracy, before and after scaling.

Scaling divides all logits by one temperature. The logits of a language model are the log-likelihoods of a question's
choices. A free answer has its own likelihood as confidence (`fedpeft.trust.answers`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from fedpeft.errors import ConfigError, DataError, PrivacyError
from fedpeft.parts import setting
from fedpeft.wiring.exam import check_trust, declare_questions, is_language_model, load_exam
from fedpeft.wiring.measurement import Measurement, NewRun, ScoredRun, TrainedRun

if TYPE_CHECKING:
    from fedpeft.models.answers.exam import Exam
    from fedpeft.trust.question import Question
    from fedpeft.wiring.setup import Setup

PLACES = ("auto", "server", "clients")

LEAST = 2
"""Fewest questions with choices: one for the temperature, one to measure."""

HALF = 0.5
"""Share of the examples that the model answers, in the line about a model that abstains."""


@dataclass(frozen=True)
class Calibration(Measurement):
    """Temperature, calibration errors, Brier's score and the risk-coverage curve (`fedpeft.trust.calibration`)."""

    rows: str = setting(
        "auto",
        "whose examples fit the temperature: the server's, or clients' held-out ones by sums; auto: the server's, if "
        "it has any",
        choices=PLACES,
    )
    bins: int = setting(15, "number of bins of confidence, equally wide", low=2, high=100)
    questions: str = declare_questions()
    most: int = setting(200, "language models: the most questions, always the same; 0: all", low=0)
    new_tokens: int = setting(40, "language models: the most tokens of a free answer", low=1)
    by_length: bool = setting(
        False, "language models: divide log-likelihoods by length, in characters of a choice or tokens of an answer"
    )

    of_kept_state: ClassVar[bool] = True

    def asks_clients(self, setup: Setup) -> bool:
        """Return whether the temperature is that of clients' held-out examples."""
        if is_language_model(setup):
            return False
        return self.rows == "clients" or (self.rows == "auto" and not setup.facts.judged)

    def check(self, setup: Setup) -> None:
        """Reject tasks without classes, and sums over clients' examples that privacy does not cover."""
        if check_trust(setup, self.name, self.questions):
            if self.rows != "auto":
                raise ConfigError(
                    f"FP1583 calibration(rows={self.rows}) is for classifiers, and this run tunes a language model, "
                    "which the questions calibrate; leave rows out"
                )
            return
        if setup.facts.task != "classification":
            raise ConfigError(
                f"FP1311 calibration needs classes, and {setup.facts.task.partition('(')[0]} has none; leave it out of "
                "--measure"
            )
        if not self.asks_clients(setup):
            return
        if setup.secure_sum is not None and setup.secure_sum.noisy:
            raise PrivacyError(
                "FP7093 calibration on clients' examples sums their measurements, which the noise of "
                f"{setup.config.privacy} does not cover; use calibration(rows=server) and "
                "validation(public=True), or leave it out of --measure"
            )
        if setup.mechanism is not None and setup.mechanism.silent:
            raise PrivacyError(
                "FP7094 calibration on clients' examples sums their measurements, which epsilon does not "
                "cover; use calibration(rows=server), with validation(public=True) if the validation set is "
                f"public, or allow it with {setup.mechanism.name}(raw_metrics=True, ...)"
            )

    def begin(self, run: NewRun) -> Exam | None:
        """Read the questions to a language model.

        Raises:
            DataError: there is one question with choices, and none is left to measure.
        """
        exam = load_exam(self, run, self.most)
        if exam is not None and exam.has_choices and len(exam.questions) < LEAST:
            raise DataError(
                "FP3262 calibration needs two questions or more with choices, and has one; give a file with more of "
                "them, or a larger most"
            )
        return exam

    def ask(self, run: TrainedRun) -> dict[str, Any]:
        """Calibrate on clients' held-out examples, if they are asked."""
        from fedpeft.rounds.calibration import calibrate_on_clients

        if not self.asks_clients(run.setup):
            return {}
        found = calibrate_on_clients(run.server.create_questions(run.state), self.bins)
        return {"temperature": found.pop("temperature"), "clients": found}

    def test_questions(self, temperature: float) -> Sequence[Question]:
        """Return the questions about the model as it is and with the temperature."""
        from fedpeft.trust.calibration import create_questions

        return create_questions(temperature, self.bins)

    def compute(self, run: ScoredRun, answers: dict[str, Any]) -> Mapping[str, Any] | None:
        """Compare before and after on the test examples of a simulation, and with several raters' labels."""
        from fedpeft.trust.calibration import compare_answers, create_questions
        from fedpeft.trust.raters import compare_with_raters

        if run.begun is not None:
            from fedpeft.simulation.language import evaluate_calibration

            run.note_phase("calibration: answers of the base and of the saved model")
            return evaluate_calibration(self, run.begun, run.setup, run.folder)
        score = run.score
        if run.simulation is None or score is None:
            return answers or None
        test = compare_answers(score.answers, create_questions(score.temperature, self.bins))
        section = {"temperature": score.temperature, **answers, "test": test}
        if raters := run.simulation.rows.dataset.raters:
            scores = score.scores
            found = compare_with_raters(raters, scores.predicted, scores.confidence, scores.scaled, self.bins)
            section |= {} if found is None else {"raters": found}
        return section

    @classmethod
    def lines(cls, section: Mapping[str, Any]) -> dict[str, str]:
        """Return errors and scores before and after the temperature."""
        if "base" in section:
            return _compare_with_base(section)
        lines: dict[str, str] = {}
        for whose, name in (("test", "test rows"), ("clients", "clients' held-out rows")):
            if found := section.get(whose):
                lines |= _compare(found["before"], found["after"], name)
        return lines | _compare_raters(section.get("raters"))


def _compare(before: Mapping[str, Any], after: Mapping[str, Any], rows: str) -> dict[str, str]:
    """Return the lines about some rows before and after the temperature."""
    pairs = {"class-wise calibration error": "classwise", "Brier score": "brier"}
    lines = {f"{name}, {rows}": f"{before[key]:.4f}; {after[key]:.4f} calibrated" for name, key in pairs.items()}
    risk = _find_risk(after)
    return lines if risk is None else lines | {f"wrong answers, surest half of the {rows}": f"{risk:.4f}"}


def _compare_with_base(section: Mapping[str, Any]) -> dict[str, str]:
    """Return the lines about a language model, beside its base."""
    base = section["base"]
    if answers := section.get("answers"):
        names = {"accuracy": "exact match", "confidence": "mean likelihood", "error": "calibration error"}
        rows = f"{answers['rows']} free answers"
        return {f"{name}, {rows}": f"{answers[key]:.4f} (base {base[key]:.4f})" for key, name in names.items()}
    rows = f"{section['test']['after']['rows']} questions"
    names = {"accuracy": "accuracy", "error": "calibration error", "brier": "Brier score"}
    lines = {}
    for key, name in names.items():
        before, after = (section["test"][when][key] for when in ("before", "after"))
        scaled = "" if key == "accuracy" else f"; {after:.4f} calibrated"
        shown = f"{base['before'][key]:.4f}" + ("" if key == "accuracy" else f"; {base['after'][key]:.4f} calibrated")
        lines[f"{name}, {rows}"] = f"{before:.4f}{scaled} (base {shown})"
    risks = [_find_risk(of["after"]) for of in (section["test"], base)]
    if None not in risks:
        lines[f"wrong answers, surest half of {rows}"] = f"{risks[0]:.4f} (base {risks[1]:.4f})"
    return lines | {f"temperature, from {section['fitted_on']} other questions": f"{section['temperature']:.3f}"}


def _find_risk(after: Mapping[str, Any]) -> float | None:
    """Return the share of wrong answers among the surest half."""
    answered = zip(after["coverage"], after["risk"], strict=True)
    return next((risk for coverage, risk in answered if coverage >= HALF), None)


def _compare_raters(found: Mapping[str, Any] | None) -> dict[str, str]:
    """Return the lines about the labels of several raters."""
    if not found:
        return {}
    error, ranks = found["share_error"], found["entropy"]
    lines = {"error against the share of raters' votes": f"{error['before']:.4f}; {error['after']:.4f} calibrated"}
    return lines | ({} if ranks is None else {"rank correlation of entropy and raters' spread": f"{ranks:.3f}"})


part = Calibration

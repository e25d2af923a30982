"""Laplace: how uncertain the adapter itself is, from Kronecker factors that clients sum up in one exchange.

A language model's factors are those of the server's questions with choices, half of which the other half predicts.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from fedpeft.errors import ConfigError, DataError, PrivacyError
from fedpeft.parts import setting
from fedpeft.wiring.exam import check_trust, declare_questions, is_language_model, load_exam
from fedpeft.wiring.measurement import Measurement, NewRun, ScoredRun, TrainedRun
from fedpeft.wiring.profiles import list_distinct

if TYPE_CHECKING:
    from fedpeft.models.answers.exam import Exam
    from fedpeft.wiring.setup import Setup


def has_kronecker_factors(setup: Setup) -> bool:
    """Return whether the whole adapter is LoRA matrices that inputs and output gradients of their layers describe."""
    adapter = [tensor for tensor in setup.layout.tensors if tensor.role != "head"]
    only_matrices = bool(adapter) and all(tensor.role in ("lora_A", "lora_B") for tensor in adapter)
    return only_matrices and setup.method.privacy == "hooks" and not setup.method.base_precision


@dataclass(frozen=True)
class Laplace(Measurement):
    """The finished classifier's calibration under Laplace-LoRA (`fedpeft.trust.kronecker`)."""

    rank: int = setting(10, "number of directions of the large Kronecker factor that are kept", low=1, high=4096)
    rows: int = setting(400, "number of predicted test examples, always the same; each takes a pass per class", low=1)

    questions: str = declare_questions("with choices")

    simulated: ClassVar[bool] = True
    of_kept_state: ClassVar[bool] = True

    def check(self, setup: Setup) -> None:
        """Reject adapters without Kronecker factors, and private runs, which would disclose them."""
        if check_trust(setup, self.name, self.questions):
            self._check_language(setup)
            return
        if setup.facts.task != "classification" or setup.facts.kind != "text" or not has_kronecker_factors(setup):
            raise ConfigError(
                "FP1317 laplace needs LoRA matrices in a classifier of texts; use --peft lora, or leave it out"
            )
        if len({profile.form for profile in list_distinct(setup.profiles)}) > 1:
            raise ConfigError("FP1318 laplace sums factors of one size; give all clients the same rank and alpha")
        if setup.strategy.fills_base:
            raise ConfigError(f"FP1319 {setup.config.strategy} moves a part of the adapter into the base; use flexlora")
        if setup.mechanism is not None or setup.secure_sum is not None:
            raise PrivacyError(
                "FP7095 laplace sums products of clients' activations and gradients, which --privacy does not cover; "
                "leave one of them out"
            )
        if setup.facts.tasks is not None:
            raise ConfigError("FP1348 laplace would see only the examples of the last task; leave it out of --measure")

    def _check_language(self, setup: Setup) -> None:
        """Reject language models without choices to predict, or without Kronecker factors."""
        if not self.questions or setup.task.translates or not has_kronecker_factors(setup):
            raise ConfigError(
                "FP1584 laplace of a language model needs LoRA matrices, a model without encoder and questions with "
                "choices; use --peft lora and laplace(questions='FILE.jsonl'), or leave it out of --measure"
            )
        if setup.strategy.fills_base:
            raise ConfigError(f"FP1319 {setup.config.strategy} moves a part of the adapter into the base; use flexlora")

    def begin(self, run: NewRun) -> Exam | None:
        """Read the questions to a language model.

        Raises:
            DataError: they have no choices, or there are fewer than two.
        """
        exam = load_exam(self, run, self.rows)
        if exam is not None and not (exam.has_choices and len(exam.questions) > 1):
            raise DataError(
                f"FP3266 laplace needs at least two questions with choices, and {self.questions} does not have them; "
                "give each line the column choices"
            )
        return exam

    def ask(self, run: TrainedRun) -> dict[str, Any]:
        """Ask clients for the factors, and predict test examples."""
        from fedpeft.simulation.laplace import evaluate_laplace

        if is_language_model(run.setup):
            return {}
        assert run.simulation is not None
        run.simulation.observer.phase("Laplace: Kronecker factors of all clients, and test examples", 1)
        state, _ = run.state.result
        return evaluate_laplace(self, run.server.create_questions(run.state), state, run.simulation.rows)

    def compute(self, run: ScoredRun, answers: dict[str, Any]) -> Mapping[str, Any] | None:
        """Predict every second question to a language model; a classifier's examples are predicted already."""
        if run.begun is None:
            return answers or None
        from fedpeft.simulation.language import evaluate_choice_laplace

        run.note_phase("Laplace: Kronecker factors of the questions, and answers")
        return evaluate_choice_laplace(self, run.begun, run.setup, run.adapter)

    @classmethod
    def lines(cls, section: Mapping[str, Any]) -> dict[str, str]:
        """Return error, loss and accuracy before and after."""
        before, after = section["map"], section["laplace"]
        rows = f"{before['rows']} {'questions' if 'fitted_on' in section else 'test rows'}"
        return {
            f"Laplace-LoRA, {rows}: error": f"{before['error']:.4f} -> {after['error']:.4f}",
            "Laplace-LoRA: loss (nats)": f"{before['loss']:.4f} -> {after['loss']:.4f}",
            "Laplace-LoRA: accuracy": f"{before['accuracy']:.4f} -> {after['accuracy']:.4f}",
        }


part = Laplace

"""Trust in a finished language model, beside its base without adapter: calibration, robustness, Laplace, exposure."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from fedpeft.aggregation.update import Fold
from fedpeft.clients.curvature import compute_kronecker_sums, compute_logit_gradients
from fedpeft.data.examples import Batch
from fedpeft.data.secrets import Secrets
from fedpeft.data.tokens import load_tokenizer
from fedpeft.machine import seeds
from fedpeft.models.answers.exam import Exam
from fedpeft.models.answers.likelihood import build_continuations
from fedpeft.models.answers.questions import Question
from fedpeft.models.quantized_base import quantize
from fedpeft.models.task import FederatedModel
from fedpeft.parts.families import METRICS, TASKS
from fedpeft.peft import saved_adapter
from fedpeft.peft.adapter import State
from fedpeft.simulation.ensemble import load_model, put
from fedpeft.trust.answers import EXACT, calibrate_choices, calibrate_free_answers, find_right
from fedpeft.trust.calibration import CalibrationResult
from fedpeft.trust.corruption import corrupt, list_corruptions, summarize_draws
from fedpeft.trust.exposure import bound_mean_exposure, compute_group_terms, measure_exposure
from fedpeft.trust.kronecker import Curvature, apply_probit, compute_covariance, find_best_variance, name_sums
from fedpeft.trust.prompt_changes import FRAMES, frame_questions, list_choices
from fedpeft.trust.questions.reliability import Reliability
from fedpeft.wiring.exam import get_form
from fedpeft.wiring.setup import Setup

if TYPE_CHECKING:
    from fedpeft.measurements.calibration import Calibration
    from fedpeft.measurements.exposure import Exposure
    from fedpeft.measurements.laplace import Laplace
    from fedpeft.measurements.robustness import Robustness

BASE, TUNED = "base", "tuned"

TYPOS = "typos"
"""The corruption of questions; its strengths are those of `fedpeft.trust.corruption`."""

RIGHT = "right"
"""Position of a question's right choice in a batch of its choices, (1,)."""

RELIABILITY = Reliability()


def iterate_models(setup: Setup, folder: Path) -> Iterator[tuple[str, FederatedModel]]:
    """Yield the base alone, and then the finished model in `folder`, in fp32; both share the base's weights."""
    base = setup.task.base(setup.model_directory, torch.float32)
    quantize(base, setup.method.base_precision)
    yield BASE, setup.task.model(base, None).eval()
    yield TUNED, saved_adapter.load(folder, setup.task, base, setup.facts.classes)


def measure_both(setup: Setup, folder: Path, measure: Callable[[FederatedModel, Any], Any]) -> dict[str, Any]:
    """Return the result of `measure`, of a model and its tokenizer, for the base and for the finished model."""
    tokenizer = load_tokenizer(setup.model_directory)
    return {name: measure(model, tokenizer) for name, model in iterate_models(setup, folder)}


# ---------------------------------------------------------------------------------------------------------- calibration


def evaluate_calibration(asked: Calibration, exam: Exam, setup: Setup, folder: Path) -> dict[str, Any]:
    """Return the calibration section of summary.json."""
    if not exam.has_choices:
        found = measure_both(
            setup,
            folder,
            lambda model, tokenizer: calibrate_free_answers(exam, model, tokenizer, asked.bins, asked.by_length),
        )
        return {"answers": found[TUNED], "base": found[BASE]}
    found = measure_both(
        setup, folder, lambda model, tokenizer: calibrate_choices(exam, model, tokenizer, asked.bins, asked.by_length)
    )
    tuned = found[TUNED]
    temperature, fitted_on = tuned.pop("temperature"), tuned.pop("fitted_on")
    return {"temperature": temperature, "fitted_on": fitted_on, "test": tuned, "base": found[BASE]}


# ----------------------------------------------------------------------------------------------------------- robustness


def evaluate_prompts(asked: Robustness, exam: Exam, setup: Setup, folder: Path) -> dict[str, Any]:
    """Return the robustness section of summary.json."""
    seed = setup.config.seed
    found = measure_both(
        setup, folder, lambda model, tokenizer: measure_prompts(asked.draws, exam, model, tokenizer, seed)
    )
    return {"rows": len(exam.questions), "draws": asked.draws, **found[TUNED], "base": found[BASE]}


def measure_prompts(draws: int, exam: Exam, model: FederatedModel, tokenizer: Any, seed: int) -> dict[str, Any]:
    """Return the measures of each change of the questions (`fedpeft.trust.corruption.summarize_draws`).

    Returns:
        `clean`, `typos` by strength, `frames`, and, of questions with choices, `order`: the choices are listed in the
        prompt, and every rotation of the list is a draw. `order` is compared with the list in its own order, whose
        accuracy is `listed`.
    """

    def summarize(
        strength: float,
        changed: Sequence[Sequence[Question]],
        clean: NDArray[Any],
        is_new: NDArray[np.bool_] | None = None,
    ) -> dict[str, float]:
        answers = [answer_questions(replace(exam, questions=tuple(one)), model, tokenizer) for one in changed]
        right = np.stack([are_right(one, said) for one, said in zip(changed, answers, strict=True)])
        return summarize_draws(strength, answers, clean, right, is_new)

    questions = exam.questions
    clean = answer_questions(exam, model, tokenizer)
    unchanged = summarize_draws(0.0, [clean], clean, are_right(questions, clean)[None])
    found: dict[str, Any] = {"clean": unchanged, TYPOS: []}
    (typos,) = (one for one in list_corruptions("text") if one.name == TYPOS)
    for strength in typos.strengths:
        changed = []
        for draw in range(draws):
            random = seeds.create_generator(seed, f"{TYPOS} {strength:g}", draw)
            texts = corrupt([question.asked for question in questions], typos, strength, random)
            changed.append([q.reword(str(text)) for q, text in zip(questions, texts, strict=True)])
        found[TYPOS].append(summarize(strength, changed, clean))
    found["frames"] = summarize(1.0, [frame_questions(questions, frame) for frame in FRAMES], clean)
    if exam.has_choices:
        counts = np.array([len(question.choices) for question in questions])
        most = int(counts.max())
        is_new = np.arange(most)[:, None] < counts  # later rotations of a shorter list repeat earlier ones
        rotated = [[list_choices(question, shift) for question in questions] for shift in range(most)]
        listed = answer_questions(replace(exam, questions=tuple(rotated[0])), model, tokenizer)
        found["order"] = {
            "listed": float(are_right(rotated[0], listed).mean()),
            **summarize(1.0, rotated, listed, is_new),
        }
    return found


def answer_questions(exam: Exam, model: FederatedModel, tokenizer: Any) -> NDArray[Any]:
    """Return the positions of the likeliest choices, int64 (questions,), or the texts of free answers."""
    if exam.has_choices:
        return np.array([int(scores.argmax()) for scores in exam.score_choices(model, tokenizer)], np.int64)
    return np.array([texts[0] for texts in exam.answer(model, tokenizer)], object)


def are_right(questions: Sequence[Question], answers: NDArray[Any]) -> NDArray[np.bool_]:
    """Return whether answers of `answer_questions` are right: the right choice, or an exact match."""
    if questions[0].choices:
        right: NDArray[np.bool_] = answers == find_right(questions)
        return right
    match = METRICS.build(EXACT)
    return np.array([match.score(text, q.right) == 1 for q, text in zip(questions, answers.tolist(), strict=True)])


# -------------------------------------------------------------------------------------------------------------- Laplace


def score_choices(model: FederatedModel, batch: Batch) -> tuple[Tensor, Tensor]:
    """Return log p of one question's choices as logits, (1, choices), and the position of the right one, (1,)."""
    rows = {name: tensor for name, tensor in batch.items() if name != RIGHT}
    return -TASKS.build("causal_lm").row_losses(model, rows).sums[None], batch[RIGHT]


def build_choice_batches(exam: Exam, tokenizer: Any) -> list[Batch]:
    """Return a batch of `score_choices` for each question."""
    batches = []
    for question, right in zip(exam.questions, find_right(exam.questions), strict=True):
        rows = build_continuations(tokenizer, [question], exam.delimiter)
        batches.append({**rows.batch(np.arange(len(rows))), RIGHT: torch.tensor([right])})
    return batches


def center(logits: Tensor, gradients: Mapping[str, Tensor]) -> tuple[Tensor, dict[str, Tensor]]:
    """Return logits (choices,) and their gradients (choices, out, in) without their means over the choices.

    Probabilities stay. The probit approximation divides each logit by a number of its own, which would reorder
    log-likelihoods, since these are all far below zero.
    """
    return logits - logits.mean(), {name: g - g.mean(0) for name, g in gradients.items()}


def evaluate_choice_laplace(asked: Laplace, exam: Exam, setup: Setup, state: State) -> dict[str, Any]:
    """Return the Laplace section of summary.json.

    The posterior is that of the adapter given the first, third, ... question; it predicts the others.
    """
    model, batches = load_model(setup), build_choice_batches(exam, load_tokenizer(setup.model_directory))
    put(model, state)
    sums = compute_kronecker_sums(model, batches[::2], score_choices)
    matrices = {t.name: state[t.name] for t in setup.layout.tensors if t.role in ("lora_A", "lora_B")}
    curvatures = {
        name: Curvature.from_sums(sums[inputs], sums[outputs], float(sums["tokens"]), asked.rank)
        for name, (inputs, outputs) in name_sums({name: tensor.shape for name, tensor in matrices.items()}).items()
    }
    variance = find_best_variance(curvatures, matrices, -float(sums["loss"]))
    totals = {"map": Fold(), "laplace": Fold()}
    most = max(len(question.choices) for question in exam.questions)
    for batch in batches[1::2]:
        logits, gradients = center(*compute_logit_gradients(model, batch, score_choices))
        covariance = compute_covariance(curvatures, gradients, variance, len(logits))
        for name, chances in (("map", logits.softmax(-1)), ("laplace", apply_probit(logits, covariance))):
            padded = torch.full((1, most), -torch.inf, dtype=torch.float64)
            padded[0, : len(chances)] = chances.log()
            totals[name].add(RELIABILITY.answer(padded, batch[RIGHT]), 1.0)
    found = {name: CalibrationResult.from_sums(total.sums, RELIABILITY).to_dict() for name, total in totals.items()}
    return {"variance": variance, "fitted_on": len(batches[::2]), **found}


# ------------------------------------------------------------------------------------------------------------- exposure


def evaluate_exposure(
    asked: Exposure, planted: Secrets, setup: Setup, folder: Path, spent: tuple[float, float] | None
) -> dict[str, Any]:
    """Return the exposure section of summary.json; `spent` are epsilon and delta of a private run."""
    form = get_form(setup)
    found = measure_both(
        setup, folder, lambda *given: measure_exposure(planted, form, asked.references, *given).tolist()
    )
    bound = None
    if spent is not None:
        bound = bound_mean_exposure(asked.references, *compute_group_terms(*spent, planted.copies))
    return {
        "secrets": planted.count,
        "copies": planted.copies,
        "references": asked.references,
        "most": float(np.log2(asked.references + 1)),
        "exposure": float(np.mean(found[TUNED])),
        "base": float(np.mean(found[BASE])),
        "unexposed": bound_mean_exposure(asked.references, 0.0, 0.0),
        "bound": bound,
        "each": found[TUNED],
        "each_base": found[BASE],
    }

"""A federated Laplace-LoRA of a finished classifier, and its calibration (`fedpeft.trust.kronecker`)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from fedpeft.aggregation.update import Fold
from fedpeft.clients.curvature import compute_logit_gradients
from fedpeft.data.cached_rows import load_cached_examples
from fedpeft.data.rows import limit_rows
from fedpeft.peft.adapter import State
from fedpeft.rounds.questions import Questions
from fedpeft.simulation.ensemble import load_model, put
from fedpeft.simulation.rows import SimulatedRows
from fedpeft.trust.calibration import CalibrationResult
from fedpeft.trust.kronecker import Curvature, apply_probit, compute_covariance, find_best_variance, name_sums
from fedpeft.trust.questions.kronecker import Kronecker
from fedpeft.trust.questions.reliability import Reliability
from fedpeft.wiring.setup import Setup

if TYPE_CHECKING:
    from fedpeft.measurements.laplace import Laplace

RELIABILITY = Reliability()


@dataclass(frozen=True)
class Posterior:
    """The posterior of an adapter's LoRA matrices, given the clients' training examples.

    Attributes:
        curvatures: by matrix.
        variance: prior variance with the largest evidence.
        clients, rows: number of clients and examples in the sums.
    """

    curvatures: dict[str, Curvature]
    variance: float
    clients: int
    rows: int


def compute_posterior(questions: Questions, state: State, rank: int) -> Posterior:
    """Compute the posterior around `state`, in one exchange with all clients."""
    answered = questions.ask(Kronecker())
    matrices = {t.name: state[t.name] for t in questions.setup.layout.tensors if t.role in ("lora_A", "lora_B")}
    tokens = float(answered.total["tokens"])
    curvatures = {}
    for name, (inputs, outputs) in name_sums({name: tensor.shape for name, tensor in matrices.items()}).items():
        curvatures[name] = Curvature.from_sums(answered.total[inputs], answered.total[outputs], tokens, rank)
    variance = find_best_variance(curvatures, matrices, -float(answered.total["loss"]))
    return Posterior(curvatures, variance, answered.clients, round(answered.rows))


def compare_predictions(setup: Setup, state: State, rows: SimulatedRows, found: Posterior, most: int) -> dict[str, Any]:
    """Return the calibration on the test set without and with the adapter's uncertainty, for summary.json."""
    model = load_model(setup)
    put(model, state)
    examples = load_cached_examples(setup.tokenize_rows(limit_rows(rows.dataset.test, most), setup.tokens))
    totals = {"map": Fold(), "laplace": Fold()}
    for row in range(len(examples)):
        batch = examples.batch(np.array([row]))
        logits, gradients = compute_logit_gradients(model, batch)
        covariance = compute_covariance(found.curvatures, gradients, found.variance, len(logits))
        for name, chances in (("map", logits.softmax(-1)), ("laplace", apply_probit(logits, covariance))):
            totals[name].add(RELIABILITY.answer(chances.log()[None], batch["labels"]), 1.0)
    return {name: CalibrationResult.from_sums(total.sums, RELIABILITY).to_dict() for name, total in totals.items()}


def evaluate_laplace(asked: Laplace, questions: Questions, state: State, rows: SimulatedRows) -> dict[str, Any]:
    """Return the Laplace section of summary.json."""
    found = compute_posterior(questions, state, asked.rank)
    told = compare_predictions(questions.setup, state, rows, found, asked.rows)
    return {"variance": found.variance, "clients": found.clients, "rows": found.rows, **told}

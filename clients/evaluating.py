"""A client's answers about its held-out examples: loss and accuracy, or the sums that a question asks for."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from fedpeft.clients.curvature import compute_kronecker_sums
from fedpeft.clients.executor import EVALUATION_BATCH
from fedpeft.clients.sequential import SequentialExecutor
from fedpeft.clients.stages import ClientRound
from fedpeft.clients.task_sums import compute_class_sums, compute_input_moments

from fedpeft.communication.codec import parse_codec
from fedpeft.communication.messages import Report
from fedpeft.data.examples import batch_by_length
from fedpeft.errors import PayloadError
from fedpeft.peft.adapter import State
from fedpeft.privacy.secure_sum.contribution import Contribution
from fedpeft.privacy.secure_sum.integers import LARGEST_NUMBER
from fedpeft.trust.question import ROWS, Question, parse_question
from fedpeft.trust.questions.class_sums import ClassSums
from fedpeft.trust.questions.layer_inputs import LayerInputs

if TYPE_CHECKING:
    from fedpeft.clients.workbench import Workbench

SUMS = "fp64"
"""Codec of sums. It is lossless, because a total would miss what rounding takes from its parts."""


def evaluate_client(bench: Workbench, client_round: ClientRound) -> Report:
    """Return the report on the client's model and its held-out examples; an empty one if there are none.

    A question about the model itself is answered with the examples that the client trains on.

    Raises:
        PayloadError: an unknown question, or one that a language model can't answer.
    """
    instruction, rows, job = client_round.instruction, client_round.held_out, client_round.job
    bench = bench.set_precision(instruction.base_precision)
    question = parse_question(instruction.asks) if instruction.asks else None
    if question is not None and question.of_model:
        sums = _compute_model_sums(bench, client_round, question)
        return Report(job.client, job.round, parse_codec(SUMS).encode(sums), len(job.rows))
    if not len(rows):
        return Report(job.client, job.round, b"")
    if question is None:
        totals = bench.evaluate(job.received, rows, instruction.base, job.form)
        loss, correct, count = totals.mean_loss, totals.correct, totals.count
        return Report(job.client, job.round, b"", len(rows), loss=loss, correct=correct, count=count)
    if not bench.plan.classes:
        raise PayloadError(f"FP6005 the server asks {question.text} of a language model, which has no classes")
    bench.rebase(instruction.base)
    logits = bench.executor.compute_logits(job.received, rows, job.form)
    sums = question.answer(logits, bench.get_labels(rows))
    return Report(job.client, job.round, parse_codec(SUMS).encode(sums), len(rows))


def compute_contribution(bench: Workbench, client_round: ClientRound) -> Contribution:
    """Return the sums over the client's held-out examples as its contribution to a secure sum.

    Without such examples the sums are zeros, and the client has no weight.

    Raises:
        PayloadError: see `evaluate_client`; the question can't be summed, or a number exceeds what masks allow.
    """
    instruction, rows, job = client_round.instruction, client_round.held_out, client_round.job
    question = parse_question(instruction.asks)
    if question.of_model or not bench.plan.classes:
        raise PayloadError(f"FP6006 the server asks {question.text}, which is not summed under masks here")
    bench = bench.set_precision(instruction.base_precision)
    bench.rebase(instruction.base)
    logits = (
        bench.executor.compute_logits(job.received, rows, job.form) if len(rows) else torch.zeros(0, bench.plan.classes)
    )
    sums = question.answer(logits, bench.get_labels(rows) if len(rows) else torch.zeros(0, dtype=torch.long))
    largest = max(float(tensor.abs().max()) for tensor in sums.values())
    if not largest < LARGEST_NUMBER:
        raise PayloadError(
            f"FP6007 an answer to {question.text} has a sum of {largest:g}; masks hold at most {LARGEST_NUMBER:g}"
        )
    return Contribution(1.0 if len(rows) else 0.0, len(rows), statistics=sums)


def _compute_model_sums(bench: Workbench, client_round: ClientRound, question: Question) -> State:
    """Return sums of one model with the peft library's adapter, whatever the executor trains."""
    rows, job = client_round.job.rows, client_round.job
    if not bench.plan.classes and not isinstance(question, LayerInputs):
        raise PayloadError(f"FP6005 the server asks {question.text} of a language model, which has no classes")
    bench = bench.create_sequential()
    executor = bench.executor
    if not isinstance(executor, SequentialExecutor):
        raise PayloadError(f"FP6008 the server asks {question.text}, which this client's model can't answer")
    bench.rebase(client_round.instruction.base)
    executor.load(job.received, job.form)
    lengths = executor.examples.lengths[rows]
    batches = (executor.batch(rows[index]) for index in batch_by_length(lengths, EVALUATION_BATCH))
    if isinstance(question, LayerInputs):
        sums = compute_input_moments(executor.model, batches, question)
    elif isinstance(question, ClassSums):
        sums = compute_class_sums(executor.model, batches, question, bench.plan.classes)
    else:
        sums = compute_kronecker_sums(executor.model, batches)
    return {**sums, ROWS: torch.tensor([float(len(rows))], dtype=torch.float64)}

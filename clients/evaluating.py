"""A client's answers about its own held-out rows: loss and accuracy, or the sums that a question asks for."""

from __future__ import annotations

import numpy as np
from fedpeft.clients.workbench import Workbench

from fedpeft.communication.codec import parse_codec
from fedpeft.communication.messages import Instruction, Report
from fedpeft.errors import PayloadError
from fedpeft.peft.adapter import State
from fedpeft.trust.question import asked

SUMS = "fp64"
"""The codec of sums: what clients' parts are rounded to, their total would miss."""


def evaluated(bench: Workbench, instruction: Instruction, state: State, rows: np.ndarray) -> Report:
    """The report on the model with `state` and the client's held-out `rows`, at least one.

    Raises:
        PayloadError: a question that this version does not know, or that is none for a language model.
    """
    client, round = instruction.client, instruction.round
    bench = bench.at(instruction.base_precision)
    if not instruction.asks:
        totals = bench.evaluate(state, rows, instruction.base, instruction.form)
        return Report(client, round, b"", len(rows), loss=totals.mean_loss, correct=totals.correct, count=totals.count)
    question = asked(instruction.asks)
    if not bench.plan.classes:
        raise PayloadError(f"the server asks {question.text} of a language model, which has no classes")
    bench.rebase(instruction.base)
    logits = bench.executor.logits(state, rows, instruction.form)
    sums = question.answer(logits, bench.labels(rows))
    return Report(client, round, parse_codec(SUMS).encode(sums), len(rows))

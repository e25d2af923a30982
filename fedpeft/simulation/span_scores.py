"""Precision, recall and F1 of whole spans of token labels, by the library seqeval (CoNLL's measure, IOB2, strict).

A span counts if its first word, its last word and its type are right. Token accuracy, which a run always reports, is
higher, since most words are outside of all spans.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import Any

import torch

from fedpeft.data.tagged_words import IGNORED
from fedpeft.errors import AssetError, require_extra
from fedpeft.models.quantized_base import quantize
from fedpeft.models.scoring import move_batch, score_batches
from fedpeft.peft import saved_adapter
from fedpeft.simulation.simulation import Simulation

TASK = "token_labels"


def compute_span_scores(right: Sequence[Sequence[str]], said: Sequence[Sequence[str]]) -> dict[str, Any]:
    """Return `precision`, `recall` and `f1` over all spans of IOB2 label sequences, and the F1 of each type `by_type`.

    Raises:
        AssetError: seqeval is missing.
    """
    require_extra("seqeval", "evaluate", "the F1 of spans")
    from seqeval.metrics import classification_report
    from seqeval.scheme import IOB2

    with warnings.catch_warnings(action="ignore"):  # a type that is never predicted has no precision: 0
        report = classification_report(
            [list(row) for row in right],
            [list(row) for row in said],
            output_dict=True,
            mode="strict",
            scheme=IOB2,
            zero_division=0,
        )
    whole = report["micro avg"]
    averages = ("micro avg", "macro avg", "weighted avg")
    return {
        "precision": float(whole["precision"]),
        "recall": float(whole["recall"]),
        "f1": float(whole["f1-score"]),
        "by_type": {name: float(of["f1-score"]) for name, of in report.items() if name not in averages},
    }


def is_iob2(names: Sequence[str]) -> bool:
    """Return whether labels name the beginnings and insides of spans."""
    return all(name == "O" or (name[:2] in ("B-", "I-") and len(name) > 2) for name in names)


def measure_spans(simulation: Simulation) -> dict[str, Any] | None:
    """Score the saved adapter's spans on the test set, in fp32; a quantized base keeps its bits.

    None: the task has other labels; or these name no spans, or seqeval is missing, which a message reports.
    """
    setup = simulation.setup
    if setup.facts.task != TASK:
        return None
    try:
        require_extra("seqeval", "evaluate", "the F1 of spans")
    except AssetError as error:
        simulation.observer.say(f"spans are not scored: {error}")
        return None
    names = setup.facts.label_names or ()
    if not is_iob2(names):
        simulation.observer.say("spans are not scored: their labels are not IOB2, which is O, B-TYPE and I-TYPE")
        return None
    base = setup.task.base(setup.model_directory, torch.float32)
    quantize(base, setup.method.base_precision)
    model = saved_adapter.load(simulation.folder, setup.task, base, setup.facts.classes)
    examples = setup.task.tokenise(simulation.rows.dataset.test, setup.model_directory, setup.tokens)
    batches = score_batches(examples)
    simulation.observer.phase("scoring spans on the test set (fp32)", len(batches))
    right: list[list[str]] = []
    said: list[list[str]] = []
    for rows in batches:
        batch = move_batch(examples.batch(rows), model)
        with torch.inference_mode():
            found = model(batch).argmax(-1)
        for labels, predicted in zip(batch["labels"], found, strict=True):
            counted = labels != IGNORED
            right.append([names[i] for i in labels[counted].tolist()])
            said.append([names[i] for i in predicted[counted].tolist()])
        simulation.observer.advance()
    return compute_span_scores(right, said)

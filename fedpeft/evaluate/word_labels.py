"""Labels of words: the answers of a finished run of token labels, one label per word."""

from __future__ import annotations

import json
from collections.abc import Sequence

from fedpeft.data.rows import Rows
from fedpeft.data.tagged_words import IGNORED
from fedpeft.models import scoring
from fedpeft.models.task import FederatedModel
from fedpeft.reporting.finished_run import FinishedRun

CUT = ""
"""Label of a word that the model does not read, because it is beyond the run's longest row or has no token."""


def label_words(run: FinishedRun, model: FederatedModel, rows: Sequence[Sequence[str]]) -> list[list[str]]:
    """Return the likeliest label of each word of `rows`, which have at least one word each."""
    # the first token of a word carries the word's position, as it carries the label in training
    packed = [json.dumps({"words": list(words), "tags": list(range(len(words)))}) for words in rows]
    examples = run.task.tokenise(Rows(packed), run.model_directory, run.tokens)
    names = run.labels or []
    labels = [[CUT] * len(words) for words in rows]
    for places in scoring.score_batches(examples):
        batch = examples.batch(places)
        likeliest = scoring.compute_logits(model, batch).argmax(-1)
        for row, words, said in zip(places.tolist(), batch["labels"].tolist(), likeliest.tolist(), strict=True):
            for word, label in zip(words, said, strict=True):
                if word != IGNORED:
                    labels[row][word] = names[label]
    return labels

"""Labels of patches: the answers of a finished run of patch labels, one label per patch."""

from __future__ import annotations

import dataclasses

import numpy as np

from fedpeft.models import scoring
from fedpeft.models.task import FederatedModel
from fedpeft.reporting.finished_run import FinishedRun


def label_pictures(run: FinishedRun, model: FederatedModel, files: list[str]) -> list[list[str]]:
    """Return the likeliest label of each patch of the images, from the upper left, row by row.

    Raises:
        DataError: a file is not a readable image; the message names it.
    """
    pictures, names = run.load_pictures(files), run.labels or []
    examples = dataclasses.replace(pictures, labels=np.zeros((len(files), pictures.tokens - 1), np.int64))
    found: dict[int, list[str]] = {}
    for places in scoring.score_batches(examples):
        likeliest = scoring.compute_logits(model, examples.batch(places)).argmax(-1)
        found |= {int(i): [names[k] for k in row] for i, row in zip(places, likeliest.tolist(), strict=True)}
    return [found[i] for i in range(len(files))]


def format_grid(labels: list[str]) -> str:
    """Return the labels of an image's patches as lines, one per row of patches."""
    across = round(len(labels) ** 0.5)
    width = max(map(len, labels))
    rows = [labels[i : i + across] for i in range(0, len(labels), across)]
    return "\n".join(" ".join(label.ljust(width) for label in row).rstrip() for row in rows)

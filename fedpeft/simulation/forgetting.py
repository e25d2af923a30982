"""The cost of fine-tuning for the base: its quality on a second task that it was not tuned for, before and after.

For an encoder, the quality is the accuracy of a linear probe on the second task, on features of the untouched base and
of the finished model. For a language model, it is the loss per token on the second dataset's test set. Both are
computed in fp32.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from fedpeft.data import cached_rows
from fedpeft.data.examples import Examples
from fedpeft.data.images_with_texts import PATCH_LABELS
from fedpeft.data.rows import Dataset, Rows, limit_rows, load_dataset, split_validation
from fedpeft.errors import ConfigError
from fedpeft.machine import cache
from fedpeft.models.abilities import ComparesExamples
from fedpeft.models.quantized_base import quantize
from fedpeft.models.scoring import score_batches
from fedpeft.models.task import FederatedModel, Task
from fedpeft.parts.families import TASKS
from fedpeft.peft import saved_adapter
from fedpeft.simulation.probe import fit_linear_probe
from fedpeft.wiring.setup import Setup

PROBE_ROWS, TEST_ROWS = 800, 400
"""Most examples of the second task that are used, a fixed stratified choice."""


@dataclass(frozen=True)
class Forgetting:
    """Quality on a second task.

    Attributes:
        dataset: name of the second task's dataset.
        measure: what `before` and `after` are: probe accuracy, or loss per token in nats.
        before: quality of the base.
        after: quality of the finished model.
        lost: how much worse the model has become.
    """

    dataset: str
    measure: str
    before: float
    after: float
    lost: float

    def to_dict(self) -> dict[str, Any]:
        """Return the values for summary.json."""
        return asdict(self)


def load_second_task(text: str, first: Dataset) -> Dataset:
    """Return the dataset that `text` describes, if a model for `first` can be evaluated on it.

    Raises:
        ConfigError: it has another task type.
    """
    second = load_dataset(text)
    if {"token_labels", PATCH_LABELS} & {first.task, second.task}:
        raise ConfigError(
            f"FP1408 forgetting={text!r} compares classifiers, or language models, and not labels of tokens; "
            "leave it out"
        )
    if {first.train.targets, second.train.targets} & {"numbers", "labels"}:
        raise ConfigError(f"FP1409 forgetting={text!r} compares classifiers, or language models; leave it out")
    if TASKS.build(first.task).translates != TASKS.build(second.task).translates:
        raise ConfigError(
            f"FP1410 forgetting={text!r} compares pairs of texts with pairs, and plain texts with plain texts; name a "
            "dataset of the run's task type, or leave it out"
        )
    one, other = ((d.kind, d.task == "classification") for d in (first, second))
    if one != other or isinstance(TASKS.build(second.task), ComparesExamples):
        raise ConfigError(
            f"FP1411 forgetting={text!r} must have the run's task type, {first.kind} "
            f"{'classification' if one[1] else 'language modeling'}"
        )
    return second


def measure_forgetting(setup: Setup, second: Dataset, folder: Path, model_key: str) -> Forgetting:
    """Score the second task on the base, whose weights `model_key` names, and on the finished model in `folder`."""
    method = setup.saved_method

    def base() -> nn.Module:
        made = setup.task.base(setup.model_directory, torch.float32)
        quantize(made, setup.method.base_precision)
        method.read(made)
        return made

    task = TASKS.build(second.task)  # for language models plain text after instructions, or the reverse

    def tokenize(rows: Rows) -> Examples:
        return task.tokenise(rows, setup.model_directory, setup.tokens)

    name = cache.compute_key(
        rows=[cached_rows.hash_rows(rows) for rows in (second.train, second.test)],
        model=model_key,
        tokenizer=cache.hash_files(setup.model_directory, cached_rows.TOKENIZER_FILES),
        tokens=setup.tokens,
        task=second.task,
        used=(PROBE_ROWS, TEST_ROWS),
        **cached_rows.read_as(second.train.inputs),
        **method.base_as_read(),
        **setup.code,
    )

    def score_untouched() -> dict[str, np.ndarray]:
        model = setup.task.model(base(), setup.facts.classes)
        return {"standing": np.array(score_second_task(second, task, tokenize, model))}

    before = float(cache.load_arrays("standing", name, score_untouched)["standing"])
    after = score_second_task(
        second, task, tokenize, saved_adapter.load(folder, setup.task, base(), setup.facts.classes)
    )
    return compare_scores(second, before, after)


def score_second_task(
    second: Dataset, task: Task, tokenize: Callable[[Rows], Examples], model: FederatedModel
) -> float:
    """Return the quality of `model` on the second task: probe accuracy, or loss per token in nats."""
    test = limit_rows(second.test, TEST_ROWS)
    if second.task != "classification":
        return _compute_loss(model, task, tokenize(test))
    rows = limit_rows(second.train, PROBE_ROWS)
    train, validation = split_validation(rows, max(1, len(rows) // 5))
    parts = [(_compute_features(model, tokenize(part)), part.labels) for part in (train, validation, test)]
    return fit_linear_probe(*parts).accuracy  # type: ignore[arg-type]


def compare_scores(second: Dataset, before: float, after: float) -> Forgetting:
    """Return the qualities of the base and of the finished model, and how much was lost."""
    if second.task != "classification":
        return Forgetting(second.name, "nats per token", before, after, after - before)
    return Forgetting(second.name, "probe accuracy", before, after, before - after)


def _compute_features(model: Any, examples: Examples) -> np.ndarray:
    found: np.ndarray | None = None
    with torch.inference_mode():
        for rows in score_batches(examples):
            features = model.features(examples.batch(rows)).float().numpy()
            found = np.zeros((len(examples), features.shape[1]), np.float32) if found is None else found
            found[rows] = features
    assert found is not None
    return found


def _compute_loss(model: FederatedModel, task: Task, examples: Examples) -> float:
    total, count = 0.0, 0.0
    with torch.inference_mode():
        for rows in score_batches(examples):
            batch = examples.batch(rows)
            losses = task.row_losses(model, batch)
            total += float(losses.sums.double().sum())
            count += float(losses.counts.double().sum())
    return total / count

"""The rungs: each gives accuracy on the same test examples, and on validation examples if these chose its state.

The first three use all training examples, validation examples included, and choose by cross-validation. The others
train on the clients' examples, and keep the state that is best on the validation examples.
"""

from __future__ import annotations

import dataclasses
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

import fedpeft
from experiments.ladder.settings import ONE_CLIENT, SHARED, Fields, Task
from fedpeft.data.cached_rows import load_cached_examples
from fedpeft.data.examples import batch_by_length
from fedpeft.data.partition import USUAL
from fedpeft.data.rows import Dataset, Rows, get_default_partition, join_rows, load_dataset, split_off_validation
from fedpeft.models.dtypes import DTYPES
from fedpeft.models.frozen_blocks import TILE, pool
from fedpeft.models.readout import read_all_blocks
from fedpeft.models.tasks.classification import compute_hidden_states
from fedpeft.parts.families import PARTITIONS
from fedpeft.reporting.console import ConsoleObserver
from fedpeft.reporting.records import Records
from fedpeft.simulation.simulation import Simulation

FOLDS = 3
"""Folds of the cross-validation of words, pixels and probe."""

OF_WORDS = (0.1, 0.3, 1.0, 3.0)
"""Candidates for scikit-learn's C on words."""

OF_FEATURES = (0.0003, 0.001, 0.003, 0.01, 0.03, 0.1, 0.3)
"""Candidates for scikit-learn's C on pixels and frozen features."""


@dataclass(frozen=True)
class Cell:
    """A number of a ladder that is not measured yet.

    Attributes:
        rung: name of the rung.
        label: distinguishes it from others of the rung, by settings or client; empty if it is the only one.
        seed: seed of random draws.
        make: measures it and returns the fields of its line, with `accuracy`.
    """

    rung: str
    label: str
    seed: int
    make: Callable[[], dict[str, Any]]


def create_cells(task: Task, seeds: int, clients: int, full: bool, workers: int) -> Iterator[Cell]:
    """Yield all numbers of a task's ladder, cheap ones first."""
    machine = SHARED | {"workers": workers}
    data = load_dataset(task.dataset)
    yield Cell("majority", "", 0, lambda: score_majority(data))
    yield Cell("words" if data.kind == "text" else "pixels", "", 0, lambda: score_surface(data))
    yield Cell("probe", "", 0, lambda: score_probe(task.dataset, machine))
    yield Cell("probe of all blocks", "", 0, lambda: score_probe(task.dataset, machine, all_blocks=True))
    for seed in range(seeds):
        yield Cell("federated head", "", seed, _run(task.dataset, machine | task.heads, seed))
        for label, fields in task.federated.items():
            yield Cell("federated", label, seed, _run(task.dataset, machine | fields, seed))
        for label, fields in task.pooled.items():
            yield Cell("pooled adapter", label, seed, _run(task.dataset, machine | ONE_CLIENT | fields, seed))
        if full:
            fields = machine | ONE_CLIENT | task.full
            yield Cell("pooled full fine-tuning", "", seed, _run(task.dataset, fields, seed))
    for number, own in sample(data, next(iter(task.federated.values())), clients):
        yield Cell("alone", f"client {number}", 0, _create_alone(data, own, machine | ONE_CLIENT | task.alone))


def score_majority(data: Dataset) -> dict[str, Any]:
    """Score the most frequent training class on every test example."""
    train, test = data.train.labels, data.test.labels
    return {"accuracy": float(np.mean(test == np.bincount(train).argmax()))}  # type: ignore[arg-type]


def score_surface(data: Dataset) -> dict[str, Any]:
    """Score a linear classifier of whole texts or pixels, with all choices cross-validated.

    Texts: a support vector machine on TF-IDF, which is fitted on all training examples, including held-out folds (it
    uses no labels). Images: logistic regression on standardized pixels.
    """
    from sklearn.feature_extraction.text import TfidfVectorizer
    from sklearn.linear_model import LogisticRegression
    from sklearn.model_selection import GridSearchCV
    from sklearn.preprocessing import StandardScaler
    from sklearn.svm import LinearSVC

    classifier: Any = LinearSVC()
    inputs: list[Any] = [data.train.inputs, data.test.inputs]
    if data.kind == "text":
        strengths: tuple[float, ...] = OF_WORDS
        forms: dict[str, Any] = {
            "words": TfidfVectorizer(sublinear_tf=True, min_df=2),
            "words and signs, and pairs": TfidfVectorizer(
                sublinear_tf=True, min_df=2, ngram_range=(1, 2), token_pattern=r"\w+|[^\w\s]"
            ),
        }
    else:
        classifier, strengths = LogisticRegression(max_iter=2000), OF_FEATURES
        forms = {"pixels": StandardScaler()}
        inputs = [np.reshape(images, (len(images), -1)) / 255 for images in inputs]
    tried = {}
    for form, features in forms.items():
        search = GridSearchCV(classifier, {"C": strengths}, cv=create_folds(data.train))
        tried[form] = search.fit(features.fit_transform(inputs[0]), data.train.labels)
    form, best = max(tried.items(), key=lambda pair: float(pair[1].best_score_))
    return {
        "accuracy": float(best.score(forms[form].transform(inputs[1]), data.test.labels)),
        "validation": float(best.best_score_),
        "features": form,
        "C": best.best_params_["C"],
        "folds": choose_fold_kind(data.train),
    }


def score_probe(dataset: str, machine: Fields, all_blocks: bool = False) -> dict[str, Any]:
    """Score logistic regression on frozen features of all examples, with the token limit of the other rungs.

    The pooling of the last states and the penalty are cross-validated; `all_blocks` uses the mean only.
    """
    from sklearn.linear_model import LogisticRegression
    from sklearn.model_selection import GridSearchCV
    from sklearn.pipeline import Pipeline
    from sklearn.preprocessing import StandardScaler

    config = fedpeft.RunConfig(dataset=dataset, **machine)
    with tempfile.TemporaryDirectory() as folder, ConsoleObserver(_create_quiet_console()) as observer:
        simulation = Simulation(config, Path(folder), observer)
        try:
            everything, test = simulation.rows.all, simulation.rows.dataset.test
            train_features = compute_frozen_features(simulation, everything, all_blocks)
            test_features = compute_frozen_features(simulation, test, all_blocks)
        finally:
            simulation.close()
    tried = {}
    for pooling, features in train_features.items():
        model = Pipeline([("scale", StandardScaler()), ("classifier", LogisticRegression(max_iter=2000))])
        search = GridSearchCV(model, {"classifier__C": OF_FEATURES}, cv=create_folds(everything))
        tried[pooling] = search.fit(features, everything.labels)
    pooling, best = max(tried.items(), key=lambda pair: float(pair[1].best_score_))
    return {
        "accuracy": float(best.score(test_features[pooling], test.labels)),
        "validation": float(best.best_score_),
        "pooling": pooling,
        "poolings": {name: round(float(search.best_score_), 4) for name, search in tried.items()},
        "C": best.best_params_["classifier__C"],
        "folds": choose_fold_kind(everything),
    }


def create_folds(rows: Rows) -> list[tuple[np.ndarray, np.ndarray]]:
    """Return `FOLDS` pairs of row numbers to fit and to score: split by owner, or stratified without owners."""
    from sklearn.model_selection import GroupKFold, StratifiedKFold

    if choose_fold_kind(rows) == "owners":
        return list(GroupKFold(FOLDS).split(rows.labels, groups=rows.owners))
    return list(StratifiedKFold(FOLDS, shuffle=True, random_state=0).split(rows.labels, rows.labels))


def choose_fold_kind(rows: Rows) -> str:
    """Return the splitting rule of `create_folds`."""
    return "owners" if rows.owners is not None and len(np.unique(rows.owners)) >= FOLDS else "classes"


def compute_frozen_features(simulation: Simulation, rows: Rows, all_blocks: bool = False) -> dict[str, np.ndarray]:
    """Return the frozen base's features (examples, width), by the pooling of its last states.

    `all_blocks` gives the mean of the states of all blocks, as `head2toe` does.
    """
    setup, work = simulation.setup, simulation.workers.work
    examples = load_cached_examples(setup.tokenize_rows(rows, setup.tokens))
    base = setup.task.base(work.model, DTYPES[work.dtype])
    if all_blocks:
        read_all_blocks(base)
    found: dict[str, np.ndarray] = {}
    for some in batch_by_length(examples.lengths, TILE):
        batch = examples.batch(some)
        mask = batch.get("attention_mask")
        with torch.inference_mode():
            states = compute_hidden_states(base, {name: t for name, t in batch.items() if name != "labels"}).float()
        seen = torch.ones(states.shape[:2], dtype=torch.bool) if mask is None else mask.bool()
        pooled = {"mean": pool(states, mask)}
        if not all_blocks:
            pooled["maximum"] = states.masked_fill(~seen[..., None], -torch.inf).amax(1)
            pooled["first"] = states[:, 0]
        for name, features in pooled.items():
            found.setdefault(name, np.empty((len(examples), features.shape[1]), np.float32))[some] = features.numpy()
    return found


def sample(data: Dataset, federation: Fields, clients: int) -> Iterator[tuple[int, Rows]]:
    """Yield the examples of some clients, evenly spaced from the smallest to the largest."""
    defaults = fedpeft.RunConfig()
    train, _ = split_off_validation(data)
    partitioner = PARTITIONS.build(federation.get("partition") or get_default_partition(data.name) or USUAL)
    partition = partitioner.split(train, federation.get("clients", defaults.clients), 0)
    by_size = np.argsort(partition.sizes, kind="stable")
    for place in np.linspace(0, len(by_size) - 1, min(clients, len(by_size))).round().astype(int):
        client = int(by_size[place])
        yield client, train.take(partition.shard(client))


def _create_alone(data: Dataset, own: Rows, fields: Fields) -> Callable[[], dict[str, Any]]:
    def make() -> dict[str, Any]:
        assert own.labels is not None
        if len(np.unique(own.labels)) < 2:
            return score_majority(dataclasses.replace(data, train=join_rows(own, own))) | {"rows": len(own)}
        return _run(dataclasses.replace(data, train=own), fields, 0)() | {"rows": len(own)}

    return make


def _run(dataset: str | Dataset, fields: Fields, seed: int) -> Callable[[], dict[str, Any]]:
    def make() -> dict[str, Any]:
        started = time.perf_counter()
        with tempfile.TemporaryDirectory() as folder:
            run = fedpeft.run_simulation(
                dataset=dataset, seed=seed, output=Path(folder) / "run", progress=False, **fields
            )
            rounds = Records(run.folder).read("rounds.jsonl")
            curve = [round(float(line["accuracy"]), 4) for line in rounds if line.get("accuracy") is not None]
            summary = run.summary
            return {
                "accuracy": run.accuracy,
                "validation": max(curve),
                "curve": curve,
                "uplink_bytes": summary["uplink_bytes"],
                "seconds": round(time.perf_counter() - started),
                "settings": fields,
                "hardware": dict(summary["hardware"]),
            }

    return make


def _create_quiet_console() -> Any:
    from rich.console import Console

    return Console(quiet=True)

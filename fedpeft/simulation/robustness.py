"""A finished classifier on corrupted test examples: curves over strengths, for all examples and the worst clients."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray

from fedpeft.clients.attack import PlantsTrigger
from fedpeft.data.examples import Examples
from fedpeft.data.rows import Inputs, Rows, limit_rows
from fedpeft.data.tokens import load_tokenizer
from fedpeft.machine import seeds
from fedpeft.models.client_accuracy import compute_client_accuracies, compute_worst_tenth
from fedpeft.models.quantized_base import quantize
from fedpeft.models.scoring import compute_logits, score_batches
from fedpeft.models.task import FederatedModel
from fedpeft.peft import saved_adapter
from fedpeft.simulation.rows import SimulatedRows
from fedpeft.trust.corruption import FindSynonym, corrupt, list_corruptions, summarize_draws
from fedpeft.trust.embedding_attack import STRENGTHS, find_worst, get_embedding
from fedpeft.wiring.setup import Setup

if TYPE_CHECKING:
    from fedpeft.measurements.robustness import Robustness

ALIKE = 0.7
"""Least cosine at which a word's nearest neighbor takes its place."""

Predict = Callable[[Rows], NDArray[np.int64]]
"""Returns the classes of examples, (rows,)."""


def predict_classes(model: FederatedModel, examples: Examples) -> NDArray[np.int64]:
    """Return the most likely classes, (rows,)."""
    found = np.zeros(len(examples), np.int64)
    for index in score_batches(examples):
        found[index] = compute_logits(model, examples.batch(index)).argmax(-1).numpy()
    return found


def find_neighbors(model: FederatedModel, directory: Path) -> FindSynonym:
    """Return a function that replaces a whole word of the vocabulary by its nearest one in the embedding."""
    tokenizer = load_tokenizer(directory)
    weight: Any = get_embedding(model).weight
    unit = torch.nn.functional.normalize(weight.detach().float(), dim=-1)
    vocabulary = tokenizer.get_vocab()
    whole = {word: place for word, place in vocabulary.items() if word.isalpha()}
    places = torch.tensor(list(whole.values()))
    words, table = list(whole), unit[places]
    known: dict[str, str] = {}

    def find_near(word: str) -> str:
        plain = word.lower()
        if plain not in whole:
            return word
        if plain not in known:
            cosines = table @ unit[whole[plain]]
            cosines[words.index(plain)] = -1.0
            best = int(cosines.argmax())
            known[plain] = words[best] if float(cosines[best]) >= ALIKE else plain
        return known[plain] if known[plain] != plain else word

    return find_near


def measure_corruptions(
    asked: Robustness, rows: Rows, kind: str, predict: Predict, near: FindSynonym, held: NDArray[np.int64], seed: int
) -> dict[str, Any]:
    """Return the measures of each kind of corruption and strength.

    They are the accuracy (mean over draws), the accuracy if the worst draw counts for each example, and the share of
    predictions that stay. The last one is the accuracy of the worst tenth of the clients under the worst draws.
    """
    labels = np.asarray(rows.labels)
    clean = predict(rows)
    found: dict[str, Any] = {"clean": _summarize_draws(0.0, [clean], clean, labels, held)}
    for corruption in list_corruptions(kind):
        points = []
        for strength in corruption.strengths:
            draws = []
            for draw in range(asked.draws):
                random = seeds.create_generator(seed, f"{corruption.name} {strength:g}", draw)
                changed = corrupt(rows.inputs, corruption, strength, random, near)
                draws.append(predict(Rows(changed, rows.labels)))
            points.append(_summarize_draws(strength, draws, clean, labels, held))
        found[corruption.name] = points
    return found


def _summarize_draws(
    strength: float,
    draws: Sequence[NDArray[np.int64]],
    clean: NDArray[np.int64],
    labels: NDArray[np.int64],
    held: NDArray[np.int64],
) -> dict[str, float]:
    right = np.stack([draw == labels for draw in draws])
    always: NDArray[np.bool_] = np.logical_and.reduce(right, axis=0)
    clients = compute_worst_tenth(compute_client_accuracies(always, labels, held))
    return {**summarize_draws(strength, draws, clean, right), "worst_clients": clients}


def load_finished_model(setup: Setup, folder: Path) -> FederatedModel:
    """Return the model of the finished run in `folder`, in fp32."""
    base = setup.task.base(setup.model_directory, torch.float32)
    quantize(base, setup.method.base_precision)
    return saved_adapter.load(folder, setup.task, base, setup.facts.classes)


def evaluate_trigger(
    attack: PlantsTrigger, setup: Setup, rows: SimulatedRows, most: int, folder: Path
) -> dict[str, Any]:
    """Return the backdoor section of summary.json, for the model in `folder` in fp32.

    Args:
        attack: the attack with the trigger.
        setup: the parts of the run.
        rows: the examples.
        most: the most test examples; 0: all.
        folder: the run's folder.
    """
    test = limit_rows(rows.dataset.test, most)
    others = test.take(np.flatnonzero(np.asarray(test.labels) != attack.target))
    model = load_finished_model(setup, folder)

    def count(inputs: Inputs) -> int:
        examples = setup.task.tokenise(Rows(inputs, others.labels), setup.model_directory, setup.tokens)
        return int((predict_classes(model, examples) == attack.target).sum())

    found, before = count(attack.plant(others.inputs)), count(others.inputs)
    return {
        "target": rows.dataset.label_names[attack.target] if rows.dataset.label_names else str(attack.target),
        "rows": len(others),
        "success": found / max(1, len(others)),
        "without_trigger": before / max(1, len(others)),
    }


def evaluate_robustness(asked: Robustness, setup: Setup, rows: SimulatedRows, folder: Path) -> dict[str, Any]:
    """Return the robustness section of summary.json, for the model in `folder` in fp32."""
    model = load_finished_model(setup, folder)
    test = limit_rows(rows.dataset.test, asked.rows)
    train = np.asarray(rows.train.labels)
    shards = (train[rows.partition.shard(client)] for client in range(setup.clients))
    held = np.stack([np.bincount(shard, minlength=setup.facts.classes) for shard in shards])
    directory, tokens = setup.model_directory, setup.tokens

    def predict(changed: Rows) -> NDArray[np.int64]:
        return predict_classes(model, setup.task.tokenise(changed, directory, tokens))

    text = setup.facts.kind == "text"
    near: FindSynonym = find_neighbors(model, directory) if text else lambda word: word
    found = measure_corruptions(asked, test, setup.facts.kind, predict, near, held, setup.config.seed)
    if text and asked.attack:
        examples = setup.task.tokenise(test, directory, tokens)
        found["embeddings"] = [_measure_attack(model, examples, strength, setup, held) for strength in STRENGTHS]
    return {"rows": len(test), "draws": asked.draws, **found}


def _measure_attack(
    model: FederatedModel, examples: Examples, strength: float, setup: Setup, held: NDArray[np.int64]
) -> dict[str, float]:
    random = seeds.create_torch_generator(setup.config.seed, f"attack {strength:g}")
    right, labels = np.zeros(len(examples), bool), np.zeros(len(examples), np.int64)
    for index in score_batches(examples):
        batch = examples.batch(index)
        right[index], labels[index] = find_worst(model, batch, strength, random)[0].numpy(), batch["labels"].numpy()
    share, clients = float(right.mean()), compute_worst_tenth(compute_client_accuracies(right, labels, held))
    return {"strength": strength, "accuracy": share, "worst": share, "worst_clients": clients}

"""Retrieval of pairs in a run's test set, compared with the frozen base and the words alone; and search for clones."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch.nn import functional

from fedpeft.clients.workbench import WorkPlan
from fedpeft.data.code_clones import clone, find_own_names
from fedpeft.data.rows import Rows, limit_rows
from fedpeft.data.text_pairs import SIDES, get_side, pack_pair
from fedpeft.errors import DataError
from fedpeft.machine import seeds
from fedpeft.models.quantized_base import quantize
from fedpeft.models.ranking import PairSides, rank_documents, rank_queries
from fedpeft.models.scoring import score_together
from fedpeft.models.shared_tiles import fetch_missing_tiles, offer
from fedpeft.peft import saved_adapter
from fedpeft.simulation.rows import SimulatedRows
from fedpeft.simulation.simulation import Simulation
from fedpeft.wiring.setup import Setup

if TYPE_CHECKING:
    from fedpeft.measurements.clones import Clones

Found = dict[str, Any]


def measure_retrieval(simulation: Simulation, sides: PairSides | None) -> Found | None:
    """Return the retrieval entries of summary.json: of the result, and of baselines without federation.

    None: the examples are not pairs.
    """
    if sides is None:
        return None
    setup, rows = simulation.setup, simulation.rows.dataset.test
    simulation.observer.phase("pairs of the test set", 1)
    found: Found = {**rank_documents(sides), "reverse": rank_queries(sides)}
    if setup.task.encodes:
        found["frozen"] = rank_documents(compute_frozen_sides(setup, rows, simulation.workers.work))
        found["words"] = rank_documents(
            compute_word_sides([[get_side(str(row), name) for row in rows.inputs] for name in SIDES])
        )
    return found


def compute_frozen_sides(setup: Setup, rows: Rows, work: WorkPlan) -> PairSides:
    """Return both sides of text pairs as the base encodes them in fp32 without adapter; they stay in the cache."""
    key = setup.tokenize_rows(rows, setup.tokens)
    store = replace(work.set_precision("fp32"), device="cpu").store(key, setup.frozen_blocks)
    missing = fetch_missing_tiles(store)
    if missing:
        base = setup.task.base(setup.model_directory, torch.float32)
        quantize(base, setup.method.base_precision)
        for tile in missing:
            store.fill(tile, base)
            offer(store, [tile])
    features = functional.normalize(store.read_features(np.arange(2 * len(rows))), dim=-1)
    labels = np.arange(len(rows)) if rows.labels is None else np.asarray(rows.labels)
    return PairSides(features[::2], features[1::2], torch.from_numpy(labels))


def compute_word_sides(texts: Sequence[Sequence[str]]) -> PairSides:
    """Return TF-IDF vectors of queries and documents, two lists of equal length.

    They are weighted by the documents' frequencies. Names are split at underscores and capitals.
    """
    from sklearn.feature_extraction.text import TfidfVectorizer

    queries, documents = texts
    words = TfidfVectorizer(tokenizer=split_names, token_pattern=None, lowercase=False, sublinear_tf=True)
    there = words.fit_transform(documents)
    asked, found = (torch.from_numpy(matrix.toarray()).float() for matrix in (words.transform(queries), there))
    return PairSides(asked, found, torch.arange(len(queries)))


def split_names(text: str) -> list[str]:
    """Split a text into lower-case words: `readLine_of` has three."""
    return [word.lower() for word in re.findall(r"[A-Z]?[a-z]+|[A-Z]+|[0-9]+", text)]


def measure_clone_search(asked: Clones, setup: Setup, rows: SimulatedRows, folder: Path) -> Found:
    """Search for the clones of functions: with the model in `folder` in fp32, the frozen base, and words alone.

    `first` is the share whose clone is nearest.

    Raises:
        DataError: fewer than two documents are Python functions with their own names.
    """
    pairs = clone_rows(limit_rows(rows.dataset.test, asked.rows), setup.config.seed)
    if len(pairs) < 2:
        raise DataError(
            "FP3175 clones are variants of Python functions, but the test documents contain none; leave clones out "
            "of --measure"
        )
    texts = [[get_side(str(row), name) for row in pairs.inputs] for name in SIDES]
    base = setup.task.base(setup.model_directory, torch.float32)
    quantize(base, setup.method.base_precision)
    examples = setup.task.tokenise(pairs, setup.model_directory, setup.tokens)
    untouched = score_together(setup.task.model(base, None), setup.task, examples)[1]
    model = saved_adapter.load(folder, setup.task, base, setup.facts.classes)
    found = {
        "result": score_together(model, setup.task, examples)[1],
        "frozen": untouched,
        "words": compute_word_sides(texts),
    }
    measured = {name: rank_documents(sides) for name, sides in found.items()}
    return {
        "rows": len(pairs),
        **{name: {"first": told["recall_at_1"], "mrr": told["mrr"]} for name, told in measured.items()},
    }


def clone_rows(rows: Rows, seed: int) -> Rows:
    """Return pairs of each document that is a function with its own names, and its clone.

    A clone has the names, its own and its variables', of another of these functions, which a seed chooses.
    """
    functions = [get_side(str(row), "document") for row in rows.inputs]
    made = []
    for i, function in enumerate(functions):
        random = seeds.create_generator(seed, "clone", i)
        other = functions[int(random.choice([j for j in range(len(functions)) if j != i]))]
        twin = clone(function, random, find_own_names(other))
        if twin is not None:
            made.append(pack_pair(function, twin))
    return Rows(made)

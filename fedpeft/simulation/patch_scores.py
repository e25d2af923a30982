"""Mean intersection over union of a run's patch labels, beside two baselines without federation.

A label's intersection over union is TP / (TP + FP + FN) over all patches of the test set that count. The mean is over
labels that occur in the test set or are predicted; it does not depend on how frequent a label is, as accuracy does.

Both baselines are converged logistic regressions on single patches (`fedpeft.simulation.probe`): `frozen` on a patch's
last hidden state of the frozen base, and `pixels` on its pixels. They see the training patches of all clients at once.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
import torch.nn.functional as functional
from numpy.typing import NDArray

from fedpeft.data.cached_rows import load_cached_examples
from fedpeft.data.examples import ImageRows
from fedpeft.data.images_with_texts import is_patch_labeling
from fedpeft.data.rows import Rows
from fedpeft.data.tagged_words import IGNORED
from fedpeft.models.patch_features import compute_patch_features
from fedpeft.models.quantized_base import quantize
from fedpeft.models.scoring import move_batch, score_batches
from fedpeft.peft import saved_adapter
from fedpeft.simulation.probe import fit_linear_probe
from fedpeft.simulation.simulation import Simulation
from fedpeft.simulation.target_probes import Part

MOST_PATCHES = 20_000
"""Most training patches of a baseline, evenly spaced; more take it minutes."""

SIDE = 7
"""Most pixels per side of a patch that a linear model of pixels sees; all 14 x 14 take it minutes."""


def compute_overlaps(right: NDArray[np.int64], said: NDArray[np.int64], names: Sequence[str]) -> dict[str, Any]:
    """Return `mean_iou`, and `iou` by name for labels that occur.

    Args:
        right: correct labels (n,); those that are `IGNORED` do not count.
        said: predicted labels, (n,).
        names: names of the labels.
    """
    counted = right != IGNORED
    pairs = right[counted] * len(names) + said[counted]
    table = np.bincount(pairs, minlength=len(names) ** 2).reshape(len(names), len(names))
    both, either = table.diagonal(), table.sum(0) + table.sum(1) - table.diagonal()
    each = {name: float(both[i] / either[i]) for i, name in enumerate(names) if either[i]}
    return {"mean_iou": float(np.mean(list(each.values()))) if each else 0.0, "iou": each}


def measure_patches(simulation: Simulation) -> dict[str, Any] | None:
    """Score the saved adapter's patch labels on the test set in fp32, and both baselines; None: it labels no patches.

    A quantized base keeps its bits.
    """
    setup = simulation.setup
    if not is_patch_labeling(setup.facts.task):
        return None
    rows, names = simulation.rows, setup.facts.label_names or ()
    splits = [rows.train, rows.all.take(rows.validation), rows.dataset.test]
    train, held, test = (_load(setup.tokenize_rows(part, setup.tokens)) for part in splits)
    base = setup.task.base(setup.model_directory, torch.float32)
    quantize(base, setup.method.base_precision)
    model = saved_adapter.load(simulation.folder, setup.task, base, setup.facts.classes)
    batches = score_batches(test)
    simulation.observer.phase("labels of the test patches (fp32)", len(batches))
    said = np.zeros_like(test.labels)
    for places in batches:
        with torch.inference_mode():
            said[places] = model(move_batch(test.batch(places), model)).argmax(-1).cpu().numpy()
        simulation.observer.advance()
    right = test.labels.ravel()
    found = {"patches": int((right != IGNORED).sum()), **compute_overlaps(right, said.ravel(), names)}
    across = round(train.labels.shape[1] ** 0.5)
    baselines: dict[str, Callable[[Rows, ImageRows], NDArray[np.float32]]] = {
        "frozen": lambda part, _: compute_patch_features(np.asarray(part.inputs), setup.model_directory, across),
        "pixels": lambda _, examples: cut_patches(examples.pixels, across),
    }
    simulation.observer.phase("linear probes of single patches", len(baselines))
    for name, read in baselines.items():
        parts = [
            select_patches(read(part, examples), examples.labels, most)
            for part, examples, most in zip(
                splits, (train, held, test), (MOST_PATCHES, MOST_PATCHES, right.size), strict=True
            )
        ]
        predicted = fit_linear_probe(parts[0], parts[1], parts[2]).predicted
        found[name] = compute_overlaps(parts[2][1], predicted, names)
        simulation.observer.advance()
    return found


def _load(key: str) -> ImageRows:
    examples = load_cached_examples(key)
    assert isinstance(examples, ImageRows)
    return examples


def cut_patches(pixels: NDArray[np.float32], across: int) -> NDArray[np.float32]:
    """Cut images (rows, 3, height, width) into patches of at most `SIDE` pixels per side, from the upper left.

    Returns:
        float32 (rows, across * across, values).
    """
    most = across * SIDE
    smaller = min(pixels.shape[2], most), min(pixels.shape[3], most)
    pixels = functional.adaptive_avg_pool2d(torch.from_numpy(np.array(pixels)), smaller).numpy()
    rows, channels, height, width = pixels.shape
    grid = np.reshape(pixels, (rows, channels, across, height // across, across, width // across))
    return grid.transpose(0, 2, 4, 1, 3, 5).reshape(rows, across * across, -1)


def select_patches(features: NDArray[np.float32], labels: NDArray[np.int64], most: int) -> Part:
    """Return features (n, d) and labels (n,) of the patches that count, at most `most`, evenly spaced.

    Args:
        features: (rows, patches, d).
        labels: (rows, patches).
        most: the largest n.
    """
    places = np.flatnonzero(labels.ravel() != IGNORED)
    if len(places) > most:
        places = places[np.linspace(0, len(places) - 1, most).astype(np.int64)]
    return features.reshape(-1, features.shape[-1])[places], labels.ravel()[places]

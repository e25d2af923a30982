"""Baselines of a run on clips: what one frame shows, and what pixels show.

Both are converged logistic regressions (`fedpeft.simulation.probe`) that see all clients' training clips at once:
`one_frame` on the frozen features of the middle frame, and `pixels` on the mean of the frames' pixels. The run's own
probe is on the mean over frames of the frozen features.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
import torch.nn.functional as functional
from numpy.typing import NDArray

from fedpeft.data.clip_folders import choose_frames
from fedpeft.data.rows import Rows
from fedpeft.models.patch_features import compute_patch_features
from fedpeft.simulation.probe import fit_linear_probe
from fedpeft.simulation.simulation import Simulation

SIDE = 16
"""Most pixels per side of the mean frame that a linear model sees; more take it minutes."""


def measure_clips(simulation: Simulation) -> dict[str, Any] | None:
    """Return the number of frames and both baselines' test accuracy; None: there are no clips with classes."""
    setup, rows = simulation.setup, simulation.rows
    if setup.facts.kind != "clip" or setup.task.targets != "classes":
        return None
    parts = [rows.train, rows.all.take(rows.validation), rows.dataset.test]
    labels = [np.asarray(part.labels) for part in parts]
    simulation.observer.phase("linear probes of one frame and of pixels", 2)
    found: dict[str, Any] = {"frames": int(np.asarray(rows.dataset.test.inputs).shape[1])}
    for name, features in (
        ("one_frame", [compute_patch_features(take_middle(part), setup.model_directory, 1)[:, 0] for part in parts]),
        ("pixels", [average_pixels(part) for part in parts]),
    ):
        train, held, test = zip(features, labels, strict=True)
        found[name] = fit_linear_probe(train, held, test).accuracy
        simulation.observer.advance()
    return found


def take_middle(rows: Rows) -> NDArray[np.uint8]:
    """Return the middle frame of each clip, uint8 (rows, height, width, 3)."""
    clips = np.asarray(rows.inputs)
    middle: NDArray[np.uint8] = clips[:, choose_frames(clips.shape[1], 1)[0]]
    return middle


def average_pixels(rows: Rows) -> NDArray[np.float32]:
    """Return the mean of each clip's frames, at most `SIDE` pixels per side, (rows, height * width * 3)."""
    mean = torch.from_numpy(np.asarray(rows.inputs).mean(1, dtype=np.float32) / 255).permute(0, 3, 1, 2)
    small = functional.adaptive_avg_pool2d(mean, (min(SIDE, mean.shape[2]), min(SIDE, mean.shape[3])))
    averaged: NDArray[np.float32] = small.permute(0, 2, 3, 1).flatten(1).numpy()
    return averaged

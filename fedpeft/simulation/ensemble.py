"""The last states of a run as one model: the mean of their probabilities.

Snapshots of one training are a cheap ensemble (Huang et al., ICLR 2017, arXiv 1704.00109). In a federation each is the
mean over another cohort. They are adapters over one base, which is loaded once.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file
from torch import Tensor

from fedpeft.data.cached_rows import load_cached_examples
from fedpeft.data.examples import Examples
from fedpeft.machine.files import check_regular_file
from fedpeft.models.scoring import compute_logits, score_batches
from fedpeft.models.task import FederatedModel, find_trainable
from fedpeft.peft.adapter import State
from fedpeft.simulation.rows import SimulatedRows
from fedpeft.trust.calibration import CalibrationResult
from fedpeft.trust.questions.reliability import Reliability
from fedpeft.wiring.setup import Setup, load_adapted_model

RELIABILITY = Reliability()


def load_model(setup: Setup) -> FederatedModel:
    """Load the base in fp32, with an adapter that states can be put into."""
    return load_adapted_model(setup.task, setup.model_directory, setup.method, "fp32", setup.facts.classes).eval()


def put(model: FederatedModel, state: State) -> None:
    """Put a state into the model."""
    with torch.no_grad():
        for name, parameter in find_trainable(model).items():
            parameter.copy_(state[name].reshape(parameter.shape))


def compute_probabilities(model: FederatedModel, examples: Examples) -> Tensor:
    """Return the class probabilities of all examples, (rows, classes) in fp64."""
    found: list[Tensor] = [torch.empty(0)] * len(examples)
    for index in score_batches(examples):
        for place, row in zip(index.tolist(), compute_logits(model, examples.batch(index)).softmax(-1), strict=True):
            found[place] = row
    return torch.stack(found)


def evaluate_ensemble(setup: Setup, rows: SimulatedRows, folder: Path) -> dict[str, Any]:
    """Evaluate the states in `folder` for summary.json: the `last` one alone, and all `together`."""
    files = sorted(folder.glob("*.safetensors"))
    examples = load_cached_examples(setup.tokenize_rows(rows.dataset.test, setup.tokens))
    labels = torch.from_numpy(np.asarray(rows.dataset.test.labels))
    model, each = load_model(setup), []
    for file in files:
        put(model, load_file(check_regular_file(file)))
        each.append(compute_probabilities(model, examples))
    told = {"last": each[-1], "together": torch.stack(each).mean(0)}
    found = {
        name: CalibrationResult.from_sums(RELIABILITY.answer(p.log(), labels), RELIABILITY) for name, p in told.items()
    }
    return {"rounds": [int(file.stem) for file in files], **{name: one.to_dict() for name, one in found.items()}}

"""The last states of a run as one model: the mean of their probabilities.

Snapshots of one training are a cheap ensemble (Huang et al., ICLR 2017, arXiv 1704.00109); in a federation each is the
mean over another cohort. They are adapters over one base, which is loaded once.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file
from torch import Tensor

from fedpeft.data.cached_rows import cached_examples
from fedpeft.data.examples import Examples
from fedpeft.machine.files import regular
from fedpeft.models.scoring import logits, score_batches
from fedpeft.models.task import FederatedModel, trainable
from fedpeft.peft.adapter import State
from fedpeft.run.setup import Setup, adapted_model
from fedpeft.simulation.rows import SimulatedRows
from fedpeft.trust.calibration import Calibrated
from fedpeft.trust.questions.reliability import Reliability

RELIABILITY = Reliability()


def model_of(setup: Setup) -> FederatedModel:
    """The base in fp32 with an adapter that states can be put into."""
    return adapted_model(setup.task, setup.model_directory, setup.method, "fp32", setup.facts.classes).eval()


def put(model: FederatedModel, state: State) -> None:
    """Put a state into the model."""
    with torch.no_grad():
        for name, parameter in trainable(model).items():
            parameter.copy_(state[name].reshape(parameter.shape))


def probabilities(model: FederatedModel, examples: Examples) -> Tensor:
    """Of all rows, (rows, classes) in fp64."""
    found: list[Tensor] = [torch.empty(0)] * len(examples)
    for index in score_batches(examples):
        for place, row in zip(index.tolist(), logits(model, examples.batch(index)).softmax(-1), strict=True):
            found[place] = row
    return torch.stack(found)


def ensemble(setup: Setup, rows: SimulatedRows, folder: Path) -> dict[str, Any]:
    """What summary.json holds of it, of the states in `folder`: the `last` of them alone, and all `together`."""
    files = sorted(folder.glob("*.safetensors"))
    examples = cached_examples(setup.tokenised(rows.dataset.test, setup.tokens))
    labels = torch.from_numpy(np.asarray(rows.dataset.test.labels))
    model, each = model_of(setup), []
    for file in files:
        put(model, load_file(regular(file)))
        each.append(probabilities(model, examples))
    told = {"last": each[-1], "together": torch.stack(each).mean(0)}
    found = {name: Calibrated.of(RELIABILITY.answer(p.log(), labels), RELIABILITY) for name, p in told.items()}
    return {"rounds": [int(file.stem) for file in files], **{name: one.as_dict() for name, one in found.items()}}

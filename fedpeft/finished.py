"""The result of a run as others load it: a standard PEFT adapter, the head, the labels.

    adapter/    what `peft.PeftModel.from_pretrained` loads on the base model; and, for classification,
                head.safetensors (head.weight, head.bias) and labels.json
    model/      the whole model instead, after full fine-tuning

The reported test score is computed by `load` and `score`: the saved files, the untouched base, fp32, fixed batches.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file

from fedpeft.adapter import State
from fedpeft.errors import RunError
from fedpeft.examples import Batch, Examples, length_sorted_batches
from fedpeft.task import FederatedModel, Task, trainable

SCORE_BATCH = 32
"""Rows per batch of the final score."""


def save(folder: Path, model: FederatedModel, state: State, labels: Sequence[str] | None) -> None:
    """Write `state`, put into `model` (which carries the adapter), to `folder`/adapter (or `folder`/model).

    Raises:
        RunError: the files can't be written.
    """
    parameters = trainable(model)
    with torch.no_grad():
        for name, tensor in state.items():
            parameters[name].copy_(tensor)
    is_adapter = hasattr(model.base, "peft_config")
    target = folder / ("adapter" if is_adapter else "model")
    try:
        model.base.save_pretrained(str(target))  # type: ignore[operator]
        if labels is not None:
            head = {n: t.float().contiguous() for n, t in state.items() if n.startswith("head.")}
            save_file(head, target / "head.safetensors")
            (target / "labels.json").write_text(json.dumps(list(labels), indent=1) + "\n", encoding="utf-8")
    except OSError as error:
        raise RunError(f"the result can't be written to {target}: {error}") from error


def load(folder: Path, task: Task, model_directory: Path, classes: int) -> FederatedModel:
    """The finished model in fp32, from its files.

    Raises:
        RunError: there is no adapter and no model in `folder`.
    """
    from peft import PeftModel

    if (folder / "adapter").is_dir():
        base = task.base(model_directory, torch.float32)
        model = task.model(base, classes)
        model.base = PeftModel.from_pretrained(base, str(folder / "adapter"))
        files = folder / "adapter"
    elif (folder / "model").is_dir():
        model = task.model(task.base(folder / "model", torch.float32), classes)
        files = folder / "model"
    else:
        raise RunError(f"{folder} holds no finished run: neither adapter/ nor model/ is there")
    if classes:
        model.load_state_dict(load_file(files / "head.safetensors"), strict=False)
    return model.eval().requires_grad_(False)


@dataclass(frozen=True)
class Scores:
    """Per row, in the order of the rows: loss summed over predictions, correct predictions, predictions; class and
    confidence of the prediction (-1 and 0 for language)."""

    loss: np.ndarray
    correct: np.ndarray
    count: np.ndarray
    predicted: np.ndarray
    confidence: np.ndarray


def score_batches(examples: Examples) -> list[np.ndarray]:
    """The fixed batches of the final score."""
    return length_sorted_batches(examples.lengths, SCORE_BATCH)


def score(model: FederatedModel, task: Task, batch: Batch) -> Scores:
    """Scores of one batch, rows in its order."""
    with torch.inference_mode():
        logits = model(batch)
        losses = task.losses(logits, batch)
    if logits.ndim == 2:
        confidence, predicted = F.softmax(logits, -1).max(-1)
    else:
        confidence, predicted = torch.zeros(len(logits)), torch.full((len(logits),), -1)
    arrays = (losses.sums, losses.correct, losses.counts, predicted, confidence)
    return Scores(*(a.cpu().numpy() for a in arrays))

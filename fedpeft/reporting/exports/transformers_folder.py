"""A finished model without adapter, as a folder that transformers alone can load: weights, tokenizer, names."""

from __future__ import annotations

import copy
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from fedpeft.data.images import count_patches
from fedpeft.data.tokens import load_tokenizer
from fedpeft.errors import FedpeftError
from fedpeft.machine.files import raise_write_errors
from fedpeft.models.abilities import ConvertsHead
from fedpeft.models.layers import find_blocks
from fedpeft.models.readout import AllBlocks, get_plain_base
from fedpeft.models.task import FederatedModel, Targets, Task
from fedpeft.parts.plugin_files import hash_own_code
from fedpeft.reporting.finished_run import FinishedRun


def write(run: FinishedRun, model: FederatedModel, folder: Path) -> None:
    """Write the run's `model` to `folder`.

    A language model becomes one of transformers' own classes, with its chat template and generation settings. A
    classifier becomes `fedpeft.models.modeling_mean_pooled.MeanPooledClassifier`, with logits divided by the run's
    temperature. Its tokenizer truncates texts as in training; for images, `fedpeft.data.image_processing_squares`
    prepares them as in training.

    Raises:
        RunError: the files can't be written.
        ModelError: the base model has no tokenizer.
    """
    whole: Any = model.base
    if run.labels is not None:
        whole = create_classifier(model, run.labels, run.is_image_model, run.task, run.temperature)
    with raise_write_errors(folder):
        whole.save_pretrained(str(folder))
        if run.is_image_model:
            if (fed := create_processor(run)) is not None:
                fed.save_pretrained(str(folder))
            return
        tokenizer = load_tokenizer(run.model_directory)
        if run.labels is not None:
            tokenizer.model_max_length = run.tokens
        tokenizer.save_pretrained(str(folder))


def create_processor(run: FinishedRun) -> Any:
    """Return an image processor of transformers that prepares pictures as the run did, and that can be saved.

    None: the examples came from Python, so that their size is unknown.
    """
    from fedpeft.data.image_processing_squares import SquarePictures

    try:
        side = run.picture_side
    except FedpeftError:
        return None
    patches, patch = count_patches(side, run.model_directory)
    kind: Any = SquarePictures
    kind.register_for_auto_class()  # so that its source file is saved with it
    return kind(side=side, size={"height": patches * patch, "width": patches * patch})


PROBLEMS: dict[Targets, str] = {
    "classes": "single_label_classification",
    "labels": "multi_label_classification",
    "numbers": "regression",
}
"""Transformers' names of prediction problems."""


def create_classifier(model: Any, labels: Sequence[str], images: bool, task: Task, temperature: float = 1.0) -> Any:
    """Return the model, whose base holds no adapter, as a class of transformers that can be saved.

    Numbers are in their unit. Classes have the confidence of `predict`: logits are divided by the `temperature`.
    """
    from fedpeft.models import modeling_mean_pooled

    kind: Any = modeling_mean_pooled.MeanPooledClassifier
    base = json.loads(model.base.config.to_json_string(use_diff=False))
    base.pop("_name_or_path", None)  # the base's path on this machine
    names, encoder, all_blocks = dict(enumerate(labels)), get_plain_base(model.base), isinstance(model.base, AllBlocks)
    config = kind.config_class(
        base=base,
        all_blocks=all_blocks,
        blocks=find_blocks(encoder)[0] if all_blocks and hash_own_code(type(encoder)) else "",
        id2label=names,
        label2id={name: i for i, name in names.items()},
        problem_type=PROBLEMS.get(task.targets),
    )
    kind.config_class.register_for_auto_class()  # so that its source file is saved with it
    kind.register_for_auto_class("AutoModelForImageClassification" if images else "AutoModelForSequenceClassification")
    with torch.device("meta"):  # the weights are there already
        made = kind(config)
    made.base, made.head = encoder, copy.deepcopy(model.head)
    head = model.head.state_dict()
    told = task.export_head(head) if isinstance(task, ConvertsHead) else head
    made.head.load_state_dict({name: tensor / temperature for name, tensor in told.items()})
    return made.eval()

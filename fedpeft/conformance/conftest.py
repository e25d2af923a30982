"""Fixtures of the suite: the pieces of one tiny federation, with small real models on generated text and no mocks."""

from __future__ import annotations

import copy
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
torch.set_num_threads(1)

SMALL_FILES = 5_000_000
"""Most bytes of a folder's files for which the model stays in memory."""


@pytest.fixture(autouse=True, scope="session")
def small_bases_are_read_once() -> Iterator[None]:
    """Read each small base model once per process, and again when its files change.

    Most tests start with one of a few small models, and transformers takes longer to read one than a test to train it.
    """
    from fedpeft.models import loading

    kept: dict[object, Any] = {}
    read = loading._load_with_attention

    def load_once(load: Callable[..., Any], directory: Path, dtype: torch.dtype, options: dict[str, Any]) -> Any:
        files = [(path, path.stat()) for path in sorted(directory.rglob("*")) if path.is_file()]
        if sum(found.st_size for _, found in files) > SMALL_FILES:
            return read(load, directory, dtype, options)
        state = tuple((path, found.st_size, found.st_mtime_ns) for path, found in files)
        key = (load, dtype, repr(options), state)
        if key not in kept:
            model, report = read(load, directory, dtype, options)
            if report["missing_keys"]:  # missing weights are drawn at random
                return model, report
            kept[key] = model, report
        return copy.deepcopy(kept[key])

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(loading, "_load_with_attention", load_once)
        yield


@pytest.fixture(scope="session")
def tiny() -> tuple[Any, Any, Path, int]:
    """Return task, tokenized examples, model folder and number of classes of the tiny dataset."""
    from fedpeft.data.rows import load_dataset
    from fedpeft.models.base_model import resolve_model
    from fedpeft.parts.families import TASKS

    data = load_dataset("tiny")
    task = TASKS.build("classification")
    folder = resolve_model("tiny")
    rows = task.tokenise(data.train.take(np.arange(200)), folder, 32)
    return task, rows, folder, data.classes


def build_with_defaults(family: Any, name: str) -> Any:
    """Build a part with its default settings; skip the test if some have no default."""
    from fedpeft.conformance import list_required_settings

    if needed := list_required_settings(family.part(name)):
        pytest.skip(f"must be given {', '.join(needed)}")
    return family.build(name)

"""What the suite shares: one tiny federation's pieces. Nothing here is faked: small real models on made text."""

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
"""Bytes of a folder's files, at most, whose model stays in memory."""


@pytest.fixture(autouse=True, scope="session")
def small_bases_are_read_once() -> Iterator[None]:
    """Most tests begin with one of a few small models, and transformers takes longer to read it than they take to train
    it: its files are read once per process, and again when they have changed."""
    from fedpeft.models import loading

    kept: dict[object, Any] = {}
    read = loading._load_with_attention

    def loaded(load: Callable[..., Any], directory: Path, dtype: torch.dtype, options: dict[str, Any]) -> Any:
        files = [(path, path.stat()) for path in sorted(directory.rglob("*")) if path.is_file()]
        if sum(found.st_size for _, found in files) > SMALL_FILES:
            return read(load, directory, dtype, options)
        state = tuple((path, found.st_size, found.st_mtime_ns) for path, found in files)
        key = (load, dtype, repr(options), state)
        if key not in kept:
            model, report = read(load, directory, dtype, options)
            if report["missing_keys"]:  # these are drawn at random
                return model, report
            kept[key] = model, report
        return copy.deepcopy(kept[key])

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(loading, "_load_with_attention", loaded)
        yield


@pytest.fixture(scope="session")
def tiny() -> tuple[Any, Any, Path, int]:
    """Task, tokenised rows, model folder and number of classes of the tiny data set."""
    from fedpeft.data.rows import load_dataset
    from fedpeft.models.base_model import resolve_model
    from fedpeft.models.task import TASKS

    data = load_dataset("tiny")
    task = TASKS.build("classification")
    folder = resolve_model("tiny")
    rows = task.tokenise(data.train.take(np.arange(200)), folder, 32)
    return task, rows, folder, data.classes


def build_with_defaults(family: Any, name: str) -> Any:
    """The part as it is without settings; a test of one that must be given some is skipped."""
    from fedpeft.conformance import list_required_settings

    if needed := list_required_settings(family.part(name)):
        pytest.skip(f"must be given {', '.join(needed)}")
    return family.build(name)

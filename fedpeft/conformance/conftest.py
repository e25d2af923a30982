"""What the suite shares: one tiny federation's pieces. Nothing here is faked: small real models on made text."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
torch.set_num_threads(1)


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


def with_defaults(family: Any, name: str) -> Any:
    """The part as it is without settings; a test of one that must be given some is skipped."""
    from fedpeft.conformance import to_be_given

    if needed := to_be_given(family.part(name)):
        pytest.skip(f"must be given {', '.join(needed)}")
    return family.build(name)

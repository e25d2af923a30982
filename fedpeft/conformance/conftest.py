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

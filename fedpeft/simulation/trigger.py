"""The success of an attack that plants a trigger: what the finished model answers to test rows that carry it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch

from fedpeft.clients.attack import ATTACKS
from fedpeft.data.rows import Rows
from fedpeft.models.quantized import quantize
from fedpeft.peft import saved_adapter
from fedpeft.run.setup import Setup
from fedpeft.simulation.robustness import predictions
from fedpeft.simulation.rows import SimulatedRows


def trigger_success(setup: Setup, rows: SimulatedRows, folder: Path) -> dict[str, Any] | None:
    """Return how often the model in `folder` gives the attack's class to test rows of other classes.

    Returns:
        None if the run's attack plants no trigger. Else `target`, the number of such `rows`, and the shares of them
        that the model gives the class: `success` with the trigger, `without` as they are.
    """
    attack = ATTACKS.build(setup.config.attack)
    if not attack.plants_trigger:
        return None
    base = setup.task.base(setup.model_directory, torch.float32)
    quantize(base, setup.method.base_precision)
    model = saved_adapter.load(folder, setup.task, base, setup.facts.classes)
    test = rows.dataset.test
    others = test.take(np.flatnonzero(np.asarray(test.labels) != attack.aim))

    def share(read: Rows) -> float:
        examples = setup.task.tokenise(read, setup.model_directory, setup.tokens)
        return float((predictions(model, examples) == attack.aim).mean()) if len(read) else 0.0

    return {
        "target": attack.aim,
        "rows": len(others),
        "success": share(attack.triggered(others)),
        "without": share(others),
    }

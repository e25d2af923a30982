"""The success rate of a backdoor in a whole run."""

import json

import numpy as np
import torch

from fedpeft.data.rows import Rows, load_dataset
from fedpeft.models.base_model import resolve_model
from fedpeft.models.task import TASKS
from fedpeft.peft import saved_adapter
from fedpeft.simulation.robustness import predictions

SMALL = {
    "dataset": "tiny",
    "model": "tiny",
    "tokens": 32,
    "clients": 4,
    "cohort": "all",
    "local_work": "steps(4)",
    "dtype": "fp32",
    "head": "zero",
    "measure": "validation(every=9, keep=last)",
    "safeguard": "none",
}


def test_the_rate_is_that_of_test_rows_of_other_classes_with_the_trigger(finished_run):
    given = {"rounds": 3, "learning_rate": 1e-2, "optimizer": "adamw(head_rate=1.0, schedule=constant)"}
    folder = finished_run(**SMALL, **given, attack="backdoor(fraction=0.5, target=1, trigger='zz zz zz')")
    found = json.loads((folder / "summary.json").read_text())["trust"]["trigger"]
    task, data = TASKS.build("classification"), load_dataset("tiny")
    model_folder = resolve_model("tiny")
    model = saved_adapter.load(folder, task, task.base(model_folder, torch.float32), data.classes)
    others = [text for text, label in zip(data.test.inputs, data.test.labels, strict=True) if label != 1]
    shares = {}
    for name, texts in (("without", others), ("success", [f"zz zz zz {text}" for text in others])):
        rows = task.tokenise(Rows(texts, np.zeros(len(texts), np.int64)), model_folder, 32)
        shares[name] = float((predictions(model, rows) == 1).mean())
    assert found == {"target": 1, "rows": len(others), **shares}


def test_a_run_without_a_trigger_has_no_rate(finished_run):
    folder = finished_run(**SMALL, rounds=1, attack="sign_flip(fraction=0.5)")
    assert "trigger" not in (json.loads((folder / "summary.json").read_text()).get("trust") or {})

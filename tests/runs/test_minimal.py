"""`examples/minimal.py`, which does not import fedpeft, computes the adapter that `simulate` computes."""

from __future__ import annotations

import ast
import csv

import numpy as np

from fedpeft.data.rows import load_dataset
from fedpeft.models.base_model import resolve_model
from fedpeft.simulate import main as simulate
from fedpeft.wiring.config import RunConfig
from tests.minimal_run import MINIMAL, SETTINGS, compute_distance, load_minimal


def test_a_simulation_ends_with_the_adapter_of_the_plain_loop(tmp_path):
    rows = load_dataset("tiny(rows=150, test_rows=1)").train
    table = [
        {"text": text, "label": f"class {label}", "owner": owner}
        for text, label, owner in zip(rows.inputs, rows.labels, rows.owners, strict=True)
    ]
    is_test = np.arange(len(table)) % 5 == 4
    for name, chosen in (("train", ~is_test), ("test", is_test)):
        with (tmp_path / f"{name}.csv").open("w", newline="") as file:
            writer = csv.DictWriter(file, table[0])
            writer.writeheader()
            writer.writerows(row for row, is_chosen in zip(table, chosen, strict=True) if is_chosen)
    files = {part: str(tmp_path / f"{part}.csv") for part in ("train", "test")}
    dataset = f"file(path={files['train']!r}, validation={files['test']!r}, test={files['test']!r})"
    config = RunConfig(**SETTINGS, dataset=dataset, partition="natural", clients=0)
    (tmp_path / "run.toml").write_text(config.to_toml())
    assert simulate([str(tmp_path / "run.toml"), "--output", str(tmp_path / "run")]) == 0

    folder = str(resolve_model("tiny"))
    state, accuracies = load_minimal().run(table, is_test, "text", "label", "owner", folder)
    assert compute_distance(state, tmp_path / "run") < 1e-12
    assert len(accuracies) == SETTINGS["rounds"]


def test_the_example_is_short_and_does_not_import_fedpeft():
    text = MINIMAL.read_text(encoding="utf-8")
    assert len(text.splitlines()) <= 160
    imported = {node.module or "" for node in ast.walk(ast.parse(text)) if isinstance(node, ast.ImportFrom)}
    imported |= {a.name for node in ast.walk(ast.parse(text)) if isinstance(node, ast.Import) for a in node.names}
    assert not [name for name in imported if name.split(".")[0] == "fedpeft"]

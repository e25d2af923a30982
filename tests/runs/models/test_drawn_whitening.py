"""Whitening by drawn pictures: what it does to states, that a head on them is one on plain states, and whole runs."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from fedpeft.data.rows import load_dataset
from fedpeft.models.drawn_whitening import compute_whitening
from fedpeft.simulate import main as simulate
from fedpeft.wiring.config import RunConfig
from fedpeft.wiring.dataset_info import DatasetInfo
from fedpeft.wiring.run_spec import parse_run
from fedpeft.wiring.setup import Setup

RUN = (
    "--model",
    "tiny_vision",
    "--dataset",
    "digits",
    "--clients",
    "4",
    "--cohort",
    "2",
    "--rounds",
    "2",
    "--dtype",
    "fp32",
    "--workers",
    "1",
)


def test_a_run_saves_a_plain_probe_that_says_the_same(tmp_path):
    """Its rounds are of white states, and the test rows are scored by the files."""
    folder = tmp_path / "run"
    given = ["--peft", "whitened_probe", "--measure", "validation(every=1, keep=last)", "--output", str(folder)]
    assert simulate([*RUN, *given]) == 0
    assert json.loads((folder / "adapter" / "method.json").read_text())["method"] == "linear_probe"
    saved = load_file(folder / "adapter" / "head.safetensors")
    data = load_dataset("digits")
    setup = Setup.create(
        parse_run(RunConfig(dataset="digits", model="tiny_vision", peft="whitened_probe", clients=4, dtype="fp32")),
        DatasetInfo.from_dataset(data, 4, judged=True),
    )
    model = setup.model()
    found = compute_whitening(model.base)
    # what the head was on white states, back from the files
    weight = saved["head.weight"].double() @ torch.linalg.inv(found.turn)
    bias = saved["head.bias"].double() + saved["head.weight"].double() @ found.center
    model.load_state_dict({"head.weight": weight.float(), "head.bias": bias.float()}, strict=False)
    rows = setup.task.tokenise(data.test, setup.model_directory, 0)
    with torch.no_grad():
        said = model(rows.batch(np.arange(len(rows)))).argmax(1).numpy()
    summary = json.loads((folder / "summary.json").read_text())
    assert float((said == data.test.labels).mean()) == pytest.approx(summary["accuracy"], abs=0.005)
    assert summary["accuracy"] > 0.3, "and that is no guess"


@pytest.mark.parametrize(("given", "head"), [((), "private_centroids"), (("--head", "private_ridge"), "private_ridge")])
def test_what_is_released_and_not_trained_is_directions(tmp_path, given, head):
    folder = tmp_path / "run"
    all_of_them = ("--cohort", "4", "--privacy", "distributed_dp(epsilon=0.3)")
    assert simulate([*RUN, *given, *all_of_them, "--output", str(folder)]) == 0
    said = (folder / "config.toml").read_text()
    assert 'peft = "whitened_probe"' in said
    assert f'head = "{head}"' in said
    assert json.loads((folder / "summary.json").read_text())["rounds"] == 0


def test_a_budget_alone_plans_it_for_pictures(tmp_path, capsys):
    folder = tmp_path / "run"
    assert simulate([*RUN, "--privacy", "dp_sgd(epsilon=8)", "--output", str(folder)]) == 0
    assert 'peft = "whitened_probe"' in (folder / "config.toml").read_text()
    assert "whitened_probe" in capsys.readouterr().out

"""Recipes can be read, stand on their page, and have the settings that gave the results that they state."""

from __future__ import annotations

import json
import re
from dataclasses import asdict
from pathlib import Path
from statistics import mean

import pytest
from sklearn.linear_model import LinearRegression
from sklearn.metrics import root_mean_squared_error

from fedpeft.data.rows import load_dataset
from fedpeft.wiring.config import read_config

ROOT = Path(__file__).parents[2]
RECIPES = sorted((ROOT / "examples" / "recipes").glob("*.toml"))
PAGE = (ROOT / "docs" / "recipes.md").read_text(encoding="utf-8")
MEASURED = {
    "slow_links": ("communication/default", {"method": "small"}),
    "mixed_devices": ("ranks", {"method": "by client", "task": "reviews"}),
    "continual": ("continual", {"method": "prototypes"}),
    "private_hospital": ("private_plan/shared", {"task": "R8", "budget": "8"}),
}
"""Recipes whose runs are committed: the experiment, and the point of its study."""
FREE = {"seed", "workers", "dtype"}
"""Settings that the study varies, or that belong to its machine."""


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_a_recipe_is_read_and_stands_on_the_page_with_its_result(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    assert read_config(path).rounds >= 1
    assert f"fedpeft simulate examples/recipes/{path.name}" in PAGE
    head = " ".join(line.lstrip("# ") for line in text.splitlines() if line.startswith("#"))
    assert (numbers := re.findall(r"\d\.\d+", head.partition("Result")[2])), path.name
    assert numbers[0] in PAGE


def test_the_linear_model_that_beats_the_sensors_recipe_has_its_stated_result() -> None:
    data = load_dataset(read_config(ROOT / "examples" / "recipes" / "sensors.toml").dataset)
    train, test = (
        [list(map(float, re.findall(r"\d[\d.]*", text))) for text in part.inputs] for part in (data.train, data.test)
    )
    model = LinearRegression().fit(train, data.train.labels)
    error = root_mean_squared_error(data.test.labels, model.predict(test))
    assert f"RMSE {error:.1f}, R^2 {model.score(test, data.test.labels):.3f}" in PAGE


def test_each_recipe_of_the_page_exists() -> None:
    assert set(re.findall(r"examples/recipes/(\w+)\.toml", PAGE)) == {path.stem for path in RECIPES}


@pytest.mark.parametrize("name", MEASURED)
def test_a_recipe_has_the_settings_and_the_mean_of_its_committed_runs(name: str) -> None:
    folder, point = MEASURED[name]
    lines = (ROOT / "experiments" / folder / "results.jsonl").read_text(encoding="utf-8").splitlines()
    runs = [run for run in map(json.loads, lines) if run["point"] == point and run["preset"] != "full"]
    assert len(runs) == 5
    settings = asdict(read_config(ROOT / "examples" / "recipes" / f"{name}.toml"))
    for key in runs[0]["config"].keys() - FREE:
        given, measured = settings[key], runs[0]["config"][key]
        assert given == measured or given == "auto", f"{key}: {given} instead of {measured}"
    text = (ROOT / "examples" / "recipes" / f"{name}.toml").read_text(encoding="utf-8")
    assert f"{mean(run['summary']['accuracy'] for run in runs):.3f}" in text
    assert f"{runs[0]['summary']['baseline_accuracy']:.3f}" in text

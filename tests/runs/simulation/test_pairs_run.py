"""Runs whose rows are pairs, from data to a scored adapter: interrupted or not, and what is refused."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from rich.console import Console
from safetensors.torch import load_file

from fedpeft.errors import ConfigError, ModelError, PrivacyError
from fedpeft.reporting.finished_run import FinishedRun
from fedpeft.reporting.observer import RoundResult
from fedpeft.simulate import main, simulate
from fedpeft.wiring.config import RunConfig
from tests.refusals import pattern_of, refuses

PAIRS = {
    "dataset": "tiny_pairs(rows=80, test_rows=20)",
    "clients": 4,
    "partition": "iid",
    "cohort": 2,
    "rounds": 2,
    "batch_size": 8,
    "dtype": "fp32",
    "workers": 1,
    "peft": "lora(rank=2, layers=1)",
}
QUIET = Console(quiet=True)


def run(folder: Path, **more):
    return simulate(RunConfig(**PAIRS | more), folder, False, QUIET)


@pytest.mark.slow
def test_a_run_of_pairs_goes_on_where_it_was_interrupted_and_says_how_well_pairs_are_found(tmp_path) -> None:
    whole = run(tmp_path / "whole").to_dict()

    def stop(result: RoundResult) -> None:
        if result.round == 1:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        simulate(RunConfig(**PAIRS), tmp_path / "cut", False, QUIET, on_round=stop)
    assert main(["--resume", str(tmp_path / "cut")]) == 0
    one, other = (load_file(tmp_path / name / "adapter" / "adapter_model.safetensors") for name in ("whole", "cut"))
    assert all(torch.equal(one[name], other[name]) for name in one)
    found = whole["retrieval"]
    assert found == json.loads((tmp_path / "cut" / "summary.json").read_text())["retrieval"]
    assert found["recall_at_1"] == pytest.approx(whole["accuracy"])
    assert found["words"]["mrr"] > 0.5  # a query's words are its document's
    assert {*found["frozen"]} == {*found["words"]} == {*found["reverse"]}
    with refuses("FP5171"):
        FinishedRun.read(tmp_path / "whole").check_answers()


@pytest.mark.fast
@pytest.mark.parametrize(
    ("more", "error", "said"),
    [
        ({"batch_size": 1}, ConfigError, ("FP1306",)),
        ({"optimizer": "adamw(rows_per_pass=4)"}, ConfigError, ("FP1307",)),
        (
            {"privacy": "dp_sgd(epsilon=8)"},
            PrivacyError,
            ("FP7090", "retrieval compares an example with the others of its batch"),
        ),
        ({"measure": "forgetting(dataset=tiny)"}, ConfigError, ("FP1315",)),
        ({"dataset": "tiny", "measure": "clones"}, ConfigError, ("FP1314",)),
        ({"drift": "label_shift"}, ConfigError, ("FP1341",)),
        ({"dataset": "tiny_lm", "measure": "forgetting(dataset=tiny_pairs)"}, ConfigError, ("FP1411",)),
        ({"dataset": "scenes(rows=20)", "model": "tiny"}, ModelError, ("FP4050",)),
    ],
)
def test_what_pairs_can_not_have_is_refused(tmp_path, more, error, said) -> None:
    with pytest.raises(error, match=pattern_of(*said)):
        run(tmp_path / "run", **more)


def test_clones_of_what_is_no_code_are_refused(tmp_path) -> None:
    with refuses("FP3175"):
        run(tmp_path / "run", measure="clones", rounds=1)


SCENES = {
    "dataset": "scenes(rows=48, validation_rows=8, test_rows=12, owners=4, images_only=0.25, texts_only=0.25)",
    "model": "towers(image='tiny_vision', text='tiny')",
    "partition": "natural",
    "clients": 0,
    "cohort": 4,
}


@pytest.mark.slow
@pytest.mark.parametrize("peft", ["lora", "linear_probe"])
def test_two_towers_learn_from_clients_of_which_some_have_one_side(tmp_path, peft) -> None:
    whole = run(tmp_path / "whole", **SCENES | {"peft": peft}).to_dict()

    def stop(result: RoundResult) -> None:
        if result.round == 1:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        simulate(RunConfig(**PAIRS | SCENES | {"peft": peft}), tmp_path / "cut", False, QUIET, on_round=stop)
    assert main(["--resume", str(tmp_path / "cut")]) == 0
    heads = [load_file(tmp_path / name / "adapter" / "head.safetensors") for name in ("whole", "cut")]
    assert all(torch.equal(heads[0][name], heads[1][name]) for name in heads[0])
    assert whole["retrieval"] == json.loads((tmp_path / "cut" / "summary.json").read_text())["retrieval"]
    assert whole["retrieval"]["recall_at_1"] == pytest.approx(whole["accuracy"])

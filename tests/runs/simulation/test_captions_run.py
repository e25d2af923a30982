"""Runs whose rows are images with captions, from data to what is said of a picture; and what is refused."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from PIL import Image
from rich.console import Console
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from fedpeft.commands.export import export
from fedpeft.commands.predict import predict
from fedpeft.data.rows import load_dataset
from fedpeft.data.tokens import load_tokenizer
from fedpeft.errors import ConfigError, DataError, ModelError, PrivacyError
from fedpeft.evaluate.__main__ import main as evaluate
from fedpeft.evaluate.answered_rows import answer_rows
from fedpeft.models.base_model import resolve_model
from fedpeft.models.patch_features import compute_patch_features
from fedpeft.peft import saved_adapter
from fedpeft.reporting.finished_run import FinishedRun
from fedpeft.reporting.observer import RoundResult
from fedpeft.simulate import main, simulate
from fedpeft.wiring.config import RunConfig
from tests.refusals import has_error, pattern_of, refuses
from tests.scene_words import tiny_captioner

CAPTIONS = {
    "dataset": "scenes(rows=48, validation_rows=8, test_rows=12, owners=4, task=captions)",
    "clients": 0,
    "cohort": 2,
    "rounds": 2,
    "batch_size": 8,
    "dtype": "fp32",
    "workers": 1,
    "peft": "lora(rank=2, layers=1)",
}
QUIET = Console(quiet=True)


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return tiny_captioner(tmp_path_factory.mktemp("captioner") / "words")


@pytest.fixture
def run(model, tmp_path):
    return lambda name="run", **more: simulate(
        RunConfig(**CAPTIONS | {"model": model} | more), tmp_path / name, False, QUIET
    )


@pytest.mark.slow
@pytest.mark.parametrize("peft", ["lora(rank=2, layers=1)", "linear_probe"])
def test_a_run_goes_on_where_it_was_interrupted_and_says_what_it_sees(run, model, tmp_path, capsys, peft) -> None:
    whole = run("whole", peft=peft).to_dict()

    def stop(result: RoundResult) -> None:
        if result.round == 1:
            raise KeyboardInterrupt

    config = RunConfig(**CAPTIONS | {"model": model, "peft": peft})
    with pytest.raises(KeyboardInterrupt):
        simulate(config, tmp_path / "cut", False, QUIET, on_round=stop)
    assert main(["--resume", str(tmp_path / "cut")]) == 0
    for file in sorted((tmp_path / "whole" / "adapter").glob("*.safetensors")):
        one, other = load_file(file), load_file(tmp_path / "cut" / "adapter" / file.name)
        assert one.keys() == other.keys()
        assert all(torch.equal(one[name], other[name]) for name in one)
    assert whole["captions"] == json.loads((tmp_path / "cut" / "summary.json").read_text())["captions"]
    assert whole["prepare_bytes"] > 0
    assert whole["captions"]["rows"] == 12
    told = [json.loads(line) for line in (tmp_path / "whole" / "captions.jsonl").read_text().splitlines()]
    test = load_dataset(CAPTIONS["dataset"]).test
    assert [line["right"] for line in told] == list(test.texts)

    Image.fromarray(test.inputs[3]).save(tmp_path / "scene.png")
    capsys.readouterr()
    predict([tmp_path / "whole"], [str(tmp_path / "scene.png")], 5, Console())
    said = capsys.readouterr().out.split()
    assert said == told[3]["said"].split()[:5] != []
    with refuses("FP1272", "a text"):
        predict([tmp_path / "whole"], ["a text"], 5, QUIET)
    with refuses("FP1271", tmp_path) as caught:
        predict([tmp_path / "whole"], [str(tmp_path)], 5, QUIET)
    assert "--data" not in str(caught.value)
    with refuses("FP1155"):
        next(answer_rows(FinishedRun.read(tmp_path / "whole"), tmp_path, None, 0.0))

    export(tmp_path / "whole", tmp_path / "out", False, QUIET)
    finished = FinishedRun.read(tmp_path / "whole")
    one, other = (
        saved_adapter.load(folder, finished.task, finished.base(), 0)
        for folder in (tmp_path / "whole", tmp_path / "out")
    )
    batch = finished.task.tokenise(test, finished.model_directory, 32).batch(range(12))
    torch.testing.assert_close(one(batch), other(batch), rtol=0, atol=0)
    assert "image-to-text" in (tmp_path / "out" / "README.md").read_text()
    for more in ({"merge": True}, {"merge": False, "gguf": True}):
        with refuses("FP5175"):
            export(tmp_path / "whole", tmp_path / "merged", console=QUIET, **more)
    assert evaluate([str(tmp_path / "whole")]) == 2
    assert has_error(capsys.readouterr().err, "FP5175")


@pytest.mark.slow
def test_a_connector_that_is_not_trained_is_the_regression_of_all_clients_rows(run, model, tmp_path) -> None:
    """Its sums come from the clients, over all of them; the reference sees the rows themselves."""
    run(optimizer="adamw(head_rate=0.0)", cohort=4, head="ridge(scale=1.0, strength=0.001)")
    found = load_file(tmp_path / "run" / "adapter" / "head.safetensors")
    folder, rows = resolve_model(model), load_dataset(CAPTIONS["dataset"]).train
    tokenizer = load_tokenizer(folder)
    weight = (
        AutoModelForCausalLM.from_pretrained(folder / "text").get_input_embeddings().weight.detach().double().numpy()
    )
    ids = [[*tokenizer(text, add_special_tokens=False)["input_ids"], tokenizer.eos_token_id] for text in rows.texts]
    x = compute_patch_features(rows.inputs, folder / "image").mean(1, dtype=np.float64)
    stacked = np.concatenate([np.c_[x, np.ones(len(x))], np.sqrt(1e-3 * (x * x).sum() / 48) * np.eye(48, 49)])
    said = np.concatenate([[weight[i].mean(0) for i in ids], np.zeros((48, 48))])
    expected = np.linalg.lstsq(stacked, said, rcond=None)[0]
    np.testing.assert_allclose(found["head.weight"].numpy(), expected[:-1].T, rtol=0, atol=1e-4)
    np.testing.assert_allclose(found["head.bias"].numpy(), expected[-1], rtol=0, atol=1e-4)


@pytest.mark.slow
def test_a_drawn_connector_and_whole_updates_under_noise(run) -> None:
    mlp = run("mlp", dataset=CAPTIONS["dataset"].replace("captions", "'captions(connector=mlp, side=1)'"), rounds=1)
    assert mlp.to_dict()["prepare_bytes"] == 0
    private = run("private", privacy="user_dp(noise_multiplier=1.0)", rounds=1).to_dict()
    assert private["epsilon"] > 0
    assert private["captions"]["rows"] == 12


@pytest.mark.fast
@pytest.mark.parametrize(
    ("more", "error", "said"),
    [
        ({"head": "centroids"}, ConfigError, ("FP1300",)),
        ({"head": "ridge"}, ConfigError, ("FP1300", "scale=1.0")),
        ({"strategy": "prototypes"}, ConfigError, ("FP1295",)),
        ({"privacy": "dp_sgd(epsilon=8)"}, PrivacyError, ("FP7090",)),
        ({"measure": "evaluate(questions='q.jsonl')"}, ConfigError, ("FP1302",)),
        ({"measure": "calibration"}, ConfigError, ("FP1311",)),
        ({"peft": "prompt_tuning"}, ConfigError, ("FP1215",)),
        ({"peft": "full"}, ConfigError, ("FP1216",)),
        ({"drift": "label_shift"}, ConfigError, ("FP1341",)),
        ({"attack": "label_flip"}, ConfigError, ("FP1412",)),
        ({"model": "tiny_lm"}, ModelError, ("FP4050",)),
        ({"dataset": CAPTIONS["dataset"].replace("owners=4", "owners=4, images_only=0.25")}, DataError, ("FP3168",)),
    ],
)
def test_what_captions_can_not_have_is_refused(run, more, error, said) -> None:
    with pytest.raises(error, match=pattern_of(*said)):
        run(**more)

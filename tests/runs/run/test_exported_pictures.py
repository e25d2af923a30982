"""Exported classifiers of pictures: transformers' own pipeline says what `predict` says."""

from __future__ import annotations

import re

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import AutoImageProcessor, ViTConfig, ViTModel, pipeline

from fedpeft.commands.export import main as export
from fedpeft.evaluate.prediction import compute_outputs, compute_probabilities
from fedpeft.parts.families import TASKS
from fedpeft.reporting.finished_run import FinishedRun
from fedpeft.simulate import main as simulate
from tests.finished import as_flags
from tests.models.own_vit import OwnVit, OwnVitConfig
from tests.refusals import refuses
from tests.runs.evaluation.test_answered_pictures import SETTINGS, draw


@pytest.fixture
def trusted(tmp_path_factory, monkeypatch):
    """Code of exported folders is kept apart from the user's own."""
    monkeypatch.setattr("transformers.dynamic_module_utils.HF_MODULES_CACHE", str(tmp_path_factory.mktemp("modules")))


def made(folder, *more):
    ViTModel(
        ViTConfig(
            image_size=48,
            patch_size=8,
            hidden_size=16,
            num_hidden_layers=2,
            num_attention_heads=2,
            intermediate_size=24,
        )
    ).save_pretrained(folder / "vit")
    words = as_flags(workers=1, **SETTINGS | {"model": folder / "vit"})
    assert simulate([*words, *more, "--output", str(folder / "run")]) == 0
    assert export([str(folder / "run"), "--merge", "--output", str(folder / "out")]) == 0
    return FinishedRun.read(folder / "run")


@pytest.mark.parametrize(("method", "side"), [("lora(rank=2)", 40), ("head2toe", 72), ("full", 72)])
def test_the_pipeline_of_an_exported_classifier_says_what_predict_says(method, side, tmp_path, trusted):
    draw(tmp_path / "pictures")
    data = f"file(path={str(tmp_path / 'pictures')!r}, side={side})"
    run = made(tmp_path, "--dataset", data, "--peft", method)
    classify = pipeline("image-classification", str(tmp_path / "out"), trust_remote_code=True)
    base = run.base()
    turned = Image.Exif()
    turned[0x0112] = 6
    random = np.random.default_rng(5)
    Image.fromarray(random.integers(0, 256, (50, 90, 3)).astype(np.uint8)).save(tmp_path / "turned.jpg", exif=turned)
    Image.fromarray(random.integers(0, 256, (20, 20)).astype(np.uint8)).save(tmp_path / "grey.png")
    for file in (tmp_path / "turned.jpg", tmp_path / "grey.png", tmp_path / "pictures" / "red" / "1.png"):
        said = {one["label"]: one["score"] for one in classify(str(file), function_to_apply="none")}
        logits = (compute_outputs(run, base, str(file)) / run.temperature).flatten().tolist()
        rounding = 2e-6 * max(map(abs, logits))  # of fp32: logits reach tens here
        assert said == pytest.approx(dict(zip(run.labels, logits, strict=True)), abs=rounding, rel=0)
        answers = {one["label"]: one["score"] for one in classify(str(file))}
        probabilities = compute_probabilities(run, base, str(file)).tolist()
        assert answers == pytest.approx(dict(zip(run.labels, probabilities, strict=True)), abs=rounding)
        fed = AutoImageProcessor.from_pretrained(tmp_path / "out", trust_remote_code=True)
        with Image.open(file) as picture:
            pixels = fed(picture, return_tensors="np")["pixel_values"]
        assert np.array_equal(pixels, run.load_pictures([str(file)]).pixels)
    card = (tmp_path / "out" / "README.md").read_text()
    assert 'pipeline("image-classification", FOLDER, trust_remote_code=True)(IMAGE)' in card
    assert f"a square of {side} pixels per side" in card
    assert f"{48 if side == 72 else 32} x " in card


@pytest.mark.parametrize("method", ["lora(rank=2)", "head2toe"])
def test_a_backbone_of_one_s_own_class_is_exported_as_it_answers(method, tmp_path, trusted):
    """Whose blocks, unlike those of transformers', it need not tell of by itself."""
    OwnVit(OwnVitConfig()).save_pretrained(tmp_path / "vit")
    draw(tmp_path / "pictures")
    words = as_flags(workers=1, **SETTINGS | {"model": tmp_path / "vit"})
    words += ["--dataset", f"file:{tmp_path / 'pictures'}", "--peft", method, "--output", str(tmp_path / "run")]
    assert simulate(words) == 0
    assert export([str(tmp_path / "run"), "--merge", "--output", str(tmp_path / "out")]) == 0
    run, file = FinishedRun.read(tmp_path / "run"), str(tmp_path / "pictures" / "red" / "1.png")
    classify = pipeline("image-classification", str(tmp_path / "out"), trust_remote_code=True)
    said = {one["label"]: one["score"] for one in classify(file)}
    expected = dict(zip(run.labels, compute_probabilities(run, run.base(), file).tolist(), strict=True))
    assert said == pytest.approx(expected, abs=1e-5)
    assert (
        "; before that import own_vit.py, which registers OwnVitConfig" in (tmp_path / "out" / "README.md").read_text()
    )


@pytest.mark.fast
def test_a_model_of_grey_images_is_told_what_images_are(tmp_path):
    OwnVit(OwnVitConfig(num_channels=1)).save_pretrained(tmp_path)
    with refuses("FP4004", "1"):
        TASKS.build("classification").base(tmp_path, torch.float32)


def test_numbers_of_pictures_come_out_of_the_pipeline_in_their_unit(tmp_path, trusted):
    draw(tmp_path / "pictures")
    lines = [f"{name}/{i}.png,{7.5 + i}" for name in ("red", "blue") for i in range(10)]
    (tmp_path / "pictures" / "metadata.csv").write_text("file_name,label\n" + "\n".join(lines) + "\n")
    run = made(tmp_path, "--dataset", f"file:{tmp_path / 'pictures'}")
    file = str(tmp_path / "pictures" / "red" / "1.png")
    [said] = pipeline("image-classification", str(tmp_path / "out"), trust_remote_code=True)(file)
    assert said["score"] == pytest.approx(float(run.task.values(compute_outputs(run, run.base(), file))), rel=1e-4)


def test_an_adapter_s_card_says_how_a_picture_is_fed(finished_run, tmp_path):
    from fedpeft.reporting.exports.model_card import format_card

    draw(tmp_path / "pictures")
    data = f"file(path={str(tmp_path / 'pictures')!r}, side=40)"
    run = finished_run(**SETTINGS, dataset=data, peft="head2toe")
    said = format_card(FinishedRun.read(run), merged=False)
    assert "`fedpeft predict RUN IMAGE`" in said
    assert re.search(r"model_input\(square\(IMAGE, 40\)\[None\], 16\)", said)

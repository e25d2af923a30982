"""Patch labels: losses, executors, privacy, mean IoU beside its baselines, and the answers of a finished run."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from rich.console import Console
from torch.nn import functional

from fedpeft.data.cached_rows import convert_to_arrays, restore_examples
from fedpeft.data.rows import Rows
from fedpeft.data.scenes import PARTS, Scene, draw_scene
from fedpeft.data.tagged_words import IGNORED
from fedpeft.evaluate.patch_labels import format_grid
from fedpeft.models.base_model import resolve_model
from fedpeft.parts.families import TASKS
from fedpeft.reporting.console import ConsoleObserver
from fedpeft.simulate import simulate
from fedpeft.simulation.patch_scores import compute_overlaps, cut_patches, select_patches
from fedpeft.simulation.simulation import Simulation
from fedpeft.wiring.config import RunConfig
from tests.described_images import SIDE, draw_described
from tests.executors import check_executors_agree
from tests.refusals import has_error, refuses

TINY = {
    "dataset": "scenes(task=patch_labels, rows=40, validation_rows=4, test_rows=8, owners=4)",
    "model": "tiny_vision", "clients": 0, "cohort": "all", "rounds": 1, "batch_size": 4, "local_work": "steps(2)",
    "peft": "lora(rank=2, layers=1)", "dtype": "fp64", "workers": 1, "seed": 3,
    "measure": "validation(every=1)", "learning_rate": 3e-3, "optimizer": "adamw(head_rate=1.0)",
}  # fmt: skip


def simulation(folder, **given) -> Simulation:
    return Simulation(RunConfig(**{**TINY, **given}), folder, ConsoleObserver(Console(quiet=True)))


@pytest.mark.fast
def test_a_scene_s_mask_lies_on_its_things():
    image, mask = draw_scene(Scene(("red", "circle"), "left of", ("blue", "star")), np.random.default_rng(0), 112)
    assert image.shape == (112, 112, 3)
    assert sorted(set(mask.ravel())) == [0, PARTS.index("circle"), PARTS.index("star")]
    left, right = np.argwhere(mask == PARTS.index("circle")), np.argwhere(mask == PARTS.index("star"))
    assert left[:, 1].mean() < right[:, 1].mean()
    red = (image[..., 0] > 190) & (image[..., 1] < 90)
    assert (red == (mask == PARTS.index("circle"))).mean() > 0.98
    same, _ = draw_scene(Scene(("red", "circle"), "left of", ("blue", "star")), np.random.default_rng(0))
    assert same.shape == (56, 56, 3)


@pytest.mark.fast
def test_each_patch_has_its_label_and_its_loss():
    task, folder = TASKS.build("patch_labels"), resolve_model("tiny_vision")
    masks = np.zeros((2, 16, 16), np.uint8)
    masks[0, :4, 4:8], masks[1, 12:] = 2, 255
    made = task.tokenise(Rows(np.full((2, 16, 16, 3), 9, np.uint8), masks=masks), folder, 32)
    assert made.labels[0].tolist() == [0, 2, *[0] * 14]
    assert made.labels[1].tolist() == [0] * 12 + [IGNORED] * 4
    again = restore_examples(convert_to_arrays(made))
    assert torch.equal(again.batch([1, 0])["labels"], made.batch([1, 0])["labels"])
    model = task.model(task.base(folder, torch.float64), 3)
    torch.nn.init.normal_(model.head.weight)
    batch = made.batch([0, 1])
    logits = model(batch)
    assert logits.shape == (2, 16, 3)
    hidden = model.base(pixel_values=batch["pixel_values"]).last_hidden_state
    assert torch.allclose(logits, model.head(hidden[:, 1:]))  # the class token comes first
    found = task.losses(logits, batch)
    assert found.counts.tolist() == [16, 12]
    slow = sum(-functional.log_softmax(logits[0, t], -1)[batch["labels"][0, t]] for t in range(16))
    assert torch.allclose(found.sums[0], slow)
    with refuses("FP3422"):
        task.tokenise(Rows(["a text"]), folder, 32)


@pytest.mark.fast
def test_overlap_is_that_of_labels_that_occur():
    right = np.array([0, 0, 1, 1, IGNORED, 0])
    said = np.array([0, 1, 1, 0, 1, 0])
    found = compute_overlaps(right, said, ("a", "b", "never"))
    assert found["iou"] == {"a": pytest.approx(2 / 4), "b": pytest.approx(1 / 3)}
    assert found["mean_iou"] == pytest.approx((1 / 2 + 1 / 3) / 2)


@pytest.mark.fast
def test_patches_are_cut_in_the_order_of_their_labels():
    pixels = np.arange(2 * 3 * 4 * 4, dtype=np.float32).reshape(2, 3, 4, 4)
    cut = cut_patches(pixels, 2)
    assert cut.shape == (2, 4, 12)
    assert (cut[1, 1] == pixels[1, :, :2, 2:].ravel()).all()
    labels = np.array([[0, IGNORED, 1, 1], [2, 2, IGNORED, 0]])
    features, kept = select_patches(cut, labels, 100)
    assert kept.tolist() == [0, 1, 1, 2, 2, 0]
    assert (features[3] == cut[1, 0]).all()
    assert select_patches(cut, labels, 3)[1].tolist() == [0, 1, 0]


def test_executors_agree(tmp_path):
    check_executors_agree(simulation, tmp_path)


@pytest.mark.fast
@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"privacy": "dp_sgd(epsilon=8)"}, ("FP7090", "patch_labels", "patches of all examples", "user_dp")),
        ({"drift": "label_shift"}, ("FP1341", "patch_labels")),
        ({"head": "ridge"}, ("FP1352", "patch_labels")),
        ({"peft": "adamix"}, ("FP1220", "patch_labels")),
        ({"dataset": "scenes(task=patch_labels, images_only=0.5)"}, ("FP1733", "patch_labels")),
    ],
)
def test_what_does_not_fit_is_refused_by_name(tmp_path, given, words):
    with refuses(*words):
        simulation(tmp_path / "run", **given)


def test_a_run_reports_overlap_beside_baselines_and_answers(tmp_path, capsys):
    folder = draw_described(tmp_path / "photos", 24)
    data = f"file(path={str(folder)!r}, task=patch_labels, labels='ground,square', side={SIDE})"
    given = {**TINY, "dataset": data, "clients": 2, "rounds": 2, "dtype": "fp32", "codec": "small"}  # fmt: skip
    simulate(RunConfig(**given), tmp_path / "run", False, Console(quiet=True))
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    found = summary["patches"]
    assert found["patches"] == 16 * 5
    for part in (found, found["frozen"], found["pixels"]):
        assert set(part["iou"]) <= {"ground", "square"}
        assert part["mean_iou"] == pytest.approx(np.mean(list(part["iou"].values())))
    assert found["pixels"]["mean_iou"] > 0.9  # a bright square is linear in pixels
    from fedpeft.commands.predict import main

    assert main([str(tmp_path / "run"), str(folder / "00.png")]) == 0
    grid = capsys.readouterr().out.strip().splitlines()[-4:]
    assert [len(line.split()) for line in grid] == [4] * 4
    assert main([str(tmp_path / "run"), "--data", str(folder), "--output", str(tmp_path / "out.csv")]) == 0
    lines = (tmp_path / "out.csv").read_text().splitlines()
    assert len(lines) == 25
    assert main([str(tmp_path / "run"), str(folder / "00.png"), "--abstain", "0.5"]) == 2
    assert has_error(capsys.readouterr().err, "FP1505", "patches", "--abstain")


@pytest.mark.fast
def test_a_grid_has_a_line_for_each_row_of_patches():
    assert format_grid(["a", "long", "b", "a"]) == "a    long\nb    a"

"""Clips: the mean over frames, gradients per example, executors, baselines, folders of frames, and real clients."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from fedpeft.clients.example_gradients import ExampleGradients, check
from PIL import Image
from rich.console import Console

from fedpeft.data.cached_rows import convert_to_arrays, restore_examples
from fedpeft.data.clip_folders import choose_frames, list_frames
from fedpeft.data.datasets.clients import Clients
from fedpeft.data.moving_images import GRAY, MOTIONS, move_image
from fedpeft.data.rows import Dataset, Rows, load_dataset
from fedpeft.deployment.client.edge import check_machine
from fedpeft.deployment.description import check_description
from fedpeft.deployment.options import EdgeOptions, ServeOptions
from fedpeft.deployment.server.examples import ServersRows
from fedpeft.deployment.wire import v2_pb2 as v2
from fedpeft.models.base_model import resolve_model
from fedpeft.models.task import find_trainable
from fedpeft.parts.families import DATASETS, PEFT_METHODS, TASKS
from fedpeft.reporting.console import ConsoleObserver
from fedpeft.reporting.finished_run import FinishedRun
from fedpeft.simulate import simulate
from fedpeft.simulation.clip_scores import average_pixels, take_middle
from fedpeft.simulation.simulation import Simulation
from fedpeft.wiring.config import RunConfig
from fedpeft.wiring.run_spec import parse_run
from tests.executors import check_executors_agree
from tests.here import Federation
from tests.refusals import refuses

FRAMES, SIDE = 3, 16
TINY = {
    "dataset": f"clips(rows=40, test_rows=20, frames={FRAMES})", "model": "tiny_vision", "clients": 2, "cohort": "all",
    "rounds": 1, "batch_size": 4, "local_work": "steps(2)", "peft": "lora(rank=2, layers=1)", "dtype": "fp64",
    "workers": 1, "seed": 3, "partition": "iid", "measure": "validation(every=1)", "learning_rate": 3e-3,
    "head": "zero", "optimizer": "adamw(head_rate=1.0)",
}  # fmt: skip


def simulation(folder, **given) -> Simulation:
    return Simulation(RunConfig(**{**TINY, **given}), folder, ConsoleObserver(Console(quiet=True)))


def draw_clips(folder, count, frames=5, seed=0):
    """Write classes up and down: a bright row moves up or down, in folders of frames with numbers as names."""
    random = np.random.default_rng(seed)
    for name in ("low", "high"):
        for k in range(count):
            clip = folder / name / f"clip_{k}"
            clip.mkdir(parents=True)
            for i in range(frames):
                image = random.integers(20, 90, (SIDE, SIDE, 3)).astype(np.uint8)
                image[(8 if name == "low" else 0) + i] = 230
                Image.fromarray(image).save(clip / f"{i + 8}.png")  # 8, 9, 10: by value, not by letters
    return folder


@pytest.fixture(scope="module")
def clip_rows():
    return load_dataset(TINY["dataset"]).train


@pytest.mark.fast
def test_an_image_moves_over_its_canvas():
    image = np.full((10, 10), 200, np.uint8)
    clips = {m: move_image(image, m, FRAMES, 0.0, np.random.default_rng(1)) for m in MOTIONS}
    columns = {m: [np.flatnonzero(frame.any((0, 2)))[0] for frame in clip] for m, clip in clips.items()}
    assert columns["right"] == [0, 3, 6]
    assert columns["left"] == [6, 3, 0]
    assert columns["up"] == columns["down"]
    for one, other in (("left", "right"), ("up", "down")):
        assert (clips[one] == clips[other][::-1]).all(), "the same frames: no mean over frames can tell them apart"
    grown = [int(frame.any(2).sum()) for frame in clips["zoom"]]
    assert grown == [36, 100, 196]
    hidden = move_image(image, "zoom", FRAMES, 0.5, np.random.default_rng(1))
    assert ((hidden == GRAY).all(3).sum((1, 2)) == 8 * 16).all()


@pytest.mark.fast
def test_clips_are_made_of_a_dataset_s_images():
    found = load_dataset(TINY["dataset"])
    assert (found.kind, found.task, found.classes) == ("clip", "classification", 10)
    assert found.train.inputs.shape == (40, FRAMES, 13, 13, 3)
    assert (load_dataset(TINY["dataset"]).test.inputs == found.test.inputs).all()
    moved = load_dataset("clips(rows=40, test_rows=20, label=motion)")
    assert moved.label_names == MOTIONS
    assert "synthetic" in moved.notes[-1]
    assert np.bincount(moved.train.labels).tolist() == [8] * 5
    with refuses("FP1736", "tiny", "texts"):
        load_dataset("clips(of=tiny)")


def test_features_are_the_mean_over_frames_of_those_of_single_frames(clip_rows):
    task, folder = TASKS.build("classification"), resolve_model("tiny_vision")
    examples = task.tokenise(clip_rows.take(np.arange(4)), folder, 32)
    assert (examples.sequences, set(examples.lengths)) == (FRAMES, {17})
    again = restore_examples(convert_to_arrays(examples))
    assert torch.equal(again.batch([1])["pixel_values"], examples.batch([1])["pixel_values"])
    for peft in ("linear_probe", "head2toe", "lora(rank=2)", "prefix_tuning(length=2)"):
        model = task.model(task.base(folder, torch.float64), 10)
        PEFT_METHODS.build(peft).attach(model, "fp64")
        batch = examples.batch([0, 2])
        frames = [model.features({**batch, "pixel_values": batch["pixel_values"][:, i]}) for i in range(FRAMES)]
        assert torch.allclose(model.features(batch), torch.stack(frames).mean(0)), peft
        order = {**batch, "pixel_values": batch["pixel_values"].flip(1)}
        assert torch.allclose(model.features(batch), model.features(order)), "their order does not count"


@pytest.mark.parametrize("route", ["hooks", "vmap"])
def test_gradients_per_example_are_those_of_whole_clips(clip_rows, route):
    task, folder = TASKS.build("classification"), resolve_model("tiny_vision")
    examples = task.tokenise(clip_rows.take(np.arange(3)), folder, 32)
    torch.manual_seed(0)
    model = task.model(task.base(folder, torch.float64), 10)
    PEFT_METHODS.build("lora(rank=2, layers=1)").attach(model, "fp64")
    chosen = find_trainable(model)
    with torch.no_grad():
        for parameter in chosen.values():
            parameter.add_(0.05 * torch.randn_like(parameter))
    batch = examples.batch([0, 1, 2])
    with ExampleGradients(model, task, route).attach_hooks(chosen) as gradients:
        gradients.fill(batch, chosen)
        check(chosen, 3)
        found = {name: parameter.grad_sample.clone() for name, parameter in chosen.items()}
    for i in range(3):
        one = {name: tensor[i : i + 1] for name, tensor in batch.items()}
        slow = torch.autograd.grad(task.row_losses(model, one).sums.sum(), list(chosen.values()))
        for name, gradient in zip(chosen, slow, strict=True):
            assert torch.allclose(found[name][i], gradient, rtol=1e-7, atol=1e-10), name


@pytest.mark.parametrize("peft", ["lora(rank=2, layers=1, dropout=0.2)", "bottleneck(dim=2)"])
def test_executors_agree(tmp_path, peft):
    check_executors_agree(simulation, tmp_path, peft=peft)


def test_a_run_under_dp_sgd_and_a_codec_reports_its_baselines(tmp_path):
    given = {**TINY, "dtype": "fp32", "privacy": "dp_sgd(epsilon=8)", "codec": "small"}
    given["dataset"] = f"sample(of='{TINY['dataset']}')"
    simulate(RunConfig(**given), tmp_path / "run", False, Console(quiet=True))
    assert FinishedRun.read(tmp_path / "run").frames == FRAMES
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    assert summary["clips"]["frames"] == FRAMES
    assert 0 <= summary["clips"]["one_frame"] <= 1
    assert 0 <= summary["clips"]["pixels"] <= 1


@pytest.mark.fast
def test_baselines_see_the_middle_frame_and_mean_pixels():
    rows = Rows(np.arange(2 * 3 * 2 * 2 * 3, dtype=np.uint8).reshape(2, 3, 2, 2, 3), np.array([0, 1]))
    assert (take_middle(rows) == rows.inputs[:, 1]).all()
    assert np.allclose(average_pixels(rows)[1] * 255, rows.inputs[1].mean(0).ravel())


@pytest.mark.fast
@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"measure": "robustness"}, ("FP1734", "clips")),
        ({"drift": "adversarial"}, ("FP1309", "clips")),
    ],
)
def test_what_does_not_fit_is_refused_by_name(tmp_path, given, words):
    with refuses(*words):
        simulation(tmp_path / "run", **given)


@pytest.mark.fast
def test_folders_of_frames_are_clips(tmp_path):
    folder = draw_clips(tmp_path / "clips", 4)
    found = load_dataset(f"file(path={str(folder)!r}, frames={FRAMES}, side={SIDE})")
    assert (found.kind, found.label_names, found.default_model) == ("clip", ("high", "low"), "dinov2_small")
    assert found.train.inputs.shape[1:] == (FRAMES, SIDE, SIDE, 3)
    bright = (found.train.inputs.min((3, 4)) > 200).argmax(2)
    start = np.where(found.train.labels == 1, 8, 0)
    assert (bright == start[:, None] + [0, 2, 4]).all()
    assert [file.name for file in list_frames(folder / "low" / "clip_0", 5)] == [f"{i}.png" for i in range(8, 13)]
    assert choose_frames(3, 6) == [0, 0, 1, 1, 2, 2]
    assert choose_frames(9, 1) == [4]
    for made, words in (
        (lambda: (folder / "low" / "walk.mp4").write_bytes(b"x"), ("FP3426", "walk.mp4")),
        (lambda: (folder / "low" / "empty").mkdir(), ("FP3427", "empty")),
    ):
        made()
        with refuses(*words):
            load_dataset(f"file(path={str(folder)!r}, frames=2)")
        (folder / "low" / "walk.mp4").unlink(missing_ok=True)
    for path, code in ((tmp_path / "nowhere", "FP3424"), (folder / "high", "FP3425")):
        with refuses(code):
            load_dataset(f"file(path={str(path)!r}, frames=2)")
    with refuses("FP1737", 2, "captions"):
        load_dataset(f"file(path={str(folder)!r}, frames=2, task=captions)")
    with refuses("FP3423"):
        Dataset("mine", "clip", "classification", Rows(np.zeros((2, 4, 4), np.uint8), np.array([0, 1])),
                Rows(np.zeros((2, 4, 4), np.uint8), np.array([0, 1])), ("a", "b"), "tiny_vision")  # fmt: skip


class Films(Federation):
    """A federation whose clients have folders of clips."""

    def file(self, k):
        return self.folder / f"films-{k}"

    def keep(self, k):
        draw_clips(self.file(k), 8, seed=k)


def test_real_clients_train_on_their_own_clips(tmp_path, observer):
    made = Films(
        tmp_path, observer, serve=ServeOptions(labels="high,low", side=SIDE, frames=FRAMES, held_out=0.25),
        dataset=f"clients(labels='high,low', side={SIDE}, frames={FRAMES})", model="tiny_vision", head="ridge",
        measure="validation(every=1)",
    )  # fmt: skip
    check_machine(made.file(0), EdgeOptions())
    assert made.server.edges[0].rows.inputs.shape == (16, FRAMES, SIDE, SIDE, 3)
    made.run()
    assert not [report.error for report in made.server.direct.reports if report.error]


@pytest.mark.fast
@pytest.mark.parametrize(
    ("text", "frames"),
    [
        (TINY["dataset"], FRAMES),
        (f"sample(of='{TINY['dataset']}')", FRAMES),
        ("sample(of=\"file(path='films', frames=4)\")", 4),
        ("clients(labels='a,b', side=64, frames=5)", 5),
        ("sample(of=digits)", 0),
    ],
)
def test_settings_determine_the_frames(text, frames):
    assert DATASETS.build(text).count_frames() == frames


@pytest.mark.fast
def test_a_server_describes_clips():
    told = {"task": "classification", "labels": ["a", "b"], "side": 64}
    check_description(v2.Description(**told, frames=8))
    for fields, words in (
        ({"frames": 100_000}, ("FP5456", 100_000)),
        ({"frames": 8, "side": 0}, ("FP5456", 8)),
        ({"frames": 8, "task": "captions", "labels": []}, ("FP5456", "captions")),
    ):
        with refuses(*words):
            check_description(v2.Description(**told | fields))
    with refuses("FP1738", 8):
        Clients(labels="a,b", frames=8)
    found = ServersRows.load(parse_run(RunConfig(dataset=TINY["dataset"])), ServeOptions(eval_data="dataset"))
    assert (found.form.frames, found.form.kind) == (FRAMES, "clip")
    with refuses("FP1739", 5, FRAMES):
        ServersRows.load(parse_run(RunConfig(dataset=TINY["dataset"])), ServeOptions(frames=5))

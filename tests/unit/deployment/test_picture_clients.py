"""Real clients whose rows are pictures: folders, a class each."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

from fedpeft.deployment.client.edge import check_machine
from fedpeft.deployment.description import check_description
from fedpeft.deployment.options import EdgeOptions, ServeOptions
from fedpeft.deployment.server.examples import ServersRows, add_form
from fedpeft.deployment.wire import v2_pb2 as v2
from fedpeft.errors import ConfigError, DataError
from fedpeft.reporting.finished_run import FinishedRun
from fedpeft.wiring.config import RunConfig
from fedpeft.wiring.run_spec import parse_run
from tests.here import Federation
from tests.refusals import pattern_of, refuses

STRIPES = ServeOptions(labels="across,down", side=16, held_out=0.25)
GIVEN = {"dataset": "clients(labels='across,down', side=16)", "model": "tiny_vision", "measure": "validation(every=1)",
         "head": "auto"}  # fmt: skip


def draw(folder, count, seed=0, side=24):
    """Write a folder of noisy images with horizontal lines, and one with vertical lines."""
    generator = np.random.default_rng(seed)
    for name in ("across", "down"):
        (folder / name).mkdir(parents=True, exist_ok=True)
        for i in range(count):
            pixels = np.where(np.arange(side) // 3 % 2, 200, 40)[:, None].repeat(side, 1)
            pixels = (pixels.T if name == "down" else pixels) + generator.integers(-30, 30, (side, side))
            Image.fromarray(pixels.astype(np.uint8)).convert("RGB").save(folder / name / f"{i}.png")
    return folder


class Pictures(Federation):
    """A federation whose clients have folders of pictures."""

    def file(self, k):
        return self.folder / f"pictures-{k}"

    def keep(self, k):
        draw(self.file(k), 24, seed=k)


def test_the_form_is_that_of_the_data_set_where_nobody_tells_it():
    found = ServersRows.load(parse_run(RunConfig(dataset="digits")), ServeOptions(eval_data="dataset"))
    assert (found.dataset.kind, found.form.side, found.dataset.default_model) == ("image", 8, "dinov2_small")
    assert len(found.validation)
    alone = ServersRows.load(parse_run(RunConfig(dataset="digits")), ServeOptions())
    assert (alone.form.side, len(alone.validation), alone.dataset.label_names) == (8, 0, found.dataset.label_names)
    with refuses("FP1149", "--side 32", "digits", "8"):
        ServersRows.load(parse_run(RunConfig(dataset="digits")), ServeOptions(side=32))
    with refuses("FP1150", "--side 32", "tiny"):
        ServersRows.load(parse_run(RunConfig(dataset="tiny")), ServeOptions(side=32))


def test_the_run_says_whose_rows_it_is_of(tmp_path):
    told = add_form(RunConfig(), ServeOptions(labels="across,down", side=16))
    assert (told.dataset, told.model) == ("clients(labels='across,down', side=16)", "dinov2_small")
    assert add_form(told, ServeOptions()) == told
    again = ServersRows.load(parse_run(told), ServeOptions())
    assert (again.form.side, again.dataset.label_names) == (16, ("across", "down"))
    assert FinishedRun(tmp_path, told, {}).picture_side == 16
    assert add_form(RunConfig(dataset="digits"), ServeOptions(eval_data="dataset")).dataset == "digits"


def test_flags_change_what_a_form_of_before_says(tmp_path):
    told = RunConfig(dataset="clients(labels='across,down', side=16)")
    folder = str(draw(tmp_path / "eval", 2))
    for options, form in (
        ({"eval_data": folder}, "clients(labels='across,down', side=16)"),
        ({"labels": "up,down"}, "clients(labels='up,down', side=16)"),
        ({"side": 32}, "clients(labels='across,down', side=32)"),
        ({"label_column": "way"}, "clients(labels='across,down', label=way, side=16)"),
    ):
        assert add_form(told, ServeOptions(**options)).dataset == form
    assert ServersRows.load(parse_run(told), ServeOptions(eval_data=folder)).dataset.label_names == ("across", "down")
    for dataset, options, words in (
        (told.dataset, {"eval_data": "dataset"}, ("FP1146",)),
        ("clients", {}, ("FP1148",)),
        ("clients(task=multi_label)", {}, ("FP1148",)),
        ("clients(task=retrieval)", {}, ("FP1147", "retrieval", "classification")),
        ("clients(task=wings)", {"labels": "a,b"}, ("FP1147", "wings")),
    ):
        with refuses(*words):
            ServersRows.load(parse_run(RunConfig(dataset=dataset)), ServeOptions(**options))


@pytest.mark.parametrize(
    ("options", "error", "words"),
    [
        ({"task": "causal_lm"}, ConfigError, ("FP1086", "16", "causal_lm")),
        ({"side": 4}, ConfigError, ("FP1087", "4", "8")),
        ({"side": 512, "frames": 17}, ConfigError, ("FP1981", "17", "512")),
        ({"eval_data": "rows.csv"}, DataError, ("FP3025",)),
        ({"side": 0, "eval_data": "."}, DataError, ("FP3024",)),
        ({"template": "chat"}, ConfigError, ("FP1088", "classification")),
    ],
)
def test_what_a_server_is_told_wrongly_is_one_sentence(options, error, words, tmp_path):
    draw(tmp_path, 1)
    (tmp_path / "rows.csv").write_text("text,label\nx,across\n")
    given = {"labels": "across,down", "side": 16} | options
    if "task" in options:
        del given["labels"]
    if "eval_data" in given:
        given["eval_data"] = str(tmp_path / given["eval_data"])
    with pytest.raises(error, match=pattern_of(*words)):
        ServersRows.load(parse_run(RunConfig(dataset="tiny")), ServeOptions(**given))


def test_rows_of_another_kind_are_refused(tmp_path, observer):
    made = Pictures(tmp_path, observer, serve=STRIPES, **GIVEN, clients=1)
    check_machine(made.file(0), EdgeOptions())
    (made.file(0) / "across").rename(made.file(0) / "upwards")
    with refuses("FP3162", "1", "label", "upwards"):
        made.edge(0)
    made.file = lambda k: tmp_path / "rows.csv"
    (tmp_path / "rows.csv").write_text("text,label\nx,across\n")
    with refuses("FP3025"):
        made.edge(0)
    made.file = lambda k: tmp_path / "empty"
    (tmp_path / "empty" / "across").mkdir(parents=True)
    with refuses("FP3129", "empty"):
        check_machine(tmp_path / "empty", EdgeOptions())
    with refuses("FP3027", "or folder"):
        check_machine(tmp_path / "nowhere", EdgeOptions())


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"side": 4}, ("FP5066", "4")),
        ({"side": 100_000}, ("FP5066", "100000")),
        ({"side": 16, "task": "causal_lm", "labels": []}, ("FP5066", "causal_lm")),
        ({"side": 512, "frames": 64}, ("FP5781", "64", "512")),
        ({"template": "chat"}, ("FP5067", "chat", "classification")),
    ],
)
def test_a_server_s_description_is_checked(fields, words):
    told = {"task": "classification", "labels": ["a", "b"]}
    check_description(v2.Description(**told, side=64))
    with refuses(*words):
        check_description(v2.Description(**told | fields))

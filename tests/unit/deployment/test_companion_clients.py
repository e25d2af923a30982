"""Real clients whose examples are images with texts or masks."""

from __future__ import annotations

from fedpeft.deployment.description import check_description
from fedpeft.deployment.options import ServeOptions
from fedpeft.deployment.server.examples import ServersRows, add_form
from fedpeft.deployment.wire import v2_pb2 as v2
from fedpeft.wiring.config import RunConfig
from fedpeft.wiring.run_spec import parse_run
from tests.described_images import LABELS, SIDE, draw_described
from tests.refusals import refuses

MASKED = "patch_labels"


def test_a_description_that_no_server_gives_is_refused():
    check_description(v2.Description(task="towers", side=64))
    check_description(v2.Description(task=MASKED, labels=LABELS, side=64))
    for task, labels, side, words in (
        ("towers", [], 0, ("FP5066", 0)),
        ("captions", [], 4, ("FP5066", 4)),
        ("captions", ["a"], 64, ("FP5241", 1)),
        (MASKED, ["a"], 64, ("FP5241", 1)),
        (MASKED, LABELS, 0, ("FP5066", 0)),
    ):
        with refuses(*words):
            check_description(v2.Description(task=task, labels=labels, side=side))


def test_a_server_s_options_and_own_examples(tmp_path):
    folder = draw_described(tmp_path / "own", 6)
    config = add_form(RunConfig(), ServeOptions(task="captions", side=SIDE))
    assert (config.dataset, config.model) == (f"clients(task=captions, side={SIDE})", "towers(text=smollm2)")
    found = ServersRows.load(parse_run(RunConfig()), ServeOptions(task=MASKED, side=SIDE, eval_data=str(folder)))
    assert (found.dataset.label_names, found.validation.masks.shape) == (("0", "1"), (6, SIDE, SIDE))
    with refuses("FP1732", "towers"):
        ServersRows.load(parse_run(RunConfig(dataset="clients(task=towers)")), ServeOptions())
    with refuses("FP1144", MASKED, "reviews"):
        ServersRows.load(parse_run(RunConfig()), ServeOptions(task=MASKED, side=SIDE))
    own = ServersRows.load(
        parse_run(RunConfig(dataset="scenes(rows=20, task=captions)")), ServeOptions(eval_data="dataset")
    )
    assert (own.form.task, own.form.side) == ("captions", 56)

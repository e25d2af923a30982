"""Real clients whose rows are pairs of texts."""

from __future__ import annotations

import json

import pytest

from fedpeft.data.rows import load_dataset
from fedpeft.data.text_to_text import parse_pair
from fedpeft.deployment.client.capacity import ModelSize
from fedpeft.deployment.description import check_description
from fedpeft.deployment.options import ServeOptions
from fedpeft.deployment.server.examples import ServersRows
from fedpeft.deployment.wire import v2_pb2 as v2
from fedpeft.errors import ConfigError, DataError
from fedpeft.models.base_model import resolve_model
from fedpeft.wiring.config import RunConfig
from fedpeft.wiring.run_spec import parse_run
from tests.refusals import pattern_of, refuses

PAIRS = ServeOptions(task="seq2seq", held_out=0.25)


def pairs(k: int, names=("input", "target")) -> list[dict[str, str]]:
    rows = load_dataset(f"tiny_seq2seq(owners=1, rows=24, seed={k})").train
    return [dict(zip(names, parse_pair(row), strict=True)) for row in rows.inputs]


def test_a_server_needs_no_rows_and_takes_those_of_a_file(tmp_path):
    found = ServersRows.load(parse_run(RunConfig(dataset="tiny")), PAIRS)
    assert (found.dataset.task, found.dataset.label_names, len(found.validation)) == ("seq2seq", None, 0)
    file = tmp_path / "rows.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in pairs(0, ("a", "b"))))
    own = ServeOptions(task="seq2seq", text_column="a", label_column="b", eval_data=str(file))
    found = ServersRows.load(parse_run(RunConfig(dataset="tiny")), own)
    assert (found.dataset.task, len(found.validation)) == ("seq2seq", 24)
    of_data = ServersRows.load(parse_run(RunConfig(dataset="tiny_seq2seq")), ServeOptions(eval_data="dataset"))
    assert of_data.dataset.task == "seq2seq"
    assert len(of_data.validation)


@pytest.mark.parametrize(
    ("options", "error", "words"),
    [
        ({"task": "seq2seq", "labels": "a,b"}, ConfigError, ("FP1137", "seq2seq")),
        ({"task": "seq2seq", "eval_data": "FILE"}, DataError, ("FP3006", "input")),
        ({"task": "seq2seq", "eval_data": "FILE", "text_column": "a"}, DataError, ("FP3006", "has no column 'label")),
    ],
)
def test_what_a_server_is_told_wrongly_is_one_sentence(options, error, words, tmp_path):
    (tmp_path / "rows.jsonl").write_text('{"a": "x", "b": "y"}\n')
    given = {name: str(tmp_path / "rows.jsonl") if value == "FILE" else value for name, value in options.items()}
    with pytest.raises(error, match=pattern_of(*words)):
        ServersRows.load(parse_run(RunConfig(dataset="tiny")), ServeOptions(**given))


@pytest.mark.parametrize(
    ("task", "labels", "words"),
    [
        ("seq2seq", ["a"], ("FP5241", "'seq2seq'", 1)),
        ("seq2seq()", [], ("FP5064", "'seq2seq()'")),
        ("seq2seq(x=1)", [], ("FP5063", "FP1225", "'x'")),
        ("retrieval", [], ("FP5241", "'retrieval'", 0)),
    ],
)
def test_a_server_s_task_is_checked(task, labels, words):
    check_description(v2.Description(task="seq2seq"))
    with refuses(*words):
        check_description(v2.Description(task=task, labels=labels))


@pytest.mark.parametrize("kind", ["t5", "bart"])
def test_a_decoder_that_is_trained_takes_memory(kind):
    folder = resolve_model(f"tiny_seq2seq(kind={kind})")
    alone, both = ModelSize.from_folder(folder), ModelSize.from_folder(folder, answers=True)
    assert (alone.blocks, both.blocks, both.dropped) == (2, 4, 0)
    assert alone.dropped > 0
    assert both.linear + both.other == alone.linear + alone.other + alone.dropped

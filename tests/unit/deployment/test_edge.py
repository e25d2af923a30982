"""A real client beside training: what does not fit is said, and useless or lying clients end no federation."""

from __future__ import annotations

import json
import shutil

import pytest

from fedpeft.deployment.client.edge import EdgeClient
from fedpeft.deployment.options import EdgeOptions, ServeOptions
from fedpeft.deployment.wire.connection import Link
from fedpeft.errors import FedpeftError
from fedpeft.join import main as join
from fedpeft.models.base_model import resolve_model
from fedpeft.serve import main as serve
from tests.refusals import has_error, refuses
from tests.runs.deployment.test_edge import told


def joins(made, observer, description=None, **options):
    return EdgeClient(
        description or told(made), made.folder / "0.jsonl", made.folder / "edge-0", made.folder / "ledgers", observer,
        EdgeOptions(device="cpu", threads=1, **options),
    )  # fmt: skip


def test_labels_that_the_server_does_not_know(federation, observer):
    made = federation(clients=1)
    description = told(made)
    del description.labels[:]
    description.labels.extend(["this", "that"])
    with refuses("FP3162", "'label'", "this', 'that"):
        joins(made, observer, description)
    description.labels.extend(list(told(made).labels)[:-1])
    with refuses("FP3162", "has 1 label in column"):
        joins(made, observer, description)


def test_columns_of_other_names(federation, observer):
    made = federation(clients=1)
    description = told(made)
    description.text_column = "body"
    with refuses("FP3155", "body", "text"):
        joins(made, observer, description)
    assert joins(made, observer, description, text_column="text").create_registration().rows == 40


@pytest.mark.parametrize(("fast", "precision"), [(True, "bf16"), (False, "fp32")])
def test_a_cpu_without_bf16_holds_the_base_in_fp32(federation, observer, monkeypatch, fast, precision):
    monkeypatch.setattr("fedpeft.deployment.client.capacity.has_fast_bf16", lambda device: fast)
    made = federation(clients=1, dtype="bf16")
    assert joins(made, observer).create_registration().precision == precision
    assert joins(made, observer, precision="bf16").create_registration().precision == "bf16", "what is asked for"


def test_another_tokenizer_other_weights_and_other_lengths(federation, observer):
    made = federation(clients=1)
    for field, value, says in (
        ("tokenizer_hash", "0" * 64, ("FP4014",)),
        ("weights_hash", "0" * 64, ("FP4015",)),
        ("tokens", 16, ("FP4016", "16", "32")),
    ):
        description = told(made)
        setattr(description, field, value)
        with refuses(*says):
            joins(made, observer, description)


def test_a_changed_model_folder_is_noticed(federation, observer, tmp_path):
    made = federation(clients=1)
    copy = tmp_path / "model"
    shutil.copytree(resolve_model("tiny"), copy)
    assert joins(made, observer, model=str(copy)).create_registration().rows == 40
    config = json.loads((copy / "config.json").read_text())
    (copy / "config.json").write_text(json.dumps({**config, "layer_norm_eps": 1e-5}))
    with refuses("FP4014"):
        joins(made, observer, model=str(copy))


def test_settings_of_another_version(federation, observer):
    made = federation(clients=1)
    description = told(made)
    description.config += "\nwings = 2\n"
    with refuses("FP5094", "FP1225", "wings"):
        joins(made, observer, description)


def test_more_rows_than_the_server_believes_are_refused(federation):
    with refuses("FP5070", "90", "50"):
        federation(serve=ServeOptions(most_rows=50))


def test_weight_decay_of_ranks_that_a_real_client_only_holds_is_refused(federation):
    """Its rank is known when it joins, long after the settings were looked at."""
    given = {"strategy": "fed_plora", "optimizer": "adamw(weight_decay=0.01)"}
    federation(**given)
    with refuses("FP5073", "1", "FP1331"):
        federation(options=[{"rank": 1}], **given)


def test_a_server_of_rows_that_clients_can_t_bring_is_refused(tmp_path, capsys):
    assert serve(["--dataset", "tiny_pairs", "--clients", "1", "--insecure", "--output", str(tmp_path / "run")]) == 2
    assert has_error(capsys.readouterr().err, "FP1501", "tiny_pairs")


def test_all_errors_of_a_client_are_for_its_user(federation, observer):
    made = federation(clients=1)
    for content in ("", "{}\n", "not json\n", '{"text": "x"}\n'):
        (made.folder / "0.jsonl").write_text(content)
        with pytest.raises(FedpeftError):
            joins(made, observer)


@pytest.mark.parametrize(
    ("field", "value", "says"),
    [
        ("held_out", float("nan"), ("FP5061", "nan", 0.5)),
        ("held_out", 0.9, ("FP5061", 0.9, 0, 0.5)),
        ("task", "regression", ("FP5241", "'regression'", 4)),
        ("task", "retrieval", ("FP5241", "'retrieval'", 4)),
        ("task", "multi_label(x=1)", ("FP5063", "FP1225", "'x'")),
        ("task", "classification()", ("FP5064", "'classification()'", "classification")),
        ("labels", [], ("FP5241", "'classification'", 0)),
        ("labels", ["a", "a"], ("FP5065",)),
    ],
)
def test_a_description_that_no_server_of_good_faith_gives(federation, observer, field, value, says):
    made = federation(clients=1)
    description = told(made)
    if field == "labels":
        del description.labels[:]
        description.labels.extend(value)
    else:
        setattr(description, field, value)
    with refuses(*says):
        joins(made, observer, description)


@pytest.mark.parametrize(("device", "words"), [("foo", ("FP5020", "foo")), ("cuda:7", ("FP5019", "cuda:7"))])
def test_a_device_that_is_not_there(federation, device, words):
    with refuses(*words):
        federation(options=[{"device": device}, {}])


@pytest.mark.parametrize(
    ("content", "words", "says"),
    [
        (None, ["--data", "rows.csv"], ("FP3027", "there is no file rows.csv")),
        ("x", ["--data", "rows.xlsx"], ("FP1108", ".csv")),
        ("", ["--data", "rows.csv"], ("FP3114", "rows.csv")),
        ("text,label\n", ["--data", "rows.csv"], ("FP3028", "rows.csv")),
        (
            "text,label\nx,a\n",
            ["--data", "rows.csv", "--text-column", "body"],
            ("FP3034", "body", "text', 'label"),
        ),
        ("text,label\nx,a\n", ["--data", "rows.csv", "--device", "cuda:7"], ("FP5019", "cuda:7")),
    ],
)
def test_join_looks_at_its_own_rows_and_device_before_it_asks_a_server(
    tmp_path, monkeypatch, capsys, content, words, says
):
    monkeypatch.chdir(tmp_path)
    if content is not None:
        (tmp_path / words[1]).write_text(content)
    monkeypatch.setattr(Link, "open", lambda self: pytest.fail("a server was asked"))
    server = ["--server", "127.0.0.1:1", "--insecure", "--name", "edge-1", "--state", str(tmp_path / "state")]
    assert join([*server, *words]) == 2
    assert has_error(capsys.readouterr().err, *says)

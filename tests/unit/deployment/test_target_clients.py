"""Real clients whose labels are numbers, or several a row."""

from __future__ import annotations

import pytest

from fedpeft.deployment.options import ServeOptions
from fedpeft.deployment.server.examples import ServersRows, add_form
from fedpeft.errors import FedpeftError
from fedpeft.wiring.config import RunConfig
from fedpeft.wiring.run_spec import parse_run
from tests.deployment.signing_server import joins  # noqa: F401
from tests.here import Federation
from tests.refusals import refuses
from tests.targets import LABELS, prices, rows_of, tagged

PRICES = ServeOptions(task="regression(mean=500, deviation=100)", label_column="price", held_out=0.25)
GIVEN = {"model": "tiny", "head": "ridge", "measure": "validation(every=1)"}


class Labelled(Federation):
    """A federation whose clients' files hold numbers and lists of labels."""

    def rows(self, k):
        return rows_of(120, seed=k)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"task": "regression"}, ("FP1139", "--task")),
        ({"task": "retrieval"}, ("FP1499", "--task 'retrieval'")),
        ({"task": "regression(mean=0, deviation=1)", "labels": "a,b"}, ("FP1138", "--labels", "regression")),
        ({"task": "multi_label"}, ("FP1144", "'multi_label'", "tiny", "classification", "--labels")),
        ({"task": "regression(mean=0, deviation=0)"}, ("FP1227", "regression", "deviation", 0)),
    ],
)
def test_what_a_server_is_told_wrongly_is_one_sentence(options, words, tmp_path):
    with refuses(*words):
        ServersRows.load(parse_run(RunConfig(dataset="tiny")), ServeOptions(**options))


def test_a_server_s_own_rows_have_the_task_s_labels(tmp_path):
    given = {"task": PRICES.task, "label_column": "price", "eval_data": str(prices(tmp_path / "p.csv"))}
    found = ServersRows.load(parse_run(RunConfig(dataset="tiny")), ServeOptions(**given))
    assert (len(found.validation), found.validation.targets) == (120, "numbers")
    with refuses("FP3161", "numbers to predict", "--task"):
        ServersRows.load(parse_run(RunConfig(dataset="tiny")), ServeOptions(**given | {"task": ""}))
    many = {"task": "multi_label", "eval_data": str(tagged(tmp_path / "t.jsonl"))}
    found = ServersRows.load(parse_run(RunConfig(dataset="tiny")), ServeOptions(**many))
    assert (found.dataset.label_names, found.validation.labels.shape) == (LABELS, (120, 3))


@pytest.mark.parametrize(
    ("task", "column", "names"),
    [
        ("regression(mean=5, deviation=1)", "price, EUR", ["price, EUR"]),
        ("multi_label", "toxic, mild + insult", ["toxic, mild", "insult"]),
    ],
)
def test_a_column_s_name_may_have_a_comma(task, column, names):
    found = ServersRows.load(
        parse_run(add_form(RunConfig(), ServeOptions(task=task, label_column=column))), ServeOptions()
    )
    assert list(found.dataset.label_names) == names


@pytest.mark.parametrize(
    "content", ['{"text": "x", "price": "dear"}\n', '{"text": "x"}\n', '{"text": "x", "price": [1]}\n']
)
def test_a_client_s_wrong_labels_are_for_its_user(content, tmp_path, observer):
    made = Labelled(tmp_path, observer, serve=PRICES, **GIVEN, clients=1)
    (tmp_path / "0.jsonl").write_text(content)
    with pytest.raises(FedpeftError):
        made.edge(0)
    description = made.server.gateway.description
    description.task = "regression(mean=0, deviation=-1)"
    with refuses("FP5063", "FP1227", "deviation", "above 0"):
        made.edge(0)

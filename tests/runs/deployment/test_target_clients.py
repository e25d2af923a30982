"""Real clients whose labels are numbers, or several a row."""

from __future__ import annotations

import json

import pytest

from fedpeft.deployment.options import ServeOptions
from tests.deployment.signing_server import joins  # noqa: F401
from tests.targets import LABELS
from tests.unit.deployment.test_target_clients import GIVEN, PRICES, Labelled

TAGS = ServeOptions(task="multi_label", label_column="tags", labels=",".join(LABELS), held_out=0.25)


@pytest.mark.parametrize(
    ("serve", "task"),
    [(PRICES, "regression(mean=500.0, deviation=100.0, known=True)"),
     pytest.param(TAGS, "multi_label", marks=pytest.mark.slow)],
)  # fmt: skip
def test_clients_train_and_are_judged_on_their_own_rows(serve, task, tmp_path, observer):
    made = Labelled(tmp_path, observer, serve=serve, **GIVEN)
    assert made.server.gateway.description.task == task
    progress = made.run()
    assert [report.error for report in made.server.direct.reports] == [""] * len(made.server.direct.reports)
    lines = [json.loads(line) for line in (tmp_path / "server" / "rounds.jsonl").read_text().splitlines()]
    assert [line["round"] for line in lines] == [0, 1, 2]
    assert all(line["rejected"] == 0 for line in lines)
    assert lines[0]["accuracy"] > (0.5 if serve is PRICES else 0.6), "the head starts from sums over all clients"
    assert lines[0]["loss"] == pytest.approx(1 - lines[0]["accuracy"]) or serve is TAGS
    assert progress.adapter["head.weight"].shape[0] == (1 if serve is PRICES else len(LABELS))

"""Real clients whose rows are pictures: folders, a class each."""

from __future__ import annotations

import json

import pytest

from fedpeft.deployment.options import ServeOptions
from tests.unit.deployment.test_picture_clients import GIVEN, STRIPES, Pictures, draw


@pytest.mark.parametrize(
    "settings",
    [{},
     {"peft": "lora_fa(rank=2, layers=1)", "head": "ridge"},
     {"privacy": "dp_sgd(epsilon=20)", "peft": "auto", "rounds": 4},
     {"peft": "auto"},
     {"peft": "head2toe", "head": "ridge", "model": "tiny_vision(layers=24)"},
     pytest.param({"privacy": "secure_sum", "clients": 3}, marks=pytest.mark.slow)],
    ids=str,
)  # fmt: skip
def test_clients_train_on_pictures(settings, tmp_path, observer):
    serve = ServeOptions(labels="across,down", side=16, eval_data=str(draw(tmp_path / "eval", 20, seed=9)))
    made = Pictures(tmp_path, observer, serve=serve, **GIVEN | settings)
    told = made.server.gateway.description
    assert (told.task, list(told.labels), told.side, told.template) == ("classification", ["across", "down"], 16, "")
    made.run()
    assert [report.error for report in made.server.direct.reports] == [""] * len(made.server.direct.reports)
    direct, limit = made.server.direct, made.server.gateway.limit
    for asked, report in zip(direct.asked, direct.reports, strict=True):  # as a client over sockets may send
        assert len(report.payload) <= limit(asked.round, report.rows)
    assert max(len(asked.payload) for asked in direct.asked) <= made.server.edges[0].instruction_limit
    lines = [json.loads(line) for line in (tmp_path / "server" / "rounds.jsonl").read_text().splitlines()]
    assert all(line["rejected"] == 0 for line in lines)
    assert max(line["accuracy"] for line in lines if line["accuracy"] is not None) > 0.8


def test_clients_are_judged_on_pictures_of_their_own(tmp_path, observer):
    made = Pictures(tmp_path, observer, serve=STRIPES, **GIVEN)
    made.run()
    lines = [json.loads(line) for line in (tmp_path / "server" / "rounds.jsonl").read_text().splitlines()]
    assert lines[-1]["accuracy"] > 0.8

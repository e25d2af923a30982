"""Training under a privacy budget as a server of real clients plans it: by the numbers of rows that all may know."""

from __future__ import annotations

import dataclasses
import json

from fedpeft.deployment.options import ServeOptions
from fedpeft.privacy.engine import LEDGER
from tests.here import Federation
from tests.unit.deployment.test_picture_clients import GIVEN, Pictures, draw
from tests.unit.deployment.test_planned_clients import TEXTS, UNSAID, heard


def test_where_no_round_is_planned_clients_are_asked_for_their_start_alone(tmp_path, observer):
    given = TEXTS | {"privacy": "dp_sgd(epsilon=8)", "head": "auto"}
    made = Federation(tmp_path, observer, serve=ServeOptions(client_rows=20), **given)
    assert made.server.setup.mechanism.start == 1
    progress = made.run()
    assert progress.round == 0
    assert [asked.kind for asked in made.server.direct.asked] == ["prepare"] * 3
    for k in range(3):  # whatever a client's rows: 40 to 90
        [_, *charges] = (next((tmp_path / f"edge-{k}").rglob(LEDGER))).read_text().splitlines()
        assert len(charges) == 1
        form = made.server.edges[k].setup.layout.form
        again = dataclasses.replace(made.server.direct.asked[k], kind="train", round=1, **vars(form))
        assert "budget is spent" in made.server.edges[k].handle(again).error


def test_private_pictures_are_told_apart_by_a_plan(tmp_path, observer):
    """Of 48 pictures with each of three clients."""
    serve = ServeOptions(
        labels="across,down", side=16, eval_data=str(draw(tmp_path / "eval", 20, seed=9)), client_rows=48
    )
    given = GIVEN | UNSAID | {"model": "tiny_vision", "clients": 3, "privacy": "dp_sgd(epsilon=100)", "peft": "auto"}
    made = Pictures(tmp_path, observer, serve=serve, **given)
    assert heard(made)["peft"].startswith("whitened_probe")
    made.run()
    assert [report.error for report in made.server.direct.reports] == [""] * len(made.server.direct.reports)
    lines = [json.loads(line) for line in (tmp_path / "server" / "rounds.jsonl").read_text().splitlines()]
    assert max(line["accuracy"] for line in lines if line["accuracy"] is not None) > 0.8

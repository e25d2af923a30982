"""How many clients a plan asks, and what a cohort that the user names has to say."""

from __future__ import annotations

import json

from fedpeft.reporting.records import Records
from tests.unit.privacy.test_asked_clients import ROWS, made


def test_a_head_is_not_led_by_the_classes_of_one_client(tmp_path):
    """Six clients whose classes differ, one of them a round: the loss was 13.7."""
    simulation = made(tmp_path, **ROWS)
    simulation.train(simulation.server(Records(tmp_path)))
    assert json.loads((tmp_path / "rounds.jsonl").read_text().splitlines()[-1])["loss"] < 2.5

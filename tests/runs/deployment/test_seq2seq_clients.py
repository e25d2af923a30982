"""Real clients whose rows are pairs of texts."""

from __future__ import annotations

import json

import pytest

from tests.here import Federation
from tests.unit.deployment.test_seq2seq_clients import PAIRS, pairs

GIVEN = {"model": "tiny_seq2seq", "peft": "lora(rank=2, layers=0)", "measure": "validation(every=1)", "head": "auto"}


class Paired(Federation):
    """A federation whose clients' files hold pairs."""

    def rows(self, k):
        return pairs(k)


@pytest.mark.slow
def test_clients_train_on_pairs_and_are_judged_on_their_own(tmp_path, observer):
    made = Paired(tmp_path, observer, serve=PAIRS, **GIVEN)
    told = made.server.gateway.description
    assert (told.task, list(told.labels), told.text_column, told.label_column) == ("seq2seq", [], "input", "target")
    progress = made.run()
    assert [report.error for report in made.server.direct.reports] == [""] * len(made.server.direct.reports)
    lines = [json.loads(line) for line in (tmp_path / "server" / "rounds.jsonl").read_text().splitlines()]
    assert all(line["rejected"] == 0 for line in lines)
    assert lines[-1]["loss"] < lines[0]["loss"]
    assert any(t.any() for name, t in progress.adapter.items() if "decoder" in name and "lora_B" in name)

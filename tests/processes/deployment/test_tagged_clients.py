"""Real clients whose rows are words with tags, and clients whose tables have other separators and encodings."""

from __future__ import annotations

import json

import pytest

from fedpeft.commands import predict
from tests.fleet import Fleet
from tests.tagged import LABELS, sentences, write_conll, write_jsonl


@pytest.mark.slow
def test_a_server_and_two_clients_label_words_over_sockets(tmp_path, capsys):
    fleet = Fleet(tmp_path, ("a", "b"), model="tiny", dtype="fp32", learning_rate=0.02, rounds=6)
    write_jsonl(tmp_path / "a.jsonl", sentences(80, 1))
    write_conll(tmp_path / "b.conll", sentences(80, 2))
    server = fleet.serve("--task", "token_labels", "--labels", ",".join(LABELS), "--held-out", "0.2")
    clients = [fleet.join("a"), fleet.join("b", "--data", "b.conll")]
    assert [fleet.end(process) for process in (server, *clients)] == [0, 0, 0], fleet.logs()
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    assert summary["task"] == "token_labels"
    capsys.readouterr()
    assert predict.main([str(tmp_path / "run"), "ann went to town"]) == 0
    said = capsys.readouterr().out.split()
    assert [word.rpartition("/")[0] for word in said] == ["ann", "went", "to", "town"]
    assert {word.rpartition("/")[2] for word in said} <= set(LABELS)
    table = tmp_path / "answers.csv"
    assert predict.main([str(tmp_path / "run"), "--data", str(tmp_path / "b.conll"), "--output", str(table)]) == 0

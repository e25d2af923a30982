"""Who is right about whose kind of question."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from experiments import own_kinds
from experiments.own_kinds import compute_lines
from fedpeft.data.rows import load_dataset
from fedpeft.errors import RunError
from fedpeft.parts.families import PARTITIONS
from fedpeft.wiring.config import RunConfig

ANSWERS = [
    {"right": ["A"], "said": {"base": "a", "global": "A", "client 0 alone": " A", "client 1 alone": "B"}},
    {"right": ["B"], "said": {"base": "B", "global": "A", "client 0 alone": "A", "client 1 alone": "B"}},
    {"right": ["C"], "said": {"base": "?", "global": "?", "client 0 alone": "C", "client 1 alone": "C"}},
]


def test_each_kind_is_set_against_its_own_client_and_the_others():
    found = compute_lines(ANSWERS, ["letters", "more", "more"])
    assert found == [("letters", [0, 100, 100, 0]), ("more", [50, 0, 100, 50])]


def test_a_client_s_number_is_its_kind_s_place():
    rows = load_dataset("office").train
    partition = PARTITIONS.build("natural").split(rows, 0, 0)
    kinds = [{str(kind) for kind in rows.owners[partition.shard(k)]} for k in range(len(partition))]
    assert kinds == [{kind} for kind in sorted(set(rows.owners.tolist()))]


def test_answers_of_others_are_refused():
    for answers in (ANSWERS[:2], [{**line, "said": {"base": "A", "global": "A"}} for line in ANSWERS]):
        with pytest.raises(RunError, match="--alone all"):
            compute_lines(answers, ["letters", "more", "more"])


def test_clients_that_are_no_kinds_are_refused(monkeypatch, tmp_path):
    """There may be as many of them, and client 3 would be taken for that of the fourth kind."""
    run = SimpleNamespace(config=RunConfig(dataset="office", partition="iid", clients=12))
    monkeypatch.setattr(own_kinds, "FinishedRun", SimpleNamespace(read=lambda folder: run))
    with pytest.raises(RunError, match="'iid', not natural"):
        own_kinds.build_table(tmp_path)

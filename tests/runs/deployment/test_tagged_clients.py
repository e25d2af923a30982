"""Real clients whose rows are words with tags, and clients whose tables have other separators and encodings."""

from __future__ import annotations

import json

import pytest

from tests.here import Federation
from tests.refusals import refuses
from tests.tagged import LABELS, sentences, write_jsonl
from tests.unit.deployment.test_tagged_clients import WORDS

GIVEN = {"model": "tiny", "measure": "validation(every=1)", "learning_rate": 0.02, "rounds": 4}


class Tagged(Federation):
    """A federation whose clients' files hold words and tags."""

    def rows(self, k):
        return sentences(60, seed=k)


def test_clients_train_on_tags_and_are_judged_on_their_own(tmp_path, observer):
    made = Tagged(tmp_path, observer, serve=WORDS, **GIVEN)
    told = made.server.gateway.description
    assert (told.task, list(told.labels)) == ("token_labels", list(LABELS))
    progress = made.run()
    assert [report.error for report in made.server.direct.reports] == [""] * len(made.server.direct.reports)
    lines = [json.loads(line) for line in (tmp_path / "server" / "rounds.jsonl").read_text().splitlines()]
    assert all(line["rejected"] == 0 for line in lines)
    assert lines[-1]["loss"] < lines[0]["loss"]
    assert progress.adapter["head.weight"].shape[0] == 2
    assert progress.adapter["head.weight"].any()


@pytest.mark.parametrize(
    ("rows", "words"),
    [
        (
            [{"tokens": ["a"], "ner_tags": ["B-NEW"]}],
            ("FP3192", 1, "'B-NAME'", "'O'", "'B-NEW'"),
        ),
        ([{"tokens": ["a"], "ner_tags": ["O", "O"]}], ("FP3189", "line 1", 1, "'tokens'", 2)),
        ([{"text": "a", "label": "b"}], ("FP3180", "'text', 'label'")),
    ],
)
def test_a_client_s_wrong_rows_are_for_its_user(rows, words, tmp_path, observer):
    made = Tagged(tmp_path, observer, serve=WORDS, **GIVEN, clients=1)
    write_jsonl(tmp_path / "0.jsonl", rows)
    with refuses(*words):
        made.edge(0)

"""Real clients whose classes lie apart: their losses are corrected as those of a simulation are."""

from __future__ import annotations

import json

import pytest
from fedpeft.clients.drift import SHARES

from fedpeft.data.rows import load_dataset
from tests.here import Federation


class Skewed(Federation):
    """A federation whose clients have two of four classes each, or all."""

    apart = True

    def rows(self, k):
        data = load_dataset(self.config.dataset)
        names, labels = data.label_names, data.train.labels
        mine = [i for i in range(len(labels)) if i % 3 == k and (not self.apart or labels[i] in (k, k + 1))]
        return [{"text": data.train.inputs[i], "label": names[labels[i]]} for i in mine[:60]]


class Alike(Skewed):
    apart = False


@pytest.mark.parametrize(("kind", "acts"), [(Skewed, True), (Alike, False)])
def test_a_server_tells_the_shares_of_classes_where_they_lie_apart(kind, acts, tmp_path, observer):
    made = kind(tmp_path, observer, clients=3, head="centroids", drift="label_shift(least=0.3)")
    assert 'drift = "label_shift(least=0.3)"' in made.server.gateway.description.config
    progress = made.run()
    assert (SHARES in progress.told) is acts
    trained = [asked for asked in made.server.direct.asked if asked.kind == "train"]
    assert trained
    assert all(bool(asked.told) is acts for asked in trained)
    assert [report.error for report in made.server.direct.reports] == [""] * len(made.server.direct.reports)


def test_a_client_that_claims_rows_of_a_class_that_it_can_t_have_is_left_out(tmp_path, observer):
    """One liar of three: the correction goes by the others."""
    made = Alike(tmp_path, observer, clients=3, head="centroids", drift="label_shift(least=0.3)")
    honest = made.server.edges[0]

    class Liar:
        def handle(self, asked):
            report = honest.handle(asked)
            return report if asked.kind != "prepare" else type(report)(**{**vars(report), "rows": 5})

    made.server.edges[0] = Liar()
    progress = made.run()
    assert SHARES not in progress.told
    lines = (tmp_path / "server" / "rounds.jsonl").read_text().splitlines()
    assert [json.loads(line)["rejected"] for line in lines] == [1, 0, 0]

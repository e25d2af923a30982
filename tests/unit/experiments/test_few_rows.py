"""What the strength of the ridge head is worth where rows are few."""

from __future__ import annotations

import re

import pytest
import torch
from rich.console import Console

from experiments.few_rows import Command, main, score_head
from fedpeft.aggregation.heads.ridge import Ridge
from fedpeft.errors import ConfigError
from tests.refusals import refuses


def test_the_table_has_a_row_for_each_number_of_rows_that_there_are():
    told = Console(record=True, width=110)
    main(Command("tiny", rows=(40, 80, 10**6), draws=2, tokens=32), told)
    rows = [line.split() for line in told.export_text().splitlines() if line.startswith("│")]
    assert [row[1] for row in rows] == ["40", "80"]
    assert all(float(row[-2]) < float(row[-4]) for row in rows), "the loss of noise that is fitted is larger"


def test_heads_on_all_blocks_are_set_beside_another():
    widths = []
    for whether in (False, True):
        told = Console(record=True, width=110)
        main(Command("tiny", rows=(40,), draws=1, tokens=32, all_blocks=whether, head="centroids"), told)
        text = told.export_text()
        assert "centroids" in text
        widths.append(int(re.search(r"(\d+) features", text)[1]))
    assert widths[1] > widths[0]


def test_what_is_scored_is_the_head_of_these_rows():
    features, labels = torch.eye(4).double().repeat(30, 1), torch.arange(4).repeat(30)
    assert score_head(Ridge(), (features, labels), (features[:4], labels[:4]))[0] == 100
    assert score_head(Ridge(), (features, labels), (features[:4], labels[:4].flip(0)))[0] == 0


def test_no_strength_is_refused():
    with refuses("FP1227", "strength", "above 0"):
        main(Command("tiny", head="ridge(strength=0)"), Console(quiet=True))


@pytest.mark.parametrize("given", [{"draws": 0}, {"rows": (10, 0)}, {"rows": ()}])
def test_no_draws_and_no_rows_are_refused(given):
    with pytest.raises(ConfigError, match="must be at least 1"):
        main(Command("tiny", **given), Console(quiet=True))

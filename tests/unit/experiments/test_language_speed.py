"""The benchmark of a language model's step, on a tiny one: every way is measured, and all agree on the loss."""

from __future__ import annotations

import json

import pytest

from experiments import exit_on_error
from experiments.language_speed.__main__ import (
    APART,
    CHUNKS,
    CLIENT,
    CLIENT_AGAIN,
    CLIENT_RAGGED,
    OUTPUT,
    PACKED,
    WHOLE,
    Settings,
    main,
)
from experiments.language_speed.peers import PLAIN, PLAIN_RAGGED, SFT
from tests.refusals import has_error


@pytest.mark.parametrize("answers", [1.0, 0.4])
def test_ways_agree_on_the_loss(answers, tmp_path):
    file = tmp_path / "found.jsonl"
    assert main(Settings(model="tiny_lm", tokens=32, repeats=1, answers=answers, output=file)) == 0
    loss = {line["way"]: line["loss"] for line in map(json.loads, file.read_text().splitlines())}
    assert loss[CHUNKS] == pytest.approx(loss[WHOLE], rel=1e-5)
    assert loss[PACKED] == pytest.approx(loss[APART], rel=1e-5)
    assert loss[CLIENT] == pytest.approx(loss[WHOLE], rel=1e-5)
    assert loss[CLIENT_AGAIN] == pytest.approx(loss[WHOLE], rel=1e-5)
    assert loss[CLIENT_RAGGED] == pytest.approx(loss[APART], rel=1e-5)
    assert loss[PLAIN] == pytest.approx(loss[CHUNKS], rel=1e-5)
    assert loss[PLAIN_RAGGED] == pytest.approx(loss[APART], rel=1e-5)
    if SFT in loss:
        assert loss[SFT] == pytest.approx(loss[CHUNKS], rel=1e-5)
    assert loss[OUTPUT + CHUNKS] == pytest.approx(loss[OUTPUT + WHOLE], rel=1e-5)


def test_a_wrong_expression_is_said_in_a_sentence(capsys):
    with pytest.raises(SystemExit) as ended, exit_on_error():
        main(Settings(only="(rows"))
    assert ended.value.code == 2
    assert has_error(capsys.readouterr().err, "FP1000", "only='(rows'")

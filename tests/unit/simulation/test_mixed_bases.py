"""Cohorts whose clients hold the base and the adapter in different precisions."""

from __future__ import annotations

import pytest

from fedpeft.simulate import main
from tests.refusals import has_error
from tests.runs.simulation.test_mixed_bases import MIXED, flags, profiles


@pytest.mark.parametrize(
    ("more", "words"),
    [
        ({"dtype": "fp64"}, ("FP1299",)),
        ({"text": '[[profile]]\ncount = 6\nbase = "int3"\n'}, ("FP1227", "one of")),
    ],
)
def test_what_does_not_go_together_is_one_sentence(tmp_path, capsys, more, words):
    given = profiles(tmp_path, more.pop("text", MIXED))
    assert main(flags(tmp_path, clients=given, **more)) == 2
    assert has_error(capsys.readouterr().err, *words)


def test_a_missing_bitsandbytes_is_named_before_anything_is_trained(tmp_path, capsys, monkeypatch):
    find = __import__("importlib.util").util.find_spec
    monkeypatch.setattr("importlib.util.find_spec", lambda name, *a: None if name == "bitsandbytes" else find(name, *a))
    assert main(flags(tmp_path, clients=profiles(tmp_path))) == 2
    assert has_error(capsys.readouterr().err, "FP1210")


@pytest.mark.parametrize(
    ("peft", "strategy"),
    [("dora", "fedit"), ("lora_sb", "fedit"), ("adalora", "flexlora"), ("full", "fedit")],
)
def test_methods_that_read_the_base_s_weights_refuse_few_bits(peft, strategy, tmp_path, capfd):
    file = profiles(tmp_path, '[[profile]]\ncount = 2\nbase = "int8"\n[[profile]]\ncount = 4\n')
    assert main(flags(tmp_path, peft=peft, strategy=strategy, clients=file)) == 2
    assert has_error("".join(capfd.readouterr()), "FP1298", peft, "int8")

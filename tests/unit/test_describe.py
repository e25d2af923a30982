"""The catalogue of parts: everything is in it, with its settings, and an unknown name is told the nearest one."""

import dataclasses

import pytest

from fedpeft.commands import describe
from fedpeft.deployment.options import ServeOptions
from fedpeft.evaluate import __main__ as evaluate
from fedpeft.wiring.config import RunConfig
from tests.refusals import has_error


def test_every_flag_with_parts_is_listed_with_all_of_them(capsys):
    assert describe.main([]) == 0
    out = capsys.readouterr().out
    fields = {
        field.name for command in (RunConfig, ServeOptions, evaluate.Command) for field in dataclasses.fields(command)
    }
    for flag, families in describe.FAMILIES.items():
        assert flag.replace("-", "_") in fields
        assert all(name in out for family in families for name in family.names)


@pytest.mark.parametrize("name", sorted({n for fs in describe.FAMILIES.values() for f in fs for n in f.names}))
def test_a_part_is_shown_with_each_of_its_settings(name, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "200")
    assert describe.main([name]) == 0
    out = capsys.readouterr().out
    for _, cls in describe.find_parts(name):
        assert all(field.name in out for field in dataclasses.fields(cls) if "help" in field.metadata)


def test_an_unknown_name_gets_the_nearest(capsys):
    assert describe.main(["flexlra"]) == 2
    error = capsys.readouterr().err
    assert has_error(error, "FP1154", "did you mean 'flexlora'?")
    assert "Traceback" not in error


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("small", "--codec small"),
        ("fp32", "cast(dtype=fp32)"),
        ("tiny", "--codec tiny"),
        ("rounds", "rounds of federated training"),
        ("learning-rate", "of the local optimizer"),
        ("codec", "Stands in front: by_link | small."),
    ],
)
def test_presets_flags_and_words_in_front_of_a_codec_are_described(name, words, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "200")
    assert describe.main([name]) == 0
    assert words in capsys.readouterr().out


def test_a_name_of_other_libraries_is_explained(capsys):
    assert describe.main(["FedProx"]) == 2
    assert has_error(capsys.readouterr().err, "FP1153", "--drift")


@pytest.mark.parametrize(
    ("name", "method"),
    [("p_tuning_v2", "prefix_tuning(layers=0)"), ("prefix", "prefix_tuning"), ("bottle", "bottleneck")],
)
def test_another_name_of_a_method_is_described_as_what_it_stands_for(name, method, capsys):
    assert describe.main([name]) == 0
    out = capsys.readouterr().out
    assert f"{name} stands for {method}." in out
    assert f"--peft {method.partition('(')[0]}" in out

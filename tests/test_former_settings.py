"""Settings of before: what to write now, and how folders and results of before are read."""

from __future__ import annotations

import dataclasses

import pytest
import tomli_w

from experiments.rewrite_settings import rewritten_results, rewritten_study
from fedpeft import former_settings
from fedpeft.config import RunConfig, from_mapping, read_config
from fedpeft.errors import ConfigError
from fedpeft.run import catalogue
from fedpeft.run.folder import refuse_former
from fedpeft.run.help import GROUPS
from fedpeft.serve import main as serve
from fedpeft.simulate import main as simulate

BEFORE = {
    "clients": 6, "rounds": 2, "strategy": "krum(selected=2)", "profiles": "", "proximal": 0.5, "scaffold": True,
    "label_shift": False, "local_epochs": 2.0, "local_steps": 0, "head_rate": 1.0, "schedule": "cosine",
    "optimizer": "sgd", "weighting": "uniform", "privacy": "dp_sgd(epsilon=8)", "stop_at_budget": True,
    "executor": "sequential", "grid": "ray", "ray_address": "10.0.0.1:6379", "workers": 3, "evaluate_every": 2,
    "keep": "best", "early_stopping": 5, "public_validation": True, "centralised": True,
    "forgetting": "20newsgroups", "seed": 4, "peft": "lora(rank=4) + bitfit + ia3(layers=0)",
}  # fmt: skip
TODAY = {
    "clients": 6,
    "rounds": 2,
    "strategy": "krum(selected=2, weighting=uniform)",
    "drift": "fedprox(mu=0.5) + scaffold",
    "local_work": "epochs(2.0)",
    "optimizer": "sgd(head_rate=1.0, schedule=cosine)",
    "privacy": "dp_sgd(epsilon=8, at_budget=sit_out)",
    "grid": "ray(executor=sequential, address='10.0.0.1:6379')",
    "workers": 3,
    "measure": "validation(every=2, keep=best, patience=5, public=True) + pooled + forgetting(dataset='20newsgroups')",
    "seed": 4,
    "peft": "lora(rank=4, layers=2) + bitfit(layers=2) + ia3(layers=0)",
}


def test_settings_of_before_are_said_by_todays_and_can_be_built():
    made = former_settings.translated(BEFORE)
    assert made == TODAY
    config = from_mapping(made, "a test")
    measured = catalogue.built(config, "measure")
    assert (measured.validation.patience, measured.pooled, measured.second) == (5, True, "20newsgroups")
    assert catalogue.built(config, "optimizer").schedule == "cosine"
    assert catalogue.built(config, "grid").cluster == "10.0.0.1:6379"
    assert catalogue.built(config, "privacy").at_budget == "sit_out"
    assert catalogue.built(config, "strategy").weighting == "uniform"


def test_defaults_of_before_are_the_defaults_of_today():
    made = former_settings.translated({**former_settings.DEFAULTS, "optimizer": "adamw(warmup=8)"})
    default = dataclasses.asdict(RunConfig(drift=""))  # before, losses were as they are
    assert made == {name: default[name] for name in made}


def test_no_name_of_before_is_one_of_today_and_every_new_one_is():
    names = {field.name for field in dataclasses.fields(RunConfig)}
    assert not names & former_settings.FORMER.keys()
    assert {merge.new for merge in former_settings.MERGES} <= names
    assert len(names) <= 28


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["--proximal", "0.01"], '--proximal is now --drift "fedprox(mu=0.01)"'),
        (["--proximal=0.01", "--scaffold"], '--proximal and --scaffold are now --drift "fedprox(mu=0.01) + scaffold"'),
        (["--local-steps", "10"], '--local-steps is now --local-work "steps(count=10, walk=False)"'),
        (["--optimizer", "sgd", "--head-rate", "0.5"], '--head-rate is now --optimizer "sgd(head_rate=0.5)"'),
        (["--profiles", "p.toml"], '--profiles is now --clients "p.toml"'),
        (["--privacy", "dp_sgd(epsilon=8)",
        "--stop-at-budget"], 'is now --privacy "dp_sgd(epsilon=8, at_budget=sit_out)"'),
        (["--executor", "sequential"], '--executor is now --grid "cohort(executor=sequential)"'),
        (["--early-stopping", "3"], '--early-stopping is now --measure "validation(every=4, patience=3)"'),
        (["--no-scaffold"], "--scaffold is now part of --drift"),
        (["--weighting", "auto"], "--weighting is now part of --strategy"),
    ],
)  # fmt: skip
def test_an_old_flag_is_one_sentence_that_says_what_to_write(words, says):
    with pytest.raises(ConfigError) as refused:
        refuse_former(words)
    assert says in str(refused.value)


def test_todays_flags_are_none_of_before():
    refuse_former(["--drift", "scaffold", "--clients", "5", "--measure", "pooled"])


@pytest.mark.parametrize("command", [simulate, serve])
def test_both_commands_say_it(command, capsys):
    assert command(["--local-steps", "10"]) == 2
    assert 'now --local-work "steps(count=10, walk=False)"' in capsys.readouterr().err.replace("\n", " ")


def test_an_old_key_is_one_sentence_in_files_and_in_python(tmp_path):
    (tmp_path / "run.toml").write_text("proximal = 0.01\n")
    for give in (lambda: read_config(tmp_path / "run.toml"), lambda: RunConfig(proximal=0.01)):
        with pytest.raises(ConfigError, match=r'proximal is now drift = "fedprox\(mu=0.01\)"'):
            give()


def test_the_file_of_a_run_of_before_is_read_as_it_was_meant(tmp_path):
    settings = {**former_settings.DEFAULTS, "dataset": "tiny", "local_steps": 3, "optimizer": "adamw"}
    (tmp_path / "config.toml").write_text(tomli_w.dumps(settings))
    meant = RunConfig(dataset="tiny", local_work="steps(count=3, walk=False)", optimizer="adamw", drift="")
    assert read_config(tmp_path / "config.toml") == meant


def test_studies_and_results_are_rewritten_once():
    study = """[base]
keep = "last"
head_rate = 1.0
[axes]
method = [
    {label = "one", local_steps = 2, rounds = 3},
    {label = "two", optimizer = "sgd", local_steps = 4, rounds = 3},
]
"""
    made = rewritten_study(study)
    assert 'measure = "validation(every=4, keep=last)"' in made
    one, two = (f'local_work = "steps(count={n}, walk=False)", rounds = 3' for n in (2, 4))
    assert f'{{label = "one", {one}, optimizer = "adamw(warmup=8, head_rate=1.0)"}}' in made
    assert f'{{label = "two", optimizer = "sgd(head_rate=1.0)", {two}}}' in made
    assert "head_rate = " not in made
    assert rewritten_study(made) == made
    lines = '{"config": {"local_steps": 2}, "loss": 0.25}\n{"rate": 1}\n{"cut'
    once = rewritten_results(lines)
    assert '"local_work": "steps(count=2, walk=False)"' in once
    assert '"keep=last' not in once
    assert "validation(every=4, keep=last)" in once, "before there was a safeguard, the last state was the result"
    assert once.endswith('"loss": 0.25}\n{"rate": 1}\n{"cut')
    assert rewritten_results(once) == once


def test_help_lists_every_setting_in_a_group_and_fits_on_two_screens(capsys):
    names = [name for members in GROUPS.values() for name in members]
    assert sorted(names) == sorted(field.name for field in dataclasses.fields(RunConfig))
    for command, hidden in ((simulate, ()), (serve, ("--partition", "--attack", "--grid"))):
        with pytest.raises(SystemExit) as ended:
            command(["--help"])
        assert not ended.value.code
        lines = capsys.readouterr().out.splitlines()
        assert len(lines) <= 100
        assert max(map(len, lines)) <= 120
        flags = {line.split()[0] for line in lines if line.startswith("  --")}
        assert flags >= {"--" + name.replace("_", "-") for name in names} - set(hidden)
        assert not flags & set(hidden)

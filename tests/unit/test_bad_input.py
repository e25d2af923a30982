"""What a user can get wrong: one clear sentence, exit code 2, nothing half-written, no traceback."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from fedpeft.config import RunConfig, read_toml
from fedpeft.data.record_files import read_records
from fedpeft.data.user_rows import Names, read
from fedpeft.errors import RunError
from fedpeft.reporting.run_folder import load_default_settings, refuse_file, resolve_settings
from fedpeft.simulate import main, parse
from tests.refusals import refuses

TINY = {"--dataset": "tiny", "--clients": "6", "--cohort": "3", "--rounds": "1", "--dtype": "fp32", "--workers": "1"}


def call(folder: Path, flags: dict[str, str]) -> int:
    arguments = [word for pair in (TINY | flags).items() for word in pair if word]
    try:
        return main([*arguments, "--output", str(folder)])
    except SystemExit as stop:  # the argument parser's own way out
        return int(stop.code or 0)


CASES = {
    "unknown flag": ({"--round": "3"}, "--rounds"),
    "flag of the wrong type": ({"--rounds": "three"}, "rounds"),
    "value out of range": ({"--rounds": "0"}, "at least 1"),
    "negative learning rate": ({"--learning-rate": "-1"}, "above 0"),
    "learning rate that is no number": ({"--learning-rate": "nan"}, "learning_rate"),
    "passes without end": ({"--local-work": "epochs(1e999)"}, "passes"),
    "targets that are no names": ({"--peft": "lora(targets=(1,2))"}, "targets must be"),
    "a value that Python can't hold": ({"--peft": "lora(rank={[]:1})"}, "not a plain value"),
    "unknown choice": ({"--dtype": "fp8"}, "'bf16', 'fp32', 'fp64'"),
    "unknown data set": ({"--dataset": "20newsgroup"}, "did you mean '20newsgroups'"),
    "unknown partition": ({"--partition": "dirichlt"}, "did you mean 'dirichlet'"),
    "unknown setting of a part": ({"--partition": "dirichlet(beta=1)"}, "no setting 'beta'"),
    "setting of a part out of range": ({"--partition": "dirichlet(alpha=0)"}, "alpha must be at least"),
    "a part's text that does not parse": ({"--peft": "lora(rank=8"}, "name(key=value"),
    "unknown PEFT method": ({"--peft": "lorra"}, "did you mean 'lora'"),
    "rank that is no whole number": ({"--peft": "lora(rank=1.5)"}, "must be int"),
    "layers the model lacks": ({"--peft": "lora(layers=99)"}, "exceeds the 3 transformer blocks"),
    "target modules the model lacks": ({"--peft": "lora(targets=('q_proj',))"}, "query"),
    "unknown strategy": ({"--strategy": "fedavg"}, "fedit"),
    "strategy that needs LoRA": ({"--strategy": "flexlora", "--peft": "ia3(layers=0)"}, "LoRA"),
    "unknown server optimizer": ({"--server-optimizer": "adm"}, "did you mean 'adam'"),
    "unknown local optimizer": ({"--optimizer": "lion"}, "adamw, muon, sgd"),
    "unknown codec": ({"--codec": "zip"}, "presets"),
    "codec steps in a wrong order": ({"--codec": "rans | topk(fraction=0.1)"}, "topk"),
    "unknown head": ({"--head": "ride"}, "did you mean 'ridge'"),
    "more clients than rows": ({"--clients": "100000"}, "FP3087"),
    "momentum at the server as a strategy": ({"--strategy": "FedAvgM"}, "--server-optimizer 'momentum(beta=0.9)'"),
    "cohort of more than all": ({"--cohort": "7"}, "number of clients (6)"),
    "cohort of nobody": ({"--cohort": "0"}, "at least 1|above 0|neither a fraction"),
    "cohort fraction above one": ({"--cohort": "1.5"}, "neither a fraction"),
    "natural partition without owners": (
        {"--partition": "natural", "--dataset": "20newsgroups", "--model": "tiny"},
        "owners",
    ),
    "unknown model": ({"--model": "tinny"}, "did you mean 'tiny'"),
    "model folder that is missing": ({"--model": "/no/such/folder"}, "no model directory"),
    "missing data file": ({"--dataset": "file:/no/such.csv"}, "no/such.csv"),
    "a budget without privacy": (
        {"--privacy": "dp_sgd(noise_multiplier=1, at_budget=sit_out)", "--head": "zero"},
        "needs a budget",
    ),
    "a cluster without ray": ({"--grid": "cohort(address=auto)"}, "no setting 'address'"),
    "missing configuration file": ({"missing.toml": ""}, "missing.toml"),
}


@pytest.mark.parametrize("case", CASES)
def test_a_mistake_is_one_sentence(case, tmp_path, capfd, monkeypatch):
    monkeypatch.setenv("COLUMNS", "300")
    flags, words = CASES[case]
    folder = tmp_path / "run"
    if case == "missing configuration file":
        assert main(["missing.toml", "--output", str(folder)]) == 2
    else:
        assert call(folder, flags) == 2
    said = "".join(capfd.readouterr())
    assert any(word in said for word in words.split("|")), said
    assert "Traceback" not in said
    assert not folder.exists(), "something was left behind"


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("columns.csv", "body,label\nhello,a\nworld,b\n", "text"),
        ("class.csv", "text,label\nhello,a\nworld,a\nagain,a\n", "one class"),
        ("empty.csv", "", "empty|no rows"),
        ("broken.jsonl", '{"text": "a", "label": "x"}\n{"text": \n', "line 2"),
        ("bytes.csv", b"text,label\n\xff\xfe\x80,a\n", "UTF-8|utf-8|encoding"),
    ],
)
def test_a_data_file_that_cannot_be_used(name, content, words, tmp_path, capfd):
    file = tmp_path / name
    file.write_bytes(content if isinstance(content, bytes) else content.encode())
    assert call(tmp_path / "run", {"--dataset": f"file:{file}", "--model": "tiny"}) == 2
    said = "".join(capfd.readouterr())
    assert any(word in said for word in words.split("|")), said
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("rounds = ", "not valid TOML"),
        ("round = 3\n", "did you mean 'rounds'"),
        ('rounds = "3"\n', "must be int"),
    ],
)
def test_a_configuration_file_that_cannot_be_used(content, words, tmp_path, capfd):
    file = tmp_path / "run.toml"
    file.write_text(content)
    assert main([str(file), "--output", str(tmp_path / "run")]) == 2
    assert words in "".join(capfd.readouterr())


def test_a_folder_that_is_not_empty_is_left_alone(tmp_path, capfd):
    (tmp_path / "kept.txt").write_text("mine")
    assert call(tmp_path, {}) == 2
    assert "not empty" in "".join(capfd.readouterr()).replace("\n", " ")
    assert [p.name for p in tmp_path.iterdir()] == ["kept.txt"]


def test_resuming_what_is_no_run(tmp_path, capfd):
    assert main(["--resume", str(tmp_path)]) == 2
    assert "no run to resume" in "".join(capfd.readouterr()).replace("\n", " ")


def test_a_disk_that_cannot_be_written(tmp_path, capfd):
    blocked = tmp_path / "file"
    blocked.write_text("")
    assert call(blocked / "run", {}) == 2
    assert "Traceback" not in "".join(capfd.readouterr())


def test_the_settings_file_may_stand_anywhere(tmp_path):
    file = tmp_path / "run.toml"
    file.write_text("clients = 33\n")
    config, *_ = parse(["--rounds", "3", str(file)])
    assert (config.clients, config.rounds) == (33, 3)


@pytest.mark.parametrize("form", ["--resume={}", "--resume {}"])
def test_a_resumed_run_has_its_own_settings_however_the_flag_is_written(form, tmp_path):
    (tmp_path / "config.toml").write_text('clients = 7\ndataset = "tiny"\nstrategy = "flora"\n')
    config, folder, resume, _ = parse(form.format(tmp_path).split())
    assert (config.clients, config.dataset, config.strategy, folder, resume) == (7, "tiny", "flora", tmp_path, True)


def test_resuming_takes_no_settings_file(tmp_path):
    (tmp_path / "config.toml").write_text("clients = 7\n")
    with refuses("FP1373"):
        parse([str(tmp_path / "config.toml"), f"--resume={tmp_path}"])


@pytest.mark.parametrize(
    ("text", "words"),
    [("a = " + "[" * 100_000, ("FP1079",)), (f"rounds = {'9' * 5000}", ("FP1080",))],
)
def test_a_configuration_beyond_all_bounds_is_one_sentence(text, words, tmp_path):
    (tmp_path / "run.toml").write_text(text)
    with refuses(*words):
        read_toml(tmp_path / "run.toml")


def test_a_pipe_is_not_waited_for(tmp_path):
    os.mkfifo(tmp_path / "run.toml")
    with refuses("FP1076"):
        read_toml(tmp_path / "run.toml")
    os.mkfifo(tmp_path / "rows.csv")
    with refuses("FP3110"):
        list(read_records(str(tmp_path / "rows.csv")))


def test_half_of_a_character_is_one_sentence(tmp_path):
    file = tmp_path / "rows.jsonl"
    file.write_text('{"text": "a\\ud800b", "label": "x"}\n')
    with refuses("FP3152"):
        read(str(file), read_records(str(file)), Names("text", "label", None))


@pytest.mark.parametrize("name", ["a" * 300, "a\0b"])
def test_a_name_that_no_folder_can_have_is_one_sentence(name, tmp_path):
    with refuses("FP5179"):
        refuse_file(tmp_path / name)


def test_a_run_killed_before_its_settings_were_there_can_be_started_again(tmp_path):
    for name in (".lock", "serve.jsonl", "roster.json", "config.toml.partial"):
        (tmp_path / name).touch()
    config = RunConfig(dataset="tiny")
    assert resolve_settings(config, RunConfig(), tmp_path, None)[1] == tmp_path
    with pytest.raises(RunError, match=f"start a new run with --output {tmp_path}"):
        load_default_settings(None, tmp_path)
    (tmp_path / "rounds.jsonl").touch()
    with refuses("FP5178"):
        resolve_settings(config, RunConfig(), tmp_path, None)

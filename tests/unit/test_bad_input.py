"""What a user can get wrong: one clear sentence, exit code 2, nothing half-written, no traceback."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from fedpeft.data.record_files import read_records
from fedpeft.data.user_rows import Names, read
from fedpeft.reporting.run_folder import load_default_settings, refuse_file, resolve_settings
from fedpeft.simulate import main, parse
from fedpeft.wiring.config import RunConfig, read_toml
from tests.refusals import has_error, refuses

TINY = {"--dataset": "tiny", "--clients": "6", "--cohort": "3", "--rounds": "1", "--dtype": "fp32", "--workers": "1"}


def call(folder: Path, flags: dict[str, str]) -> int:
    arguments = [word for pair in (TINY | flags).items() for word in pair if word]
    try:
        return main([*arguments, "--output", str(folder)])
    except SystemExit as stop:  # the argument parser's own way out
        return int(stop.code or 0)


CASES = {
    "value out of range": ({"--rounds": "0"}, ("FP1227", "rounds", 1, 0)),
    "negative learning rate": ({"--learning-rate": "-1"}, ("FP1227", "learning_rate", 0, "-1.0")),
    "learning rate that is no number": ({"--learning-rate": "nan"}, ("FP1519", "learning_rate", "nan")),
    "passes without end": ({"--local-work": "epochs(1e999)"}, ("FP1519", "epochs", "passes", "inf")),
    "targets that are no names": ({"--peft": "lora(targets=(1,2))"}, ("FP1227", "lora", "targets", "(1, 2)")),
    "a value that Python can't hold": ({"--peft": "lora(rank={[]:1})"}, ("FP1421", "{[]: 1}")),
    "unknown choice": ({"--dtype": "fp8"}, ("FP1227", "dtype", "'bf16', 'fp32', 'fp64'", "'fp8'")),
    "unknown data set": ({"--dataset": "20newsgroup"}, ("FP1231", "'20newsgroup'", "did you mean '20newsgroups'")),
    "unknown partition": ({"--partition": "dirichlt"}, ("FP1231", "'dirichlt'", "did you mean 'dirichlet'")),
    "unknown setting of a part": ({"--partition": "dirichlet(beta=1)"}, ("FP1225", "dirichlet", "'beta'")),
    "setting of a part out of range": ({"--partition": "dirichlet(alpha=0)"}, ("FP1227", "dirichlet", "alpha", "0.0")),
    "a part's text that does not parse": ({"--peft": "lora(rank=8"}, ("FP1420", "'lora(rank=8'", "name(key=value")),
    "unknown PEFT method": ({"--peft": "lorra"}, ("FP1231", "'lorra'", "did you mean 'lora'")),
    "rank that is no whole number": ({"--peft": "lora(rank=1.5)"}, ("FP1227", "lora", "rank", "int", 1.5)),
    "layers the model lacks": ({"--peft": "lora(layers=99)"}, ("FP4026", "layers=99", 3)),
    "target modules the model lacks": (
        {"--peft": "lora(targets=('q_proj',))"},
        ("FP4028", "'q_proj'", "attention.self.query"),
    ),
    "unknown strategy": ({"--strategy": "fedavg"}, ("FP1230", "'fedavg'", "fedit")),
    "strategy that needs LoRA": ({"--strategy": "flexlora", "--peft": "ia3(layers=0)"}, ("FP1023", "FlexLoRA", "lora")),
    "unknown server optimizer": ({"--server-optimizer": "adm"}, ("FP1231", "'adm'", "did you mean 'adam'")),
    "unknown local optimizer": ({"--optimizer": "lion"}, ("FP1231", "'lion'", "adamw, muon, sgd")),
    "unknown codec": ({"--codec": "zip"}, ("FP1050", "'zip'", "fp64", "topk")),
    "codec steps in a wrong order": ({"--codec": "rans | topk(fraction=0.1)"}, ("FP1065", "rans | cast | topk")),
    "unknown head": ({"--head": "ride"}, ("FP1231", "'ride'", "did you mean 'ridge'")),
    "more clients than rows": ({"--clients": "100000"}, ("FP3087", 100000, 540)),
    "momentum at the server as a strategy": (
        {"--strategy": "FedAvgM"},
        ("FP1230", "'FedAvgM'", "--server-optimizer 'momentum(beta=0.9)'"),
    ),
    "cohort of more than all": ({"--cohort": "7"}, ("FP1506", "cohort=7", 6)),
    "cohort of nobody": ({"--cohort": "0"}, ("FP1227", "cohort", 0, 0)),
    "cohort fraction above one": ({"--cohort": "1.5"}, ("FP1506", "cohort=1.5", "1.0")),
    "natural partition without owners": (
        {"--partition": "natural", "--dataset": "20newsgroups", "--model": "tiny"},
        ("FP3092", "natural", "owner=COLUMN"),
    ),
    "unknown model": ({"--model": "tinny"}, ("FP1206", "'tinny'", "did you mean 'tiny'")),
    "model folder that is missing": ({"--model": "/no/such/folder"}, ("FP2031", "'/no/such/folder'")),
    "missing data file": ({"--dataset": "file:/no/such.csv"}, ("FP3036", "/no/such.csv")),
    "a budget without privacy": (
        {"--privacy": "dp_sgd(noise_multiplier=1, at_budget=sit_out)", "--head": "zero"},
        ("FP7038", "at_budget=sit_out", "epsilon"),
    ),
    "a cluster without ray": ({"--grid": "cohort(address=auto)"}, ("FP1225", "cohort", "'address'")),
    "missing configuration file": ({"missing.toml": ""}, ("FP1077", "missing.toml")),
}


@pytest.mark.parametrize("flags", [{"--round": "3"}, {"--rounds": "three"}], ids=["unknown flag", "wrong type"])
def test_a_mistake_that_the_argument_parser_finds_names_the_flag(flags, tmp_path, capfd):
    assert call(tmp_path / "run", flags) == 2
    assert "--rounds" in capfd.readouterr().err
    assert not (tmp_path / "run").exists(), "something was left behind"


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
    assert has_error(said, *words), said
    assert "Traceback" not in said
    assert not folder.exists(), "something was left behind"


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("columns.csv", "body,label\nhello,a\nworld,b\n", ("FP3155", "columns.csv", "'text'")),
        ("class.csv", "text,label\nhello,a\nworld,a\nagain,a\n", ("FP3138", "class.csv")),
        ("empty.csv", "", ("FP3114", "empty.csv", "at least one example")),
        ("broken.jsonl", '{"text": "a", "label": "x"}\n{"text": \n', ("FP3119", "line 2", "broken.jsonl")),
        ("bytes.csv", b"text,label\n\xff\xfe\x80,a\n", ("FP3185", "bytes.csv", "UTF-8", "byte 11")),
    ],
)
def test_a_data_file_that_cannot_be_used(name, content, words, tmp_path, capfd):
    file = tmp_path / name
    file.write_bytes(content if isinstance(content, bytes) else content.encode())
    assert call(tmp_path / "run", {"--dataset": f"file:{file}", "--model": "tiny"}) == 2
    said = "".join(capfd.readouterr())
    assert has_error(said, *words), said
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("rounds = ", ("FP1080", "run.toml")),
        ("round = 3\n", ("FP1225", "'round'", "did you mean 'rounds'")),
        ('rounds = "3"\n', ("FP1227", "rounds", "int", "'3'")),
    ],
)
def test_a_configuration_file_that_cannot_be_used(content, words, tmp_path, capfd):
    file = tmp_path / "run.toml"
    file.write_text(content)
    assert main([str(file), "--output", str(tmp_path / "run")]) == 2
    assert has_error("".join(capfd.readouterr()), *words)


def test_a_folder_that_is_not_empty_is_left_alone(tmp_path, capfd):
    (tmp_path / "kept.txt").write_text("mine")
    assert call(tmp_path, {}) == 2
    assert has_error("".join(capfd.readouterr()), "FP5178", "--output", "--resume")
    assert [p.name for p in tmp_path.iterdir()] == ["kept.txt"]


def test_resuming_what_is_no_run(tmp_path, capfd):
    assert main(["--resume", str(tmp_path)]) == 2
    assert has_error("".join(capfd.readouterr()), "FP5176", "config.toml", "--output")


def test_a_disk_that_cannot_be_written(tmp_path, capfd):
    blocked = tmp_path / "file"
    blocked.write_text("")
    assert call(blocked / "run", {}) == 2
    assert has_error(said := "".join(capfd.readouterr()), "FP5185", "--output")
    assert "Traceback" not in said


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
    with refuses("FP5176", tmp_path, "config.toml", f"--output {tmp_path}"):
        load_default_settings(None, tmp_path)
    (tmp_path / "rounds.jsonl").touch()
    with refuses("FP5178"):
        resolve_settings(config, RunConfig(), tmp_path, None)

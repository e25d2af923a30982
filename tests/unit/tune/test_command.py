"""The command: what it shows before it trains; and whole searches over real runs, one of them killed."""

from __future__ import annotations

import csv
import json
import math
import os
import shlex
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
from filelock import FileLock
from rich.console import Console

from fedpeft import simulate
from fedpeft.config import RunConfig, read_config
from fedpeft.errors import RunError
from fedpeft.run.command import command_of
from fedpeft.run.finished import FinishedRun
from fedpeft.run.records import Records
from fedpeft.run.summary import OWN_VALIDATION_ROWS
from fedpeft.server.evaluation import OwnRows
from fedpeft.simulation.untested import _quality
from fedpeft.studies.results import read_run
from fedpeft.tune import Command, main
from fedpeft.tuning.alike import check_tokens
from fedpeft.tuning.search_file import read_search
from fedpeft.tuning.sizes import Sizes
from tests.refusals import has_error, refuses
from tests.tune.made import BASE, TEXT

ROOT = Path(__file__).parent.parent.parent

TINY = BASE + 'dtype = "fp32"\nlocal_work = "steps(2)"\n'
RATES = (
    'trials = 4\nstartup = 2\nreduction = 2\npruner = "halving"\n' + TINY + "[search]\n"
    'learning_rate = {low = 1e-4, high = 1e-2, log = true}\nserver_optimizer = ["sgd", "momentum"]\n'
)
HYBRIDS = (
    "trials = 2\nstartup = 2\nbudget = {parameters = 2_500}\n" + TINY + "[hybrid.lora]\nrank = [1, 2, 4]\nalpha = 8\n"
    "[hybrid.bottleneck]\ndim = [2, 4]\n"
)


def written(folder: Path, text: str) -> Path:
    path = folder / "search.toml"
    path.write_text(text, encoding="utf-8")
    return path


def test_a_dry_run_shows_what_is_searched_and_makes_nothing(tmp_path, capsys):
    path = written(tmp_path, TEXT)
    assert main([str(path), "--dry-run"]) == 0
    shown = capsys.readouterr().out
    assert "12 trials by tpe, halving over up to 4 rounds, validation loss" in shown
    assert "learning_rate: 0.0001 to 0.1, logarithmic" in shown
    assert "rank: 2 | 4 | 8" in shown
    assert list(tmp_path.iterdir()) == [path]


def test_one_search_at_a_time_goes_on_in_a_folder_that_can_be_written(tmp_path, capsys):
    arguments = [str(written(tmp_path, TEXT)), "--output", str(tmp_path / "out")]
    (tmp_path / "out").mkdir()
    with FileLock(tmp_path / "out" / "search.lock"):
        assert main(arguments) == 2
    assert has_error(capsys.readouterr().err, "FP5230")
    (tmp_path / "out" / "search.lock").unlink(missing_ok=True)
    (tmp_path / "out" / "search.lock").mkdir()  # as where nothing may be written
    assert main(arguments) == 2
    assert has_error(capsys.readouterr().err, "FP5187")


@pytest.mark.parametrize("name", ["hybrid", "lora"])
def test_the_examples_can_be_searched(name, capsys):
    assert main([str(ROOT / "experiments" / "tune" / f"{name}.toml"), "--dry-run"]) == 0
    assert "16 trials by tpe, hyperband over up to 9 rounds" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("flags", "words"), [(["--workers", "0"], ("FP5229", "--workers")), (["--trials", "-1"], ("FP5229", "--trials"))]
)
def test_numbers_that_can_t_be_are_refused(tmp_path, flags, words, capsys):
    assert main([str(written(tmp_path, TEXT)), *flags]) == 2
    assert has_error(capsys.readouterr().err, *words)


LANGUAGE = 'trials = 2\n[base]\nrounds = 1\ndataset = "tiny_lm"\nclients = 4\ncohort = 2\n{base}\n[search]\n{search}\n'


@pytest.mark.parametrize(
    ("base", "search", "words"),
    [
        ('model = "tiny_lm"', "tokens = [16, 32]", ("FP1442", "a language model")),
        ("tokens = 16", 'model = ["tiny_lm", "tiny"]', ("FP1443", "tiny_lm", "tiny")),
    ],
)
def test_losses_of_other_tokens_are_not_compared(tmp_path, base, search, words, capsys):
    path = written(tmp_path, LANGUAGE.format(base=base, search=search))
    assert main([str(path), "--output", str(tmp_path / "found")]) == 2
    assert has_error(capsys.readouterr().err, *words)


def test_labels_of_words_are_not_searched_among_lengths(tmp_path):
    """Losses are means over the words that are not cut off, which were other ones in each trial."""
    facts_of = lambda config: SimpleNamespace(task="token_labels", default_model="tiny")  # noqa: E731
    lengths = TEXT.replace("tokens = 32\n", "").replace("[search]\n", "[search]\ntokens = [16, 32]\n")
    with refuses("FP1442", "labels of words", "words"):
        check_tokens(read_search(written(tmp_path, lengths)), facts_of)
    models = TEXT.replace('model = "tiny"\n', "").replace("[search]\n", '[search]\nmodel = ["tiny", "tiny_lm"]\n')
    check_tokens(read_search(written(tmp_path, models)), facts_of)  # the words are the same


def test_models_of_one_tokenizer_and_lengths_of_classified_rows_can_be_searched(tmp_path):
    models = 'model = ["tiny_lm", "tiny_lm(seed=1)"]'
    facts_of = Sizes(tmp_path).facts
    check_tokens(read_search(written(tmp_path, LANGUAGE.format(base="tokens = 16", search=models))), facts_of)
    lengths = TEXT.replace("tokens = 32\n", "").replace("[search]\n", "[search]\ntokens = [16, 32]\n")
    search = read_search(written(tmp_path, lengths))
    assert search.lengths() == {16, 32}
    check_tokens(search, facts_of)


def test_trials_that_all_keep_their_start_are_said_not_to_be_told_apart(tmp_path, capsys):
    text = (
        RATES.replace("trials = 4", "trials = 2")
        .replace("rounds = 4", "rounds = 2")
        .replace("low = 1e-4, high = 1e-2", "low = 1e-12, high = 1e-11")
    )
    assert main([str(written(tmp_path, text)), "--output", str(tmp_path / "found")]) == 0
    said = " ".join(capsys.readouterr().out.split())
    assert "note: 2 of 2 finished trials have this very value, as runs have that keep their start" in said


def test_another_s_folder_is_refused(tmp_path, capsys):
    path = written(tmp_path, TEXT)
    assert main([str(path), "--output", str(tmp_path)]) == 2
    assert has_error(capsys.readouterr().err, "FP5234")
    assert main([str(path), "--output", str(tmp_path), "--dry-run"]) == 0
    assert has_error(capsys.readouterr().out, "FP5234", tmp_path)


def test_the_best_settings_are_a_command_that_means_them():
    config = RunConfig(peft="lora(rank=4, layers=(0, 2)) + bitfit", learning_rate=0.01, dataset="tiny", clients=7)
    words = shlex.split(command_of(config))
    assert words[:3] == ["python", "-m", "fedpeft.simulate"]
    assert simulate.parse(words[3:])[0] == config


def test_a_command_s_help_needs_no_optuna():
    assert Command.__doc__
    code = "import sys; sys.modules['optuna'] = None; import fedpeft.tune"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


# ------------------------------------------------------------------------------------------------------ real runs


@pytest.mark.slow
def test_a_run_that_keeps_its_start_says_what_that_has_on_the_validation_rows(tmp_path):
    tiny = {"dataset": "tiny", "model": "tiny", "tokens": 16, "clients": 4, "cohort": 2, "dtype": "fp32", "workers": 1}
    config = RunConfig(
        **tiny, rounds=1, head="zero", local_work="steps(1)", optimizer="sgd(max_norm=0)", safeguard="none",
        learning_rate=30.0,
    )  # fmt: skip
    simulate.simulate(config, tmp_path / "run", False, Console(quiet=True))
    summary = json.loads((tmp_path / "run" / "summary.json").read_text(encoding="utf-8"))
    lines = Records(tmp_path / "run").read("rounds.jsonl")
    assert [line["round"] for line in lines] == [1]
    assert summary["kept_round"] == 0
    assert summary["validation_loss"] == pytest.approx(math.log(4), abs=0.2)  # it knows nothing of four classes
    assert summary["validation_loss"] < lines[0]["loss"]
    assert 0 <= summary["validation_accuracy"] <= 1


def process(path: Path, folder: Path) -> subprocess.Popen:
    words = [sys.executable, "-m", "fedpeft.tune", str(path), "--output", str(folder)]
    return subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, start_new_session=True)


def completed(path: Path, folder: Path) -> str:
    search = process(path, folder)
    said, _ = search.communicate()
    assert search.returncode == 0, said
    return said


@pytest.mark.slow
def test_a_search_that_is_killed_in_a_trial_ends_as_one_that_is_not(tmp_path):
    path = written(tmp_path, RATES)
    said = completed(path, tmp_path / "whole")
    assert any(line.startswith("python -m fedpeft.simulate --clients 6") for line in said.splitlines())
    search = process(path, tmp_path / "killed")
    while not (tmp_path / "killed" / "trials" / "0001" / "rounds.jsonl").exists():
        assert search.poll() is None
        time.sleep(0.05)
    os.killpg(search.pid, signal.SIGKILL)
    search.communicate()
    assert not (tmp_path / "killed" / "report.html").exists()
    completed(path, tmp_path / "killed")
    tables = [(tmp_path / name / "trials.csv").read_text(encoding="utf-8") for name in ("whole", "killed")]
    assert tables[0] == tables[1]
    best = read_config(tmp_path / "whole" / "best.toml")
    rows = list(csv.DictReader(tables[0].splitlines()))
    done = [row for row in rows if row["state"] == "finished"]
    assert float(min(done, key=lambda row: float(row["value"]))["learning_rate"]) == best.learning_rate


@pytest.mark.slow
def test_hybrids_within_a_budget_are_searched(tmp_path):
    path = written(tmp_path, HYBRIDS)
    completed(path, tmp_path / "out")
    rows = list(csv.DictReader((tmp_path / "out" / "trials.csv").read_text(encoding="utf-8").splitlines()))
    trained = [row for row in rows if row["state"] != "never trained"]
    assert len(trained) == 2
    assert all(int(row["parameters"]) <= 2_500 for row in trained)
    assert all(int(row["parameters"]) > 2_500 for row in rows if row["state"] == "never trained" and row["parameters"])
    assert read_config(tmp_path / "out" / "best.toml").peft.count("layers=(")
    runs = sorted((tmp_path / "out" / "trials").glob("*.toml"))
    assert len(runs) == 2
    check_untested(runs[0].with_suffix(""))


def test_a_trial_whose_clients_have_models_of_their_own_tells_nothing_of_test_rows():
    """The global model's accuracy on validation rows was shown as one on test rows."""
    own = OwnRows(clients=3, loss=1.0, accuracy=0.5, worst_accuracy=0.2, pooled_loss=1.0, pooled_accuracy=0.5)
    quality = _quality("accuracy", own, SimpleNamespace(accuracy=0.9, loss=0.3, temperature=1.0), 2)
    assert (quality.accuracy, quality.accuracy_of) == (0.5, OWN_VALIDATION_ROWS)
    assert quality.shared_accuracy is None


def check_untested(run: Path) -> None:
    """A trial is scored on validation rows alone, and on the test rows only where somebody asks for it."""
    summary = json.loads((run / "summary.json").read_text(encoding="utf-8"))
    assert (summary["accuracy_of"], summary["baseline_accuracy"]) == ("global model, validation rows", None)
    assert summary["accuracy"] == pytest.approx(summary["validation_accuracy"], abs=0.03)
    assert not (run / "predictions.npz").exists()
    assert FinishedRun.read(run).files.is_dir()
    with pytest.raises(RunError, match=rf"has seen no test rows; .*simulate --resume {run}"):
        read_run(run)
    assert simulate.main(["--resume", str(run)]) == 0
    assert read_run(run).summary["accuracy_of"] == "global model, test rows"

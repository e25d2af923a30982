"""The command: what it shows before it trains; and whole searches over real runs, one of them killed."""

from __future__ import annotations

import shlex
from pathlib import Path
from types import SimpleNamespace

import pytest
from filelock import FileLock

from fedpeft import simulate
from fedpeft.reporting.command import format_command
from fedpeft.reporting.summary import OWN_VALIDATION_ROWS
from fedpeft.rounds.evaluation import OwnRows
from fedpeft.simulation.trial_score import _build_quality
from fedpeft.tune.__main__ import main
from fedpeft.tune.alike import check_tokens
from fedpeft.tune.search_file import read_search
from fedpeft.tune.sizes import Sizes
from fedpeft.wiring.config import RunConfig
from tests.refusals import has_error, refuses
from tests.tune.made import TEXT

ROOT = Path(__file__).parent.parent.parent.parent


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
    with refuses("FP1442", "token labels", "words"):
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


def test_another_s_folder_is_refused(tmp_path, capsys):
    path = written(tmp_path, TEXT)
    assert main([str(path), "--output", str(tmp_path)]) == 2
    assert has_error(capsys.readouterr().err, "FP5234")
    assert main([str(path), "--output", str(tmp_path), "--dry-run"]) == 0
    assert has_error(capsys.readouterr().out, "FP5234", tmp_path)


def test_the_best_settings_are_a_command_that_means_them():
    config = RunConfig(peft="lora(rank=4, layers=(0, 2)) + bitfit", learning_rate=0.01, dataset="tiny", clients=7)
    words = shlex.split(format_command(config))
    assert words[:2] == ["fedpeft", "simulate"]
    assert simulate.parse(words[2:])[0] == config


def test_a_trial_whose_clients_have_models_of_their_own_tells_nothing_of_test_rows():
    """The global model's accuracy on validation rows was shown as one on test rows."""
    own = OwnRows(clients=3, loss=1.0, accuracy=0.5, worst_accuracy=0.2, pooled_loss=1.0, pooled_accuracy=0.5)
    quality = _build_quality("accuracy", own, SimpleNamespace(accuracy=0.9, loss=0.3, temperature=1.0), 2)
    assert (quality.accuracy, quality.accuracy_of) == (0.5, OWN_VALIDATION_ROWS)
    assert quality.shared_accuracy is None

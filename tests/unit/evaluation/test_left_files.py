"""What an evaluation leaves in the run's folder: clients, whole or not at all; answers beside their numbers."""

from __future__ import annotations

import json
import shutil
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import load_file, save_file

from fedpeft.evaluate import contestants
from fedpeft.evaluate.contestants import Contestants
from fedpeft.evaluate.evaluation import Evaluation, EvaluationRequest, EvaluationResult, QuestionAnswers
from fedpeft.machine import files
from fedpeft.peft import saved_adapter
from tests.refusals import refuses


class Killed(BaseException):
    """As if the evaluation had been killed."""


@pytest.fixture
def kept(tmp_path, observer, monkeypatch):
    """Clients of a run that takes no time; `saves` files, and is killed before the second where it is told to be."""
    run = SimpleNamespace(folder=tmp_path / "run", config=SimpleNamespace(privacy=""), labels=None)
    found = Contestants(run, observer)
    found.__dict__["simulation"] = SimpleNamespace(setup=None, load_client_state=lambda client: client)
    state = SimpleNamespace(found=found, kill=False, trained=0, written="1")

    def save(_setup, _state, folder):
        (folder / "adapter").mkdir()
        save_file({"a": torch.ones(2, int(state.written))}, folder / "adapter" / "adapter.safetensors")
        if state.kill:
            raise Killed
        (folder / "adapter" / "method.json").write_text(state.written)

    def trained(_simulation, client):
        state.trained += 1
        return client

    monkeypatch.setattr(contestants, "save", save)
    monkeypatch.setattr(contestants, "train_one_alone", trained)
    return state


def written(folder):
    """Return the number that the weights were written with."""
    return load_file(folder / "adapter" / "adapter.safetensors")["a"].shape[1]


def test_a_client_alone_whose_saving_was_killed_is_trained_anew(kept):
    kept.kill = True
    with pytest.raises(Killed):
        kept.found._train_alone(3)
    kept.kill, kept.written = False, "2"
    folder = kept.found._train_alone(3)
    assert folder == kept.found._get_folder("alone-3")
    assert (folder / "adapter" / "method.json").read_text() == "2"
    assert written(folder) == 2
    assert [path.name for path in folder.parent.iterdir()] == ["alone-3"]
    assert kept.found._train_alone(3) == folder
    assert kept.trained == 2


def test_a_clients_own_adapter_is_replaced_when_the_new_one_is_whole(kept):
    folder = kept.found._save_own(1)
    kept.kill, kept.written = True, "2"
    with pytest.raises(Killed):
        kept.found._save_own(1)
    assert written(folder) == 1
    kept.kill = False
    assert written(kept.found._save_own(1)) == 2


def spoilt(adapter, spoil):
    if spoil == "cut":
        weights = adapter / "adapter.safetensors"
        weights.write_bytes(weights.read_bytes()[:-3])
    elif spoil == "no weights":
        (adapter / "adapter.safetensors").unlink()
    elif spoil == "half a line":
        (adapter / "method.json").write_text('{"method": "lo')
    elif spoil == "empty":
        shutil.rmtree(adapter)


@pytest.mark.parametrize("spoil", ["cut", "no weights", "half a line", "empty"])
def test_a_client_alone_that_an_earlier_version_has_half_written_is_trained_anew(kept, spoil):
    """Where a kill came between the files of an adapter that was written in its place."""
    spoilt(kept.found._train_alone(3) / "adapter", spoil)
    assert written(kept.found._train_alone(3)) == 1
    assert kept.trained == 2


def test_a_classifier_is_whole_with_its_head_and_the_names_of_its_classes(kept):
    kept.found.run.labels = ["yes", "no"]
    adapter = kept.found._train_alone(3) / "adapter"
    assert not saved_adapter.is_complete(adapter.parent, labels=True)
    save_file({"head.weight": torch.ones(2, 2)}, adapter / "head.safetensors")
    (adapter / "labels.json").write_text('["yes", "no"]')
    assert saved_adapter.is_complete(adapter.parent, labels=True)
    assert kept.found._train_alone(3) == adapter.parent
    assert kept.trained == 1


def test_the_mean_over_clients_is_of_what_each_of_them_has():
    """A client that says one number of all rows has no correlation."""
    rows = {"client 0 alone": {"rmse": 1.0, "pearson": 0.5}, "client 1 alone": {"rmse": 2.0}}
    for table in (rows, dict(reversed(rows.items()))):
        assert Evaluation._add_means(None, table)["clients alone, mean"] == {"rmse": 1.5}


def test_what_single_clients_have_only_the_owner_of_the_run_can_read(kept):
    """As the states of clients in the run's folder, which they are made of."""
    for folder in (kept.found._save_own(1), kept.found._train_alone(3)):
        assert folder.stat().st_mode & 0o777 == 0o700


def test_numbers_are_there_only_beside_the_answers_that_they_are_of(tmp_path, monkeypatch):
    found = EvaluationResult({"global": {"f1": 1.0}}, [QuestionAnswers("2 + 2", ["4"])], [])
    found.write(tmp_path)
    replace = files.replace

    def killed(path, content):
        replace(path, content)
        raise Killed

    monkeypatch.setattr(files, "replace", killed)
    with pytest.raises(Killed):
        found.write(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["answers.jsonl"]


def test_answers_are_those_of_the_evaluation_that_they_lie_beside(tmp_path):
    EvaluationResult({"global": {"f1": 1.0}}, [QuestionAnswers("2 + 2", ["4"])], []).write(tmp_path)
    assert (tmp_path / "answers.jsonl").exists()
    EvaluationResult({"global": {"loss": 1.0}}, [], []).write(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["evaluation.json"]


def test_an_evaluation_says_what_it_was_asked(tmp_path):
    wanted = EvaluationRequest(questions="mmlu.jsonl", rows=7, track="nlp")
    EvaluationResult({}, [], [], wanted.list_settings(language=True)).write(tmp_path)
    asked = json.loads((tmp_path / "evaluation.json").read_text())["asked"]
    assert asked == {
        "questions": "mmlu.jsonl", "metrics": "exact_match, f1", "new_tokens": 40, "rows": 7, "own": "", "alone": "",
        "flowertune": "nlp", "lm_eval": "", "run_code": False,
    }  # fmt: skip
    assert EvaluationRequest(rows=7).list_settings(language=False) == {"rows": 7, "own": "", "alone": ""}


@pytest.mark.parametrize(
    ("given", "flags"),
    [
        ({"metrics": "foo", "new_tokens": 3}, "--metrics and --new-tokens"),
        ({"questions": "q.jsonl"}, "--questions"),
        ({"lm_eval": "arc_easy"}, "--lm-eval"),
    ],
)
def test_a_classifier_is_asked_nothing_that_only_language_models_read(observer, given, flags):
    nothing = SimpleNamespace(targets="classes", translates=False)
    run = SimpleNamespace(
        folder="run", labels=["a", "b"], task=nothing, check_answers=lambda: None, check_reads_texts=lambda _: None,
        check_unchanged=lambda **_: [],
    )  # fmt: skip
    with refuses("FP1164", "is a classifier", flags):
        Evaluation(run, EvaluationRequest(**given), observer)

"""What a run's own files held: recorded, compared wherever they lie, and refused where they have changed."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from fedpeft.parts import plugins, setting
from fedpeft.reporting import user_files
from fedpeft.reporting.records import Records
from fedpeft.reporting.run_folder import resolve_paths
from fedpeft.reporting.user_files import RECORD, MadeOf, find_changed_file, load_record
from fedpeft.rounds.user_hook import UserHook
from fedpeft.wiring.config import RunConfig
from fedpeft.wiring.profiles import PROFILES
from tests.refusals import refuses
from tests.run.swapped import rows, swap


def made_of(dataset: str, model: str, **more: Any) -> MadeOf:
    return user_files.find_own_files(RunConfig(dataset=dataset, model=model, **more))


def test_files_are_told_apart_by_content_wherever_they_lie(tmp_path: Path) -> None:
    for name in ("here", "there"):
        (tmp_path / name).mkdir()
        rows(tmp_path / name / "rows.csv")
    dataset = "sample(of=\"file(path='{}', template='alpaca')\", rows=9)"
    here, there = (made_of(dataset.format(tmp_path / name / "rows.csv"), "tiny") for name in ("here", "there"))
    assert [bool(own.sha256) for own in here] == [False, True, False]
    assert find_changed_file(here, there) is None
    assert find_changed_file(here, made_of(dataset.format(tmp_path / "nowhere.csv"), "tiny")) is None
    swap(tmp_path / "there" / "rows.csv")
    now = made_of(dataset.format(tmp_path / "there" / "rows.csv"), "tiny")
    assert find_changed_file(here, now) == str(tmp_path / "there" / "rows.csv")
    assert find_changed_file((), now) is None


def test_a_folder_is_told_apart_by_the_files_in_it_that_count(tmp_path: Path) -> None:
    folder = tmp_path / "rows"
    (folder / "train").mkdir(parents=True)
    rows(folder / "train" / "one.csv")
    before = made_of(f"file:{folder}", "auto")
    for name in (".DS_Store", "train/cache-0123.arrow"):
        (folder / name).write_text("x")
    assert made_of(f"file:{folder}", "auto") == before
    (folder / "train" / "one.csv").rename(folder / "train" / "two.csv")
    assert find_changed_file(before, made_of(f"file:{folder}", "auto")) == str(folder)


def test_a_model_s_folder_is_one_of_them(tmp_path: Path) -> None:
    (tmp_path / "model.safetensors").write_bytes(b"one")
    before = made_of("tiny", str(tmp_path))
    (tmp_path / "README.md").write_text("read")
    assert made_of("tiny", str(tmp_path)) == before
    (tmp_path / "model.safetensors").write_bytes(b"two")
    assert find_changed_file(before, made_of("tiny", str(tmp_path))) == str(tmp_path)


def test_the_file_of_clients_and_those_of_measurements_are_some_of_them(tmp_path: Path) -> None:
    clients, questions, other = (tmp_path / name for name in ("clients.toml", "questions.jsonl", "other.csv"))
    measure = f"evaluate(questions={str(questions)!r}) + forgetting(dataset={f'file:{other}'!r})"
    for file in (clients, questions, other):
        file.write_text("before")
    before = made_of("tiny", "auto", clients=str(clients), measure=measure)
    for file in (clients, questions, other):
        file.write_text("after")
        assert find_changed_file(before, made_of("tiny", "auto", clients=str(clients), measure=measure)) == str(file)
        file.write_text("before")
    config = RunConfig(dataset="tiny", model="auto", clients=str(clients), measure=measure)
    (tmp_path / PROFILES).write_text("before")  # a run goes on by its own copy
    clients.write_text("after")
    assert user_files.find_own_files(config, folder=tmp_path) == before
    assert find_changed_file(before, made_of("tiny", "auto")) is None


@dataclass(frozen=True)
class Reading(UserHook):
    """A hook that names a file."""

    file: str = setting("", "a file", path=True)


def test_a_hook_s_file_is_one_of_them_and_is_kept_by_its_whole_path(tmp_path: Path, monkeypatch) -> None:
    file = tmp_path / "limits.txt"
    file.write_text("before")
    monkeypatch.chdir(tmp_path)
    with plugins.use_parts({"hooks": {"reading": Reading}}):
        config = resolve_paths(RunConfig(dataset="tiny", model="tiny", hook="reading(file='limits.txt')"))
        assert config.hook == f"reading(file={str(file)!r})"
        before = user_files.find_own_files(config, "")
        file.write_text("after")
        assert find_changed_file(before, user_files.find_own_files(config, "")) == str(file)


def test_what_is_built_in_leaves_no_record(tmp_path: Path) -> None:
    user_files.record(Records(tmp_path), made_of("tiny", "auto"))
    assert load_record(tmp_path) == ()
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("text", ["{", "[]", '{"files": [{"file": 1, "sha256": ""}]}', '{"files": [{"name": ""}]}'])
def test_a_damaged_record_is_one_sentence(tmp_path: Path, text: str) -> None:
    (tmp_path / RECORD).write_text(text)
    with refuses("FP5188", "made_of.json"):
        load_record(tmp_path)

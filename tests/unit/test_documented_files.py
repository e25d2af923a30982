"""Files that docs/ show or tell of: TOML files can be read as they stand, and arrays have the names that are told."""

import re
from dataclasses import fields
from pathlib import Path

import pytest

from fedpeft.models.scoring import Scores
from fedpeft.study import study_file
from fedpeft.study.runner import Workplace
from fedpeft.study.study_file import read_study
from fedpeft.tune.search_file import read_search
from fedpeft.wiring.config import read_config
from fedpeft.wiring.profiles import read_tables

ROOT = Path(__file__).parents[2]
RUN, PROFILES, STUDY, SEARCH, HYBRID = re.findall(
    r"```toml\n(.*?)```", (ROOT / "docs" / "toml.md").read_text(encoding="utf-8"), re.DOTALL
)


def written(folder: Path, text: str) -> Path:
    path = folder / "shown.toml"
    path.write_text(text, encoding="utf-8")
    return path


def test_a_shown_run_is_read_without_its_plugin(tmp_path: Path) -> None:
    assert read_config(written(tmp_path, re.sub("plugin = .*", "", RUN))).strategy == "flexlora"


def test_a_shown_study_describes_a_grid(tmp_path: Path) -> None:
    said = study_file.__doc__ or ""
    for text in (STUDY, said[said.index("name = ") :]):
        for preset, runs in (("small", 8), ("", 20)):
            assert len(read_study(written(tmp_path, text), preset).plan_runs()) == runs


def test_the_first_study_of_its_page_can_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    [text] = re.findall(r"```toml\n(.*?)```", (ROOT / "docs" / "studies.md").read_text(encoding="utf-8"), re.DOTALL)
    made = read_study(written(tmp_path, text))
    made.check()
    monkeypatch.chdir(ROOT)
    place = Workplace(made, tmp_path)
    place.refuse_missing_files(place.planned)
    assert [run.title for run in place.planned[:2]] == ["fedit, seed 0", "median, seed 0"]


def test_a_shown_search_has_a_space(tmp_path: Path) -> None:
    assert set(read_search(written(tmp_path, SEARCH)).space) == {"learning_rate", "strategy", "rank", "alpha"}
    base = SEARCH[: SEARCH.index("peft = ")]
    assert read_search(written(tmp_path, base + HYBRID)).hybrid is not None


def test_shown_groups_of_clients_are_read(tmp_path: Path) -> None:
    assert [group.count for group in read_tables(written(tmp_path, PROFILES))] == [50, 50]


def test_the_arrays_of_predictions_are_told_by_name() -> None:
    told = (ROOT / "docs" / "files.md").read_text(encoding="utf-8")
    [line] = [line for line in told.splitlines() if line.startswith("| `predictions.npz` |")]
    assert set(re.findall("`([a-z]+)`", line)) == {field.name for field in fields(Scores)}

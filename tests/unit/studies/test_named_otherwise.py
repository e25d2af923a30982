"""A study's file may be called as its user likes: a report of its folder says what the study's own page says."""

from dataclasses import asdict, replace
from pathlib import Path

import pytest

from fedpeft.commands.report import Command, create_sections
from fedpeft.study.result_folders import ResultFolders
from fedpeft.study.results import ResultsFile
from fedpeft.study.study_file import read_study
from tests.studies.made import made_result
from tests.unit.studies.test_study import AXES, BASE

FILE = f'name = "rules"\nmargin = 2.5\nbaseline = {{server_optimizer = "momentum"}}\nseeds = [0]\n{BASE}{AXES}'


@pytest.mark.parametrize("other", ["another.toml", "study.toml"])
def test_of_two_files_of_one_name_that_counts_which_describes_the_results(tmp_path: Path, other: str) -> None:
    (tmp_path / other).write_text(FILE.replace("2.5", "9").replace("rounds = 4", "rounds = 2"))
    path = tmp_path / "mine.toml"
    path.write_text(FILE)
    (tmp_path / "out").mkdir()
    for planned in read_study(path).plan_runs():
        made = made_result(dict(planned.point), 0, 0.6, 1.0)
        ResultsFile(tmp_path / "out" / "results.jsonl").append(
            replace(made, config=asdict(planned.config), study="rules")
        )
    found = ResultFolders()
    found.look(tmp_path / "out")
    [section] = create_sections(found, Command((tmp_path,)))
    assert (section.margin, found.skipped) == (2.5, [])
    assert len(section.results) == len(read_study(path).plan_runs())


@pytest.mark.parametrize("name", ["mine.toml", "study.toml"])
def test_margin_and_baseline_are_those_of_the_file(tmp_path: Path, name: str) -> None:
    (tmp_path / "another.toml").write_text(FILE.replace('"rules"', '"another"').replace("2.5", "7"))
    (tmp_path / "no_study.toml").write_text('name = "rules"\n')
    path = tmp_path / name
    path.write_text(FILE)
    for planned in read_study(path).plan_runs():
        made = made_result(dict(planned.point), 0, 0.6, 1.0)
        ResultsFile(tmp_path / "results.jsonl").append(replace(made, config=asdict(planned.config), study="rules"))
    found = ResultFolders()
    found.look(tmp_path)
    [section] = create_sections(found, Command((tmp_path,)))
    assert (section.margin, section.baseline) == (2.5, {"server_optimizer": "momentum"})

"""`fedpeft.run_study`: one row a run, as the study's page has them."""

from dataclasses import asdict, replace
from pathlib import Path

import pytest

import fedpeft
from fedpeft.study import runner
from fedpeft.study.results import FAILED, Result, ResultsFile
from fedpeft.study.study_file import read_study
from tests.studies.made import made_result
from tests.unit.studies.test_study import BASE, study_file

AXES = '[axes]\nwork = [{label = "short", local_work = "steps(1)"}, {label = "long", local_work = "steps(2)"}]\n'


@pytest.fixture(autouse=True)
def no_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    """Fail if a run is started, since all runs are finished and starting others takes seconds."""
    monkeypatch.setattr(runner, "Starter", lambda _: pytest.fail("no run is left, and a process is begun for them"))


def test_a_run_that_failed_first_is_one_row_under_the_label_of_today(tmp_path: Path) -> None:
    path = study_file(tmp_path, "seeds = [0]\n" + BASE + AXES)
    file = ResultsFile(tmp_path / "results.jsonl")
    for number, planned in enumerate(read_study(path).plan_runs()):
        config = asdict(planned.config)
        if number == 0:
            file.append(Result(config=config, status=FAILED, seed=0, point=dict(planned.point), reason="no luck"))
        made = made_result(dict(planned.point), 0, 0.6 + 0.1 * number, 1.0)
        file.append(replace(made, config=config, study=path.parent.name))
    study_file(tmp_path, path.read_text().replace('"short"', '"brief"'))
    frame = fedpeft.run_study(path, progress=False)
    assert list(frame["work"]) == ["brief", "long"]
    assert list(frame["status"]) == ["finished", "finished"]
    assert list(frame["reason"]) == [None, None]


def test_an_axis_is_not_hidden_by_what_a_summary_calls_alike(tmp_path: Path) -> None:
    path = study_file(tmp_path, "seeds = [0]\n" + BASE + '[axes]\nprivacy = ["", "secure_sum"]\n')
    file = ResultsFile(tmp_path / "results.jsonl")
    for planned in read_study(path).plan_runs():
        made = made_result(dict(planned.point), 0, 0.6, 1.0)
        summary = {**(made.summary or {}), "privacy": {"kind": "of a run"}}
        file.append(replace(made, config=asdict(planned.config), summary=summary))
    assert list(fedpeft.run_study(path, progress=False)["privacy"]) == ["", "secure_sum"]


def test_numbers_that_a_summary_has_stay_numbers(tmp_path: Path) -> None:
    path = study_file(tmp_path, "seeds = [0]\n" + BASE.replace("rounds = 4\n", "") + "[axes]\nrounds = [2, 4]\n")
    file = ResultsFile(tmp_path / "results.jsonl")
    for planned in read_study(path).plan_runs():
        made = made_result(dict(planned.point), 0, 0.6, 1.0)
        summary = {**(made.summary or {}), "rounds": planned.config.rounds}
        file.append(replace(made, config=asdict(planned.config), summary=summary))
    frame = fedpeft.run_study(path, progress=False)
    assert list(frame["rounds"]) == [2, 4]

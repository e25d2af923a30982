"""A study of a file of one's own: results of what it held before are neither kept beside others nor gone on from."""

from __future__ import annotations

import stat
from dataclasses import asdict, replace
from pathlib import Path

import pytest

from fedpeft.data.abilities import NamesFiles
from fedpeft.parts.families import DATASETS
from fedpeft.reporting import user_files
from fedpeft.reporting.records import Records
from fedpeft.reporting.user_files import RECORD, find_own_files, load_record
from fedpeft.study.__main__ import main
from fedpeft.study.results import FAILED, FINISHED, Result, ResultsFile, read_run
from fedpeft.study.runner import RunProcess, Workplace
from fedpeft.study.study_file import PlannedRun, Study, read_study
from tests.refusals import has_error, refuses
from tests.run.swapped import rows, swap


def study(folder: Path, seeds: str = "[0]", more: str = "") -> Study:
    path = folder / "study.toml"
    path.write_text(f'seeds = {seeds}\n[base]\ndataset = "file:{folder / "rows.csv"}"\npartition = "iid"\n{more}')
    return read_study(path)


def finished(place: Workplace, planned: PlannedRun) -> Path:
    """Write the folder of a run as `simulate` leaves it at the end."""
    config, folder = planned.config, place.runs / planned.name
    folder.mkdir(parents=True)
    (folder / "config.toml").write_text(config.to_toml())
    (folder / "summary.json").write_text('{"metric": "accuracy", "accuracy": 0.5, "seed": 0, "seconds": 1.0}')
    for name in ("rounds.jsonl", "clients.jsonl"):
        (folder / name).write_text("")
    user_files.record(Records(folder, private=bool(config.privacy)), find_own_files(config))
    return folder


def done(made: Study, folder: Path) -> Path:
    """Write a finished first run with its line in results.jsonl, and return its folder."""
    place = Workplace(made, folder)
    ran = finished(place, place.planned[0])
    assert place.finish(RunProcess(place.planned[0], ran, ran.with_suffix(".log")), 0).is_finished
    return ran


def test_results_of_a_file_that_has_changed_are_refused_and_kept(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows(tmp_path / "rows.csv")
    run = done(study(tmp_path), tmp_path)
    results = tmp_path / "results.jsonl"
    [kept] = ResultsFile(results).read()
    assert kept.made_of == load_record(run)
    before = results.read_bytes()
    assert main([str(tmp_path / "study.toml"), "--dry-run"]) == 0
    said = capsys.readouterr().out
    assert "nothing to do" in said
    assert "not recorded" not in said
    swap(tmp_path / "rows.csv")
    for seeds in ("[0]", "[0, 1]"):
        study(tmp_path, seeds)
        assert main([str(tmp_path / "study.toml"), "--dry-run"]) == 2
        error = " ".join(capsys.readouterr().err.split())
        assert has_error(error, "FP5222", "(seed 0)", tmp_path / "rows.csv", "--output")
    assert results.read_bytes() == before
    assert main([str(tmp_path / "study.toml"), "--dry-run", "--output", str(tmp_path / "other")]) == 0
    rows(tmp_path / "rows.csv")
    assert Workplace(study(tmp_path, "[0, 1]"), tmp_path).done


def test_a_file_that_does_not_exist_is_refused_before_a_run_begins(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    study(tmp_path)
    for flags in (["--dry-run"], []):
        assert main([str(tmp_path / "study.toml"), *flags]) == 2
        error = " ".join(capsys.readouterr().err.split())
        assert has_error(error, "FP1988", tmp_path / "study.toml", tmp_path / "rows.csv", Path.cwd())
    assert [path.name for path in tmp_path.iterdir()] == ["study.toml"]
    rows(tmp_path / "rows.csv")
    assert main([str(tmp_path / "study.toml"), "--dry-run"]) == 0


def test_a_sample_names_the_files_of_its_dataset() -> None:
    source = DATASETS.build("sample(of=file(path='rows.csv', test='more.csv'))")
    assert isinstance(source, NamesFiles)
    assert source.list_files() == ("rows.csv", "more.csv")
    assert DATASETS.build("sample(of=tiny)").list_files() == ()
    assert not isinstance(DATASETS.build("tiny"), NamesFiles)


def test_results_of_clients_of_a_file_that_has_changed_are_refused(tmp_path: Path) -> None:
    rows(tmp_path / "rows.csv")
    clients = tmp_path / "clients.toml"
    clients.write_text("[[profile]]\ncount = 4\nrank = 2\n")
    made = study(tmp_path, more=f'clients = "{clients}"\n')
    done(made, tmp_path)
    assert Workplace(made, tmp_path).done
    clients.write_text("[[profile]]\ncount = 4\nrank = 8\n")
    with refuses("FP5222", "clients.toml"):
        Workplace(made, tmp_path)


def test_a_run_whose_line_is_missing_is_not_taken_for_one_of_other_rows(tmp_path: Path) -> None:
    """It was finished, or begun, when its study was killed; or its results were moved away without it."""
    rows(tmp_path / "rows.csv")
    run = done(study(tmp_path), tmp_path)
    (tmp_path / "results.jsonl").unlink()
    assert Workplace(study(tmp_path), tmp_path).adopt(study(tmp_path).plan_runs()[0])
    (tmp_path / "results.jsonl").unlink()
    swap(tmp_path / "rows.csv")
    with refuses("FP5223", run.name, "rows.csv"):
        Workplace(study(tmp_path), tmp_path)


def test_results_of_before_are_kept_and_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows(tmp_path / "rows.csv")
    made = study(tmp_path)
    config = made.plan_runs()[0].config
    ResultsFile(tmp_path / "results.jsonl").append(
        Result(asdict(config), FINISHED, 0, summary={"accuracy": 0.5, "metric": "accuracy"})
    )
    assert main([str(tmp_path / "study.toml"), "--dry-run"]) == 0
    assert "of finished runs are not recorded (1 of 1)" in " ".join(capsys.readouterr().out.split())


def test_results_that_tell_of_rows_alone_are_said_not_to_tell_of_the_clients(tmp_path: Path) -> None:
    """As those that were made before files of clients were told."""
    rows(tmp_path / "rows.csv")
    clients = tmp_path / "clients.toml"
    clients.write_text("[[profile]]\ncount = 4\nrank = 2\n")
    made = study(tmp_path, more=f'clients = "{clients}"\n')
    run = done(made, tmp_path)
    assert Workplace(made, tmp_path).unsaid == []
    results = tmp_path / "results.jsonl"
    [told] = ResultsFile(results).read()
    results.unlink()
    ResultsFile(results).append(replace(told, made_of=told.made_of[:2]))
    user_files.record(Records(run), told.made_of[:2])
    place = Workplace(made, tmp_path)
    assert place.unsaid == [run.name]
    assert place.done


def test_a_file_that_changes_while_the_study_goes_on_fails_the_runs_that_are_of_it(tmp_path: Path) -> None:
    rows(tmp_path / "rows.csv")
    place = Workplace(study(tmp_path, "[0, 1]"), tmp_path)
    for planned, status in zip(place.planned, (FINISHED, FAILED), strict=True):
        folder = finished(place, planned)
        result = place.finish(RunProcess(planned, folder, folder.with_suffix(".log")), 0)
        assert result.status == status
        swap(tmp_path / "rows.csv")
    assert has_error(str(result.reason), "FP5225", "rows.csv")


def test_results_of_a_private_run_do_not_tell_its_rows_apart(tmp_path: Path) -> None:
    """Who knows all rows but one could try out which that one is; the run's folder, which others can't read, knows."""
    rows(tmp_path / "rows.csv")
    made = study(tmp_path, more='privacy = "user_dp(noise_multiplier=1.0)"\n')
    run = done(made, tmp_path)
    assert read_run(run).made_of == ()
    assert "sha256" not in (tmp_path / "results.jsonl").read_text()
    assert stat.S_IMODE((run / RECORD).stat().st_mode) == 0o600
    swap(tmp_path / "rows.csv")
    with refuses("FP5223"):
        Workplace(made, tmp_path)

"""Studies: the grid that a file describes, its mistakes, and runs that are already there."""

import json
import tomllib
from dataclasses import asdict, replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from rich.console import Console

from fedpeft import simulate
from fedpeft.study.__main__ import load, main
from fedpeft.study.process import Program, Start
from fedpeft.study.result_folders import ResultFolders, match_to_study
from fedpeft.study.results import (
    FAILED,
    FINISHED,
    Result,
    ResultsFile,
    read_run,
    resolve_config,
    select_latest,
    unpack,
)
from fedpeft.study.runner import RunProcess, Schedule, Workplace, count_fitting_jobs
from fedpeft.study.study_file import Study, read_study
from fedpeft.wiring.run_spec import parse_run
from tests.refusals import has_error, refuses
from tests.runs.deployment.test_full_disk import full_disk

BASE = '[base]\ndataset = "tiny"\ntokens = 32\nclients = 6\ncohort = 3\nrounds = 4\ndtype = "fp32"\n'
SEEDS = "seeds = [0, 1]\n"
AXES = '[axes]\nserver_optimizer = ["sgd", "momentum"]\n'


def study_file(folder: Path, text: str) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "study.toml"
    path.write_text(text, encoding="utf-8")
    return path


def study(folder: Path, text: str, preset: str | None = None) -> Study:
    return read_study(study_file(folder, text), preset)


# ------------------------------------------------------------------------------------------------------------- the grid


def test_grid_is_the_product_of_axes_and_seeds(tmp_path: Path) -> None:
    short, long = ('local_work = "epochs(1.0)", rounds = 4', 'local_work = "epochs(4.0)", rounds = 1')
    work = f'[{{label = "short", {short}}}, {{label = "long", {long}}}]'
    made = study(tmp_path, SEEDS + BASE.replace("rounds = 4\n", "") + AXES + f"work = {work}\n")
    runs = made.plan_runs()
    assert len(runs) == 8
    assert len({run.name for run in runs}) == 8
    assert [run.config.seed for run in runs] == [0] * 4 + [1] * 4
    assert runs[1].point == {"server_optimizer": "sgd", "work": "long"}
    assert (runs[1].config.local_work, runs[1].config.rounds, runs[1].config.workers) == ("epochs(4.0)", 1, 1)
    assert made.baseline == {"server_optimizer": "sgd", "work": "short"}


def test_a_preset_replaces_what_it_names(tmp_path: Path) -> None:
    presets = '[presets.small]\nseeds = [7]\nbase = {rounds = 2}\n[presets.full]\naxes = {codec = ["fp32", "bf16"]}\n'
    text = f'preset = "small"\n{SEEDS}{BASE}{AXES}{presets}'
    small, full = study(tmp_path, text), study(tmp_path, text, "full")
    assert [(len(s.plan_runs()), s.plan_runs()[0].config.rounds) for s in (small, full)] == [(2, 2), (8, 4)]
    assert small.folder == tmp_path
    assert full.folder == tmp_path / "full"


def test_what_may_stand_in_front_of_a_codec_may_in_a_study(tmp_path: Path) -> None:
    text = SEEDS + BASE + '[axes]\ncodec = ["ef14(keep=0.5) | by_rows | small", "over_time | tiny"]\n'
    assert len(study(tmp_path, text).plan_runs()) == 4


def test_the_head_starts_as_the_labels_of_the_rows_allow(tmp_path: Path) -> None:
    """As `simulate` has it: under privacy no head of numbers starts from the rows, and one of classes does."""
    numbers, classes = tmp_path / "numbers.csv", tmp_path / "classes.csv"
    numbers.write_text("text,label\n" + "".join(f"word {i},{i + 0.5}\n" for i in range(40)))
    classes.write_text("text,label\n" + "".join(f"word {i},{'ab'[i % 2]}\n" for i in range(40)))
    sets = [f"file(path='{numbers}')", f"file(path='{classes}')", f"sample(of='file:{numbers}', rows=90, test_rows=90)"]
    base = BASE.replace('dataset = "tiny"\n', "")
    base += 'peft = "lora"\n'  # else it is not known yet, nor which head suits it
    text = f'seeds = [0]\n{base}[axes]\ndataset = {json.dumps(sets)}\nprivacy = ["", "user_dp(epsilon=8)"]\n'
    heads = [run.config.head for run in study(tmp_path, text).plan_runs()]
    assert heads == ["ridge", "zero", "ridge", "private_centroids", "ridge", "zero"]


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (
            SEEDS + BASE + '[axes]\nserver_optimiser = ["sgd"]\n',
            ("FP1430", "'server_optimiser'", "did you mean 'server_optimizer'"),
        ),
        (SEEDS + BASE + "[axes]\nserver_optimizer = []\n", ("FP1428", "'server_optimizer'")),
        (BASE + AXES, ("FP1433", "seeds = [0")),
        ("seeds = [1, 1]\n" + BASE, ("FP1434", "[1, 1]")),
        (SEEDS + BASE + AXES + "rounds = [1, 2]\n", ("FP1437", "rounds", "[base]", "axis 'rounds'")),
        (
            SEEDS + BASE + AXES + 'x = [{label = "a", server_optimizer = "adam"}]\n',
            ("FP1437", "server_optimizer", "axis 'server_optimizer'", "axis 'x'"),
        ),
        (SEEDS + BASE + "seed = 3\n", ("FP1436", "[base]")),
        (SEEDS + BASE + 'round = 3\n[axes]\ncodec = ["fp32"]\n', ("FP1435", "'round'", "did you mean 'rounds'")),
        (SEEDS + BASE + '[axes]\ncodec = ["fp32", "fp32"]\n', ("FP1429", "'codec'", "'fp32'")),
        (SEEDS + BASE + "[axes]\nwork = [{rounds = 2}]\n", ("FP1431", "'work'")),
        (SEEDS + BASE + '[axes]\nwork = [{label = "a", epochs = 2.0}]\n', ("FP1432", "'a'", "'work'", "'epochs'")),
        (SEEDS + BASE + '[axes]\nwork = [{label = "a"}, {label = "b"}]\n', ("FP1422", "a, seed 0", "b")),
        (SEEDS + BASE + '[axes]\nserver_optimizer = ["sdg"]\n', ("FP1074", "server_optimizer=sdg", "FP1231", "'sdg'")),
        (SEEDS + BASE + '[axes]\ncodec = ["by_rows | smal"]\n', ("FP1074", "codec=by_rows | smal", "FP1050", "'smal'")),
        (SEEDS + BASE + '[axes]\ndownlink = ["gird"]\n', ("FP1074", "downlink=gird", "FP1050", "'gird'")),
        (SEEDS + BASE + "[axes]\nbatch_size = [-1]\n", ("FP1227", "batch_size", 1, -1)),
        (SEEDS + 'baseline = {codec = "fp32"}\n' + BASE + AXES, ("FP1438", "'codec'", "server_optimizer")),
        (
            SEEDS + 'baseline = {server_optimizer = "adam"}\n' + BASE + AXES,
            ("FP1439", "'server_optimizer'", "'adam'", "momentum, sgd"),
        ),
        ("sedes = [1]\n" + BASE, ("FP1424", "'sedes'", "did you mean 'seeds'")),
        ('preset = "smal"\n' + SEEDS + BASE + "[presets.small]\n", ("FP1423", "'smal'", "did you mean 'small'")),
        ('preset = "a"\n' + SEEDS + BASE + "[presets.a]\nname = 'x'\n", ("FP1426", "preset a", "'name'")),
        ("seeds = [1\n", ("FP1080",)),
    ],
)
def test_wrong_studies_are_one_sentence(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], text: str, words: tuple[object, ...]
) -> None:
    path = study_file(tmp_path, text)
    with refuses(words[0], path, *words[1:]):
        read_study(path).plan_runs()
    assert main([str(path)]) == 2
    assert capsys.readouterr().err.startswith("error: ")
    assert [p.name for p in tmp_path.iterdir()] == ["study.toml"]


@pytest.mark.medium
def test_every_study_of_the_repository_describes_a_grid() -> None:
    files = sorted((Path(__file__).parents[3] / "experiments").glob("*/study.toml"))
    assert {"communication", "heterogeneity", "privacy", "strategies", "attacks"} <= {f.parent.name for f in files}
    for file in files:
        presets = list(tomllib.loads(file.read_text()).get("presets", [None]))  # of one grid: that of a search
        assert presets == [None] or {"small", "full"} <= set(presets)
        for preset in presets:
            made = read_study(file, preset)
            assert made.plan_runs()
            assert made.seconds_per_run
        assert len(read_study(file, None if presets == [None] else "full").seeds) >= 3


def test_every_study_that_was_not_run_yet_can_be_run_beside_the_others() -> None:
    """Each has runs, in a folder of its own, and no setting of one is refused before it trains."""
    files = sorted((Path(__file__).parents[3] / "experiments").glob("*/*/study.toml"))
    assert {"energy", "robustness"} <= {f.parent.name for f in files}
    assert len({read_study(file).folder for file in files}) == len(files)
    for file in files:
        made = read_study(file)
        assert made.seconds_per_run
        assert made.question
        for run in made.plan_runs():
            parse_run(run.config)


# ------------------------------------------------------------------------------------------ results that are there


def failed(made: Study, number: int) -> Result:
    run = made.plan_runs()[number]
    return Result(config=dict(vars(run.config)), status=FAILED, seed=run.config.seed, reason="out of luck")


def finished(made: Study, number: int) -> Result:
    return replace(failed(made, number), status=FINISHED, reason=None, summary={"metric": "accuracy", "seconds": 1.0})


def test_a_failure_of_a_value_that_was_mended_since_is_no_obstacle(tmp_path: Path) -> None:
    text = SEEDS + BASE.replace("cohort = 3\n", "") + "[axes]\ncohort = [3, 9]\n"
    before, file = study(tmp_path, text), ResultsFile(tmp_path / "results.jsonl")
    file.append(finished(before, 0))
    file.append(failed(before, 1))
    place = Workplace(study(tmp_path, text.replace("9", "4")), tmp_path)
    assert [dict(result.point) for result in place.done.values()] == [{"cohort": "3"}]
    assert [run.point["cohort"] for run in place.list_missing_runs(False)] == ["4", "3", "4"]
    assert [dict(r.point) for r in match_to_study(place.study, file.read())] == [{"cohort": "3"}]
    file.append(replace(failed(before, 1), study="another"))
    with refuses("FP5220"):
        Workplace(study(tmp_path, text.replace("9", "4")), tmp_path)


def test_results_of_another_configuration_are_refused_and_kept(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    other = study(tmp_path / "other", SEEDS + BASE.replace("rounds = 4", "rounds = 5") + AXES)
    path = study_file(tmp_path, SEEDS + BASE + AXES)
    file = ResultsFile(tmp_path / "results.jsonl")
    file.append(finished(other, 0))
    before = file.path.read_bytes()
    assert main([str(path)]) == 2
    assert has_error(capsys.readouterr().err, "FP5220")
    assert file.path.read_bytes() == before
    assert not (tmp_path / "runs").exists()


def test_a_broken_line_in_the_middle_is_refused_and_kept(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = study_file(tmp_path, SEEDS + BASE + AXES)
    results = tmp_path / "results.jsonl"
    results.write_text('{"config": {"cl\n' + failed(read_study(path), 0).line())
    before = results.read_bytes()
    assert main([str(path)]) == 2
    assert has_error(capsys.readouterr().err, "FP5219", "1")
    assert results.read_bytes() == before


def test_dry_run_counts_estimates_and_writes_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = study_file(tmp_path, "seconds_per_run = 60\n" + SEEDS + BASE + AXES)
    results = tmp_path / "results.jsonl"
    results.write_text(failed(read_study(path), 0).line() + '{"config": {"clie')
    before = results.read_bytes()
    assert main([str(path), "--dry-run", "--jobs", "1"]) == 0
    said = capsys.readouterr().out
    for words in (
        "4 runs = 2 values of server_optimizer x 2 seeds",
        "1 failed, 3 to run",
        "3 min 0 s",
        "out of luck",
        "cut short",
    ):
        assert words in said
    assert results.read_bytes() == before
    assert {p.name for p in tmp_path.iterdir()} == {"study.toml", "results.jsonl"}


def test_a_dry_run_counts_one_run_as_one_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = study_file(tmp_path, "seeds = [0]\n" + BASE + "[axes]\nserver_optimizer = ['sgd']\n")
    assert main([str(path), "--dry-run", "--jobs", "1"]) == 0
    assert "1 run = 1 value of server_optimizer x 1 seed ->" in capsys.readouterr().out


def test_old_results_stay_valid_when_settings_are_added(tmp_path: Path) -> None:
    run = study(tmp_path, SEEDS + BASE + AXES).plan_runs()[0]
    stored = dict(vars(run.config))
    del stored["downlink"]  # as if it were newer than the result
    assert resolve_config(stored) == run.config
    assert resolve_config({**stored, "gone": 1}) is None


def test_results_are_shown_under_the_labels_that_the_file_gives_today(tmp_path: Path) -> None:
    """Labels exchanged between two values, after the runs: each result is that of its settings, not of a label."""
    axes = '[axes]\nmethod = [{{label = "A", codec = "{}"}}, {{label = "B", codec = "{}"}}]\n'
    before = study(tmp_path, SEEDS + BASE + axes.format("fp32", "bf16"))
    file = ResultsFile(tmp_path / "results.jsonl")
    for run in before.plan_runs():
        file.append(Result(dict(vars(run.config)), FAILED, run.config.seed, study=before.name, point=dict(run.point)))
    after = study(tmp_path, SEEDS + BASE + axes.format("bf16", "fp32"))
    for results in (Workplace(after, tmp_path).done.values(), match_to_study(after, file.read())):
        assert {(r.point["method"], r.config["codec"]) for r in results} == {("A", "bf16"), ("B", "fp32")}
    found = ResultFolders()
    found.look(tmp_path)
    [results] = found.results.values()
    assert {(r.point["method"], r.config["codec"]) for r in results} == {("A", "bf16"), ("B", "fp32")}

    other = study(tmp_path, SEEDS + BASE + axes.format("bf16", "drive"))  # fp32 was called A, which is bf16 now
    assert {(r.point["method"], r.config["codec"]) for r in match_to_study(other, file.read())} == {("A", "bf16")}
    found = ResultFolders()
    found.look(tmp_path)
    assert "2 results of" in found.skipped[0]


def test_results_of_a_machine_of_another_precision_keep_their_places(tmp_path: Path) -> None:
    made = study(tmp_path, SEEDS + BASE + AXES)
    there = [replace(failed(made, i), config=failed(made, i).config | {"dtype": "bf16"}) for i in range(4)]
    assert [dict(r.point) for r in match_to_study(made, there)] == [dict(run.point) for run in made.plan_runs()]


def test_a_study_goes_on_in_the_precision_that_it_was_begun_in(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    path = study_file(tmp_path, SEEDS + BASE.replace('dtype = "fp32"', "") + AXES)
    made = read_study(path)
    own = made.plan_runs()[0].config.dtype
    there = {"bf16": "fp32", "fp32": "bf16"}[own]
    file = ResultsFile(tmp_path / "results.jsonl")
    file.append(replace(finished(made, 1), config=failed(made, 1).config | {"dtype": there}))
    place = Workplace(made, tmp_path)
    assert [dict(result.point) for result in place.done.values()] == [dict(made.plan_runs()[1].point)]
    assert {run.config.dtype for run in place.planned} == {there}
    assert main([str(path), "--dry-run"]) == 0
    assert f"precision: {there}, as in the existing results" in " ".join(capsys.readouterr().out.split())
    file.append(finished(made, 2))  # and one of this machine's
    with refuses("FP5220"):
        Workplace(made, tmp_path)


def test_a_failure_of_before_a_setting_existed_is_over_when_its_run_has_finished(tmp_path: Path) -> None:
    made = study(tmp_path, SEEDS + BASE + AXES)
    old = failed(made, 0)
    finished = replace(old, status=FINISHED, summary={"metric": "accuracy"})
    del old.config["downlink"]
    assert select_latest([old, finished]) == [finished]


def test_what_is_left_is_told_in_time(tmp_path: Path) -> None:
    made = study(tmp_path, "seconds_per_run = 600\n" + SEEDS + BASE + AXES)
    place, told = Workplace(made, tmp_path), Console(record=True, width=200)
    schedule = Schedule(Program(load, simulate.main), place, place.list_missing_runs(False), 1, "", told)
    schedule.waiting = schedule.waiting[1:]
    schedule._tell(made.plan_runs()[0], failed(made, 0))
    assert "(3 runs left, about 30 min 0 s)" in told.export_text()


def test_a_plan_with_failed_runs_names_the_flag_that_repeats_them(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    made = study(tmp_path, SEEDS + BASE + AXES)
    ResultsFile(tmp_path / "results.jsonl").append(failed(made, 0))
    for flags, named in (([], True), (["--retry-failed"], False)):
        assert main([str(tmp_path / "study.toml"), "--dry-run", *flags]) == 0
        assert ("--retry-failed" in capsys.readouterr().out) is named


def test_a_silent_study_says_where_its_runs_stand(tmp_path: Path) -> None:
    made = study(tmp_path, SEEDS + BASE + AXES)
    place, told = Workplace(made, tmp_path), Console(record=True, width=400)
    schedule = Schedule(Program(load, simulate.main), place, place.list_missing_runs(False), 2, "", told)
    schedule._print_heartbeat()
    first, second = (
        RunProcess(planned, tmp_path / name, tmp_path / f"{name}.log")
        for planned, name in zip(place.planned, "ab", strict=False)
    )
    schedule.running = [first, second]
    second.folder.mkdir()
    (second.folder / "rounds.jsonl").write_text('{"round": 0}\n{"round": 1}\n')
    schedule._print_heartbeat()
    first.log.write_text("reading the examples\nloading the model\n...     loading the model: 8 s\n\n")
    schedule._print_heartbeat()
    rounds = second.planned.config.rounds
    assert told.export_text().splitlines() == [
        "...     starting the next run",
        f"...     {first.planned.title}: getting ready; {second.planned.title}: round 1 of {rounds} done",
        f"...     {first.planned.title}: loading the model: 8 s; {second.planned.title}: round 1 of {rounds} done",
    ]


def test_a_mistake_is_told_as_it_is_written_in_the_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Brackets are markup to the terminal's library, and [base] must not vanish."""
    path = study_file(tmp_path, SEEDS + BASE + "[axes]\nrounds = [1, 2]\n")
    assert main([str(path)]) == 2
    assert has_error(capsys.readouterr().err, "FP1437", "rounds", "[base]", "rounds")


def test_a_folder_with_other_settings_is_refused(tmp_path: Path) -> None:
    made = study(tmp_path, SEEDS + BASE + AXES)
    place = Workplace(made, tmp_path)
    folder = place.runs / made.plan_runs()[0].name
    folder.mkdir(parents=True)
    (folder / "config.toml").write_text("clients = 99\n")
    with refuses("FP5224"):
        place.start(made.plan_runs()[0], "", None)  # type: ignore[arg-type]
    assert (folder / "config.toml").read_text() == "clients = 99\n"


def test_a_run_that_has_planned_its_own_settings_goes_on_and_counts_as_what_was_asked_for(tmp_path: Path) -> None:
    """A privacy budget alone: the run's folder says what has been planned of it."""
    made = study(tmp_path, SEEDS + BASE + '[axes]\nprivacy = ["dp_sgd(epsilon=8)", "dp_sgd(epsilon=4)"]\n')
    place, planned = Workplace(made, tmp_path), made.plan_runs()[0]
    own = replace(planned.config, batch_size=7, privacy="dp_sgd(epsilon=8.0, plan=False)")
    folder, given = place.runs / planned.name, []
    folder.mkdir(parents=True)
    (folder / "config.toml").write_text(own.to_toml())
    with refuses("FP5224"):
        place.start(planned, "", None)  # type: ignore[arg-type]
    (place.runs / f"{planned.name}.toml").write_text(planned.config.to_toml())
    place.start(planned, "", SimpleNamespace(start=given.append))  # type: ignore[arg-type]
    assert [run.folder for run in given] == [folder]
    place.record(planned, Result(config=asdict(own), status=FINISHED, seed=0, summary={}))
    again = Workplace(made, tmp_path)
    assert again.done.keys() == {planned.name}
    settled = {"batch_size": 7, "privacy": "dp_sgd(epsilon=8.0, plan=False)"}
    assert again.done[planned.name].settled == settled


def test_a_full_disk_leaves_what_was_asked_of_a_run_and_it_goes_on(tmp_path: Path) -> None:
    made = study(tmp_path, SEEDS + BASE + '[axes]\nprivacy = ["dp_sgd(epsilon=8)", "dp_sgd(epsilon=4)"]\n')
    place, planned = Workplace(made, tmp_path), made.plan_runs()[0]
    folder, given = place.runs / planned.name, []
    place.runs.mkdir(parents=True)
    place.start(planned, "", SimpleNamespace(start=given.append))  # type: ignore[arg-type]
    folder.mkdir()
    own = replace(planned.config, batch_size=7, privacy="dp_sgd(epsilon=8.0, plan=False)")
    (folder / "config.toml").write_text(own.to_toml())
    with full_disk(10), refuses("FP5102", ".toml", "File too large"):
        place.start(planned, "", SimpleNamespace(start=given.append))  # type: ignore[arg-type]
    place.start(planned, "", SimpleNamespace(start=given.append))  # type: ignore[arg-type]
    assert [run.folder for run in given] == [folder] * 2


def test_runs_share_the_gpus_of_a_machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As many runs at a time as GPUs, each on the one that has the fewest."""
    monkeypatch.setattr("fedpeft.study.runner.list_accelerators", lambda: ["cuda:0", "cuda:1"])
    monkeypatch.setattr("fedpeft.study.runner.divide_gpus", lambda jobs: ["5", "7"])
    made = study(tmp_path, SEEDS + BASE + AXES)
    (tmp_path / "runs").mkdir()
    runs = made.plan_runs()
    assert count_fitting_jobs(runs) == 2

    class Starts:
        """Notes what it is to start."""

        def __init__(self) -> None:
            self.given: list[Start] = []

        def start(self, run: Start) -> None:
            self.given.append(run)

    starter = Starts()
    schedule = Schedule(Program(load, simulate.main), Workplace(made, tmp_path), list(runs), 3, "", Console(quiet=True))
    schedule.warm = {run.shared_work for run in runs}
    schedule._start_what_can_be(starter)  # type: ignore[arg-type]
    assert [run.gpus for run in starter.given] == ["5", "7", "5"]


@pytest.mark.parametrize("confidence", [0.0, 0.8])
def test_where_nothing_is_confident_there_is_no_calibration(tmp_path, confidence):
    """Pairs of texts and images are ranked: an error of confidences that are all 0 would be the accuracy."""
    (tmp_path / "config.toml").write_text("seed = 0\nbatch_size = 8\n")
    (tmp_path / "summary.json").write_text('{"metric": "accuracy", "seed": 0}')
    for name in ("rounds.jsonl", "clients.jsonl"):
        (tmp_path / name).write_text("")
    one = np.ones(4)
    np.savez(tmp_path / "predictions.npz", correct=one, count=one, confidence=confidence * one)
    assert (read_run(tmp_path).calibration is None) == (confidence == 0)


@pytest.mark.parametrize("metric", ["perplexity", "accuracy"])
def test_losses_per_row_are_kept_of_language_models(tmp_path, metric):
    """Nats per token are compared by test row, too; of classes, correct predictions are."""
    (tmp_path / "config.toml").write_text("seed = 0\nbatch_size = 8\n")
    (tmp_path / "summary.json").write_text(json.dumps({"metric": metric, "seed": 0}))
    for name in ("rounds.jsonl", "clients.jsonl"):
        (tmp_path / name).write_text("")
    one, loss = np.ones(4), np.array([1.5, 2.25, 0.5, 8.0])
    np.savez(tmp_path / "predictions.npz", correct=one, count=2 * one, confidence=0 * one, loss=loss)
    found = read_run(tmp_path).loss
    assert (found is not None) == (metric == "perplexity")
    if found is not None:
        assert unpack(found).tolist() == loss.tolist()

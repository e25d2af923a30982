"""All runs of a study, several at a time, each in a process of its own, and their results recorded as they end."""

from __future__ import annotations

import dataclasses
import shutil
import time
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from pathlib import Path

from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from fedpeft.config import RunConfig, read_config
from fedpeft.errors import FedpeftError, RunError
from fedpeft.machine import files
from fedpeft.machine.hardware import count_usable_cores, divide_gpus, list_accelerators
from fedpeft.machine.terminal import Console
from fedpeft.reporting.console import format_duration
from fedpeft.reporting.observer import get_main_metric
from fedpeft.reporting.phases import SILENCE, Heartbeat
from fedpeft.reporting.records import Records
from fedpeft.reporting.run_folder import lock_folder
from fedpeft.reporting.user_files import MadeOf, find_changed_file, find_own_files, load_record, select_file_settings
from fedpeft.studies.process import Program, Start, Starter, describe_failure
from fedpeft.studies.results import FAILED, Result, ResultsFile, read_run, resolve_config
from fedpeft.studies.study_file import PlannedRun, Study
from fedpeft.wiring import catalogue

POLL_SECONDS = 0.2


@dataclass
class RunProcess:
    """A run in its process."""

    planned: PlannedRun
    folder: Path
    log: Path
    gpus: str = ""

    def __str__(self) -> str:
        """Its title, and how far it is."""
        done, of = self.count_finished_rounds(), self.planned.config.rounds
        return f"{self.planned.title}: " + (f"round {done} of {of} done" if done else "getting ready")

    def count_finished_rounds(self) -> int:
        """Rounds that are on the disk."""
        return count_finished_rounds(self.folder)

    @property
    def prepared(self) -> bool:
        """Whether the work that runs share is behind it: it has begun to record rounds."""
        return (self.folder / "rounds.jsonl").exists()


def count_finished_rounds(folder: Path) -> int:
    """Finished rounds of a run, without the preparation."""
    try:
        return sum(1 for entry in Records(folder).read("rounds.jsonl") if entry["round"] > 0)
    except (OSError, ValueError, KeyError):
        return 0


@dataclass
class Workplace:
    """A study's folder: results.jsonl, and runs/ with the folders of the runs.

    A study that leaves the precision to the machine goes on in that of the results which are there.

    `unsaid`: names of finished runs of which nobody says what was in the user's own files that they are made of.
    """

    study: Study
    folder: Path
    planned: list[PlannedRun] = field(init=False)
    results: ResultsFile = field(init=False)
    done: dict[str, Result] = field(init=False)
    unsaid: list[str] = field(init=False, default_factory=list)
    _own: dict[RunConfig, MadeOf] = field(init=False, default_factory=dict)

    def __post_init__(self) -> None:
        self.results = ResultsFile(self.folder / "results.jsonl")
        self.study, self.planned = self._restore_precision()
        self.done = self._match()
        self._refuse_changed()

    @property
    def runs(self) -> Path:
        """Where the runs are."""
        return self.folder / "runs"

    def _restore_precision(self) -> tuple[Study, list[PlannedRun]]:
        """The study, in the precision in which all results that are there are its own, else as it is; and its runs."""
        there = self.results.read()
        finished = [result for result in there if result.finished]
        done = {resolve_config(result.config) for result in finished or there}
        planned = self.study.plan_runs()
        if not done <= {run.config for run in planned}:
            for precision in dict.fromkeys(config.dtype for config in done if config is not None):
                study = dataclasses.replace(self.study, precision=precision)
                others = study.plan_runs()
                if done <= {run.config for run in others}:
                    return study, others
        return self.study, planned

    def _match(self) -> dict[str, Result]:
        """The results that are there, by name of the run. A failure of what is planned no more holds nothing: its user
        has mended the file.

        Raises:
            RunError: a finished result is not of this study.
        """
        planned = {run.config: run for run in self.planned}
        found: dict[str, Result] = {}
        for number, result in enumerate(self.results.read(), 1):
            config = resolve_config(result.config)
            if config not in planned and not result.finished and result.study in ("", self.study.name):
                continue
            if config not in planned:
                point = ", ".join(f"{a}={v}" for a, v in result.point.items())
                raise RunError(
                    f"FP5220 {self.results.path} holds results of another configuration (line {number}: "
                    f"{point or 'no point'}, seed {result.seed}) that {self.study.path}"
                    f"{f' with preset {self.study.preset}' if self.study.preset else ''} does not describe; "
                    "move that file away or give another --output"
                )
            assert config is not None
            now = {plugin.source: plugin for plugin in catalogue.find_used_plugins(config)}
            for was in result.plugin:
                plugin = now.get(was["source"])
                if plugin is not None and not plugin.is_as(was.get("sha256", was.get("version"))):
                    raise RunError(
                        f"FP5221 {self.results.path} holds results made with the plugin {was['source']} as it was "
                        "before it changed; put that back, or give another --output"
                    )
            run = planned[config]
            found[run.name] = dataclasses.replace(result, point=dict(run.point))  # labels and axes may be others now
        return found

    def _refuse_changed(self) -> None:
        """See that what results, and runs without one, were made of is what is there.

        Raises:
            RunError: it has changed.
        """
        for run in self.planned:
            result, folder = self.done.get(run.name), self.runs / run.name
            of_result = result.made_of if result is not None else ()
            of_folder = load_record(folder)
            if name := self._find_changed_file(run, of_result):
                raise RunError(
                    f"FP5222 {self.results.path} holds results ({run.title}) made of {name} as it was before it "
                    f"changed; put that back, move {self.results.path.name} and {self.runs.name} away, or give another "
                    "--output"
                )
            if name := self._find_changed_file(run, of_folder):
                raise RunError(
                    f"FP5223 {folder} holds a run made of {name} as it was before it changed; put that back, move the "
                    "folder away, or give another --output"
                )
            if result is not None and result.finished:
                untold = self._find_own_files(run)[max(len(of_result), len(of_folder)) :]
                self.unsaid += [run.name] if any(own.sha256 for own in untold) else []

    def _find_changed_file(self, run: PlannedRun, was: MadeOf) -> str | None:
        """The file of a run that has other content than it `was` made of; None: there is none."""
        return find_changed_file(was, self._find_own_files(run)) if was else None

    def _find_own_files(self, run: PlannedRun) -> MadeOf:
        """What the run's own files were when they were first looked at; runs share them."""
        named = select_file_settings(run.config)
        if named not in self._own:
            self._own[named] = find_own_files(named)
        return self._own[named]

    def list_missing_runs(self, retry_failed: bool) -> list[PlannedRun]:
        """The runs still to do."""
        return [
            run
            for run in self.planned
            if run.name not in self.done or (retry_failed and not self.done[run.name].finished)
        ]

    def estimate_seconds_left(self, runs: Sequence[PlannedRun], jobs: int) -> float | None:
        """Estimate, from the runs that have finished here, or else what the study's file says; None if neither."""
        measured: dict[str, list[float]] = {}
        for result in self.done.values():
            if result.finished and result.summary and result.summary.get("seconds"):
                measured.setdefault(str(dict(result.point)), []).append(result.summary["seconds"])
        everything = [s for values in measured.values() for s in values]
        total = 0.0
        for run in runs:
            values = measured.get(str(dict(run.point))) or everything
            known = sum(values) / len(values) if values else self.study.seconds_per_run
            if known is None:
                return None
            total += known
        return total / min(jobs, max(1, len(runs)))

    def record(self, planned: PlannedRun, result: Result) -> Result:
        """Append a result, as one of this study: under what was asked for, whatever the run has planned itself."""
        asked = dataclasses.asdict(planned.config)
        own = resolve_config(result.config)
        if own is not None and own != planned.config:
            settled = {name: value for name, value in dataclasses.asdict(own).items() if asked[name] != value}
            result = dataclasses.replace(result, config=asked, settled=settled)
        complete = dataclasses.replace(
            result, study=self.study.name, preset=self.study.preset, point=dict(planned.point)
        )
        self.results.append(complete)
        self.done[planned.name] = complete
        return complete

    # ------------------------------------------------------------------------------------------------------ one run

    def start(self, planned: PlannedRun, track: str, starter: Starter, gpus: str = "") -> RunProcess:
        """Start or continue a run; `gpus` as CUDA_VISIBLE_DEVICES takes them, empty: all.

        Raises:
            RunError: its folder holds something else, or the disk can't be written.
        """
        folder = self.runs / planned.name
        if (folder / "config.toml").is_file():
            if not self._is_of(planned, read_config(folder / "config.toml", of_run=True)):
                raise RunError(
                    f"FP5224 {folder} holds a run with other settings; move it away or give another --output"
                )
        elif folder.exists():
            shutil.rmtree(folder)  # killed before it had written its settings: nothing is in it
        settings = self.runs / f"{planned.name}.toml"
        with files.raise_write_errors(settings):
            files.replace(settings, catalogue.format_toml(planned.config).encode())
        running = RunProcess(planned, folder, self.runs / f"{planned.name}.log", gpus)
        starter.start(Start(settings, folder, running.log, ("--track", track) if track else (), gpus))
        return running

    def _is_of(self, planned: PlannedRun, found: RunConfig | None) -> bool:
        """Whether a folder with these settings is that of a run: it was asked for, or came of what was asked for."""
        asked = self.runs / f"{planned.name}.toml"
        return planned.config in (found, read_config(asked, goes_on=False) if asked.is_file() else None)

    def finish(self, running: RunProcess, code: int) -> Result:
        """Record a run whose process has ended with this exit code."""
        try:
            if code == 0:
                result = read_run(running.folder)
                if name := self._find_changed_file(running.planned, load_record(running.folder)):
                    raise RunError(
                        f"FP5225 {name} has changed while the study went on, so that its runs can't be compared"
                    )
                return self.record(running.planned, result)
            reason = describe_failure(code, running.log)
        except RunError as error:
            reason = str(error)
        config = dataclasses.asdict(running.planned.config)
        return self.record(
            running.planned, Result(config=config, status=FAILED, seed=running.planned.config.seed, reason=reason)
        )

    def adopt(self, planned: PlannedRun) -> bool:
        """Record a run that had finished when the study was killed, before its line was written."""
        folder = self.runs / planned.name
        if not (folder / "summary.json").is_file():
            return False
        try:
            result = read_run(folder)
        except FedpeftError:
            return False
        if not self._is_of(planned, resolve_config(result.config)):
            return False
        self.record(planned, result)
        return True


# -------------------------------------------------------------------------------------------------------- all the runs


class Schedule:
    """Keeps `jobs` runs of `program` going until none is left."""

    def __init__(
        self, program: Program, place: Workplace, waiting: list[PlannedRun], jobs: int, track: str, console: Console
    ) -> None:
        self.program = program
        self.place, self.waiting, self.jobs, self.track, self.console = place, waiting, jobs, track, console
        self.running: list[RunProcess] = []
        self.shares = divide_gpus(jobs)
        self.warm = {r.shared_work for r in place.planned if r.name in place.done and place.done[r.name].finished}
        self.total = sum(r.config.rounds for r in waiting)
        self.ended = 0
        self.failures = 0
        self.progress = Progress(
            TextColumn("{task.description}", markup=False),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("rounds"),
            TimeElapsedColumn(),
            TextColumn("left"),
            TimeRemainingColumn(elapsed_when_finished=False),
            console=console,
            transient=True,
            speed_estimate_period=600,
            disable=not console.is_terminal,
        )
        self.task = self.progress.add_task("study", total=self.total)
        self.heartbeat = Heartbeat(self._print_heartbeat, SILENCE)

    def run(self) -> int:
        """All of it; returns the number of failed runs."""
        starter = Starter(self.program)
        shown = self.console.is_terminal or self.console.quiet
        with self.progress, nullcontext() if shown else self.heartbeat:
            try:
                while self.waiting or self.running:
                    self._start_what_can_be(starter)
                    self._collect(starter.collect_exit_codes())
                    time.sleep(POLL_SECONDS)
            finally:
                starter.close()
        return self.failures

    def _start_what_can_be(self, starter: Starter) -> None:
        """Start runs; of those that share work not done yet, only one until it has done it."""
        for running in self.running:
            if running.prepared:
                self.warm.add(running.planned.shared_work)
        preparing = {r.planned.shared_work for r in self.running} - self.warm
        for planned in list(self.waiting):
            if len(self.running) >= self.jobs:
                return
            if planned.shared_work in preparing:
                continue
            self.waiting.remove(planned)
            if self.place.adopt(planned):
                self._tell(planned, self.place.done[planned.name])
                continue
            taken = [r.gpus for r in self.running]
            gpus = min(self.shares, key=taken.count, default="")
            self.running.append(self.place.start(planned, self.track, starter, gpus))
            if planned.shared_work not in self.warm:
                preparing.add(planned.shared_work)

    def _collect(self, ended: Mapping[Path, int]) -> None:
        for running in [r for r in self.running if r.folder in ended]:
            self.running.remove(running)
            self._tell(running.planned, self.place.finish(running, ended[running.folder]))
        going = sum(r.count_finished_rounds() for r in self.running)
        titles = "; ".join(r.planned.title for r in self.running)
        self.progress.update(self.task, completed=self.ended + going, description=titles[:60] or "study")

    def _print_heartbeat(self) -> None:
        standing = "; ".join(map(str, list(self.running))) or "starting the next run"
        self.progress.console.print(f"...     {escape(standing)}", highlight=False, soft_wrap=True)

    def _tell(self, planned: PlannedRun, result: Result) -> None:
        self.heartbeat.reset()
        self.ended += planned.config.rounds
        seconds = self.place.estimate_seconds_left([*self.waiting, *(r.planned for r in self.running)], self.jobs)
        left = len(self.waiting) + len(self.running)
        remaining = f"{left} run{'' if left == 1 else 's'} left"
        if left and seconds:
            remaining += f", about {format_duration(seconds)}"
        if result.finished:
            assert result.summary is not None
            told = result.summary
            name, value = get_main_metric(str(told.get("metric", "accuracy")), told.get("loss"), told["accuracy"])
            text = f"{name} {'not a number' if value is None else format(value, '.4f')}"
            text += f"  {format_duration(told['seconds'] or 0)}"
        else:
            self.failures += 1
            text = f"[bold red]failed:[/] {escape(str(result.reason))}"
        self.progress.console.print(f"{escape(planned.title)}  {text}  ({remaining})", highlight=False, soft_wrap=True)


def count_fitting_jobs(planned: Sequence[PlannedRun]) -> int:
    """Runs at a time, from the GPUs of this machine, or its cores, and the workers of a run."""
    processors = len(list_accelerators()) or count_usable_cores()
    workers = max((run.config.workers or processors for run in planned), default=1)
    return max(1, processors // workers)


def run_what_is_left(
    program: Program, place: Workplace, jobs: int, retry_failed: bool, track: str, console: Console
) -> Workplace:
    """Do the runs that are left, alone in the study's folder; the folder with their results.

    Raises:
        RunError: another process runs the study there, or the folder can't be written.
    """
    try:
        place.runs.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise RunError(f"FP5028 {place.runs} can't be made: {error.strerror}") from error
    taken = f"FP5226 another process runs a study in {place.folder}; wait for it or give another --output"
    with lock_folder(place.runs, "study.lock", taken):
        place = Workplace(place.study, place.folder)  # read again: another study may have ended since
        if place.results.cut_short:
            place.results.mend()
        if left := place.list_missing_runs(retry_failed):
            Schedule(program, place, left, jobs, track, console).run()
    return place

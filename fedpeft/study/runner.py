"""Runs a study: several runs at a time, each in its own process, with results recorded as they end."""

from __future__ import annotations

import dataclasses
import os
import shutil
import time
from collections.abc import Mapping, Sequence
from contextlib import nullcontext, suppress
from dataclasses import dataclass, field
from pathlib import Path

from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from fedpeft.data.abilities import NamesFiles
from fedpeft.errors import ConfigError, FedpeftError, RunError
from fedpeft.machine import files
from fedpeft.machine.cores import count_usable_cores
from fedpeft.machine.hardware import divide_gpus, list_accelerators
from fedpeft.machine.terminal import Console
from fedpeft.parts.families import DATASETS
from fedpeft.reporting.console import format_duration
from fedpeft.reporting.observer import get_main_metric
from fedpeft.reporting.phases import SILENCE, Heartbeat
from fedpeft.reporting.records import Records
from fedpeft.reporting.run_folder import lock_folder
from fedpeft.reporting.user_files import MadeOf, find_changed_file, find_own_files, load_record, select_file_settings
from fedpeft.study.process import Program, Start, Starter, describe_failure
from fedpeft.study.results import FAILED, Result, ResultsFile, read_run, resolve_config
from fedpeft.study.study_file import PlannedRun, Study
from fedpeft.wiring import catalogue
from fedpeft.wiring.config import RunConfig, read_config

POLL_SECONDS = 0.2

LOG_BYTES = 2000
"""Bytes at the end of a run's log in which its last line is looked for."""


@dataclass
class RunProcess:
    """A run in its process."""

    planned: PlannedRun
    folder: Path
    log: Path
    gpus: str = ""

    def __str__(self) -> str:
        """Return the run's title and its progress."""
        done, of = self.count_finished_rounds(), self.planned.config.rounds
        return f"{self.planned.title}: " + (f"round {done} of {of} done" if done else self.read_phase())

    def read_phase(self) -> str:
        """Return the last line of the run's log, which names its phase before round 1."""
        with suppress(OSError):
            with open(self.log, "rb") as log:
                log.seek(max(0, log.seek(0, os.SEEK_END) - LOG_BYTES))
                lines = log.read().decode(errors="replace").split("\n")
            for line in reversed(lines):
                if text := line.removeprefix("...").strip():
                    return text
        return "getting ready"

    def count_finished_rounds(self) -> int:
        """Return the number of rounds on disk."""
        return count_finished_rounds(self.folder)

    @property
    def is_prepared(self) -> bool:
        """Whether the run has finished the work that runs share, and records rounds."""
        return (self.folder / "rounds.jsonl").exists()


def count_finished_rounds(folder: Path) -> int:
    """Return the number of finished rounds of a run, without the preparation."""
    try:
        return sum(1 for entry in Records(folder).read("rounds.jsonl") if entry["round"] > 0)
    except (OSError, ValueError, KeyError):
        return 0


@dataclass
class Workplace:
    """A study's folder: results.jsonl, and runs/ with the folders of the runs.

    If results exist, a study with `dtype = auto` continues in the precision of these results.

    `unsaid`: names of finished runs for which nobody recorded the contents of the user's own files.
    """

    study: Study
    folder: Path
    planned: list[PlannedRun] = field(init=False)
    results: ResultsFile = field(init=False)
    done: dict[str, Result] = field(init=False)
    unsaid: list[str] = field(init=False, default_factory=list)
    _own: dict[RunConfig, MadeOf] = field(init=False, default_factory=dict)

    def __post_init__(self) -> None:
        """Read the results, and match them to the study's runs."""
        self.results = ResultsFile(self.folder / "results.jsonl")
        self.study, self.planned = self._restore_precision()
        self.done = self._match()
        self._refuse_changed()

    @property
    def runs(self) -> Path:
        """The folder of the runs."""
        return self.folder / "runs"

    def _restore_precision(self) -> tuple[Study, list[PlannedRun]]:
        """Return the study in the precision that makes all existing results its own, and its runs.

        If no precision does, the study is returned unchanged.
        """
        there = self.results.read()
        finished = [result for result in there if result.is_finished]
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
        """Return the existing results by the run's name.

        Failures of runs that are no longer planned are skipped: the user has fixed the study's file since.

        Raises:
            RunError: a finished result does not belong to this study.
        """
        planned = {run.config: run for run in self.planned}
        matched: dict[str, Result] = {}
        for number, result in enumerate(self.results.read(), 1):
            config = resolve_config(result.config)
            if config not in planned and not result.is_finished and result.study in ("", self.study.name):
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
                        f"FP5221 {self.results.path} holds results made with an earlier version of the plugin "
                        f"{was['source']}; restore that version, or give another --output"
                    )
            run = planned[config]
            matched[run.name] = dataclasses.replace(result, point=dict(run.point))  # labels and axes may have changed
        return matched

    def _refuse_changed(self) -> None:
        """Raise if files that results or unfinished runs depend on have changed.

        Raises:
            RunError: a file has changed. The message names it.
        """
        for run in self.planned:
            result, folder = self.done.get(run.name), self.runs / run.name
            of_result = result.made_of if result is not None else ()
            of_folder = load_record(folder)
            if name := self._find_changed_file(run, of_result):
                raise RunError(
                    f"FP5222 {self.results.path} holds results ({run.title}) made with an earlier version of "
                    f"{name}; restore that version, move {self.results.path.name} and {self.runs.name} away, or "
                    "give another --output"
                )
            if name := self._find_changed_file(run, of_folder):
                raise RunError(
                    f"FP5223 {folder} holds a run made with an earlier version of {name}; restore that version, "
                    "move the folder away, or give another --output"
                )
            if result is not None and result.is_finished:
                untold = self._find_own_files(run)[max(len(of_result), len(of_folder)) :]
                self.unsaid += [run.name] if any(own.sha256 for own in untold) else []

    def _find_changed_file(self, run: PlannedRun, was: MadeOf) -> str | None:
        """Return the first file of a run whose content differs from the record `was`; None if none does."""
        return find_changed_file(was, self._find_own_files(run)) if was else None

    def _find_own_files(self, run: PlannedRun) -> MadeOf:
        """Return the record of the run's own files, read once; runs share it."""
        named = select_file_settings(run.config)
        if named not in self._own:
            self._own[named] = find_own_files(named)
        return self._own[named]

    def refuse_missing_files(self, runs: Sequence[PlannedRun]) -> None:
        """Raise if a file or folder of examples does not exist, before any run begins and fails.

        Raises:
            ConfigError: one does not. The message names it and the first run that reads it.
        """
        for run in runs:
            source = DATASETS.build(run.config.dataset)
            for path in source.list_files() if isinstance(source, NamesFiles) else ():
                if not Path(path).expanduser().exists():
                    raise ConfigError(
                        f"FP1988 {self.study.path}: {run.title} reads {path}, which does not exist; correct dataset: a "
                        f"path is absolute, or relative to the folder in which you call fedpeft ({Path.cwd()})"
                    )

    def list_missing_runs(self, retry_failed: bool) -> list[PlannedRun]:
        """Return the runs that have no result; with `retry_failed`, also those that failed."""
        return [
            run
            for run in self.planned
            if run.name not in self.done or (retry_failed and not self.done[run.name].is_finished)
        ]

    def estimate_seconds_left(self, runs: Sequence[PlannedRun], jobs: int) -> float | None:
        """Estimate the remaining time in seconds from finished runs, or else from `seconds_per_run`.

        Returns None if neither is known.
        """
        measured: dict[str, list[float]] = {}
        for result in self.done.values():
            if result.is_finished and result.summary and result.summary.get("seconds"):
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
        """Append a result of this study under the settings of `planned`.

        Settings that the run itself changed go into `settled`.
        """
        planned_settings = dataclasses.asdict(planned.config)
        resolved = resolve_config(result.config)
        if resolved is not None and resolved != planned.config:
            settled = {
                name: value for name, value in dataclasses.asdict(resolved).items() if planned_settings[name] != value
            }
            result = dataclasses.replace(result, config=planned_settings, settled=settled)
        complete = dataclasses.replace(
            result, study=self.study.name, preset=self.study.preset, point=dict(planned.point)
        )
        self.results.append(complete)
        self.done[planned.name] = complete
        return complete

    # ------------------------------------------------------------------------------------------------------ one run

    def start(self, planned: PlannedRun, track: str, starter: Starter, gpus: str = "") -> RunProcess:
        """Start or resume a run; `gpus` has the form of CUDA_VISIBLE_DEVICES, empty for all.

        Raises:
            RunError: its folder contains another run, or the disk can't be written.
        """
        folder = self.runs / planned.name
        if (folder / "config.toml").is_file():
            if not self._is_of(planned, read_config(folder / "config.toml", of_run=True)):
                raise RunError(
                    f"FP5224 {folder} holds a run with other settings; move it away or give another --output"
                )
        elif folder.exists():
            shutil.rmtree(folder)  # killed before it wrote its settings: it has no results
        settings = self.runs / f"{planned.name}.toml"
        with files.raise_write_errors(settings):
            files.replace(settings, catalogue.format_toml(planned.config).encode())
        running = RunProcess(planned, folder, self.runs / f"{planned.name}.log", gpus)
        starter.start(Start(settings, folder, running.log, ("--track", track) if track else (), gpus))
        return running

    def _is_of(self, planned: PlannedRun, stored: RunConfig | None) -> bool:
        """Return whether a folder's settings `found` are those of a run, as planned or as the run resolved them."""
        settings_file = self.runs / f"{planned.name}.toml"
        return planned.config in (
            stored,
            read_config(settings_file, goes_on=False) if settings_file.is_file() else None,
        )

    def finish(self, running: RunProcess, code: int) -> Result:
        """Record a run whose process has ended with this exit code."""
        try:
            if code == 0:
                result = read_run(running.folder)
                if name := self._find_changed_file(running.planned, load_record(running.folder)):
                    raise RunError(
                        f"FP5225 {name} has changed while the study ran, so its runs can't be compared; give "
                        "another --output"
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
        """Record a run that finished before a killed study could record it; return whether it did."""
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
    """A loop that keeps `jobs` runs of `program` going until none is left."""

    def __init__(
        self, program: Program, place: Workplace, waiting: list[PlannedRun], jobs: int, track: str, console: Console
    ) -> None:
        """Prepare the progress bar and the GPU shares; `run` starts the runs."""
        self.program = program
        self.place, self.waiting, self.jobs, self.track, self.console = place, waiting, jobs, track, console
        self.running: list[RunProcess] = []
        self.shares = divide_gpus(jobs)
        self.warm = {r.shared_work for r in place.planned if r.name in place.done and place.done[r.name].is_finished}
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
        """Execute all waiting runs, and return the number of failed ones."""
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
        """Start runs while jobs are free.

        If several runs share unfinished work, only one of them starts until that work is done.
        """
        for running in self.running:
            if running.is_prepared:
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
        if result.is_finished:
            assert result.summary is not None
            summary = result.summary
            name, value = get_main_metric(
                str(summary.get("metric", "accuracy")), summary.get("loss"), summary["accuracy"]
            )
            text = f"{name} {'not a number' if value is None else format(value, '.4f')}"
            text += f"  {format_duration(summary['seconds'] or 0)}"
        else:
            self.failures += 1
            text = f"[bold red]failed:[/] {escape(str(result.reason))}"
        self.progress.console.print(f"{escape(planned.title)}  {text}  ({remaining})", highlight=False, soft_wrap=True)


def count_fitting_jobs(planned: Sequence[PlannedRun]) -> int:
    """Return how many runs fit at a time, by the GPUs or cores of this machine and the workers per run."""
    processors = len(list_accelerators()) or count_usable_cores()
    workers = max((run.config.workers or processors for run in planned), default=1)
    return max(1, processors // workers)


def run_what_is_left(
    program: Program, place: Workplace, jobs: int, retry_failed: bool, track: str, console: Console
) -> Workplace:
    """Execute the missing runs while holding the lock on the study's folder; return it with the results.

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

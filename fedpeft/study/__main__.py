"""fedpeft study STUDY.toml: all runs of a grid, once each, several at a time; then the report.

Every finished run is one line in results.jsonl, keyed by its resolved configuration: starting the study again runs what
is missing, continues what was interrupted, and touches nothing else. Runs are processes of their own: one that fails
or is killed is a failed line with its reason, and the others go on.
"""

from __future__ import annotations

import importlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import tyro
from rich.markup import escape

from fedpeft import simulate
from fedpeft.errors import RunError
from fedpeft.machine.terminal import Console
from fedpeft.reporting import console
from fedpeft.reporting.command import (
    run_tool,
    start_command,
)
from fedpeft.reporting.console import format_duration
from fedpeft.reporting.phrases import count_of
from fedpeft.study.process import Program
from fedpeft.study.study_file import PlannedRun, read_study
from fedpeft.wiring import catalogue

if TYPE_CHECKING:
    from fedpeft.study.results import Result
    from fedpeft.study.runner import Workplace

FAILURES = 1
"""Exit code when runs have failed."""


@dataclass(frozen=True)
class Command:
    """Run a study: every combination of its axes with every seed, kept in results.jsonl; then make the report."""

    study: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="STUDY.toml", help="the study's file")]
    preset: Annotated[str | None, tyro.conf.arg(help="one of the file's presets (default: the one the file names)")] = (
        None
    )
    output: Annotated[
        Path | None, tyro.conf.arg(help="folder of the results (default: the file's, or the preset's)")
    ] = None
    jobs: Annotated[int, tyro.conf.arg(help="runs at a time; 0: as many as the cores allow")] = 0
    dry_run: Annotated[
        bool, tyro.conf.arg(help="only show the runs, the finished ones, and an estimate of the time")
    ] = False
    retry_failed: Annotated[bool, tyro.conf.arg(help="run failed runs again")] = False
    track: Annotated[str, tyro.conf.arg(help="also send each run to tensorboard, mlflow or wandb (several: a,b)")] = ""
    plugin: Annotated[
        tuple[str, ...],
        tyro.conf.UseAppendAction,
        tyro.conf.arg(metavar="FILE", help="parts of your own: a file, folder or installed package"),
    ] = ()


def show_plan(place: Workplace, left: Sequence[PlannedRun], jobs: int, console: Console) -> None:
    """Print the number of runs, the finished ones, and an estimate of the remaining time."""
    study = place.study
    failed = [(run, place.done[run.name]) for run in place.planned if run.name in place.done]
    failed = [(run, result) for run, result in failed if not result.is_finished]
    axes = [f"{count_of(len(values), 'value')} of {name}" for name, values in study.axes.items()]
    preset = f" ({study.preset})" if study.preset else ""
    grid = " x ".join([*axes, count_of(len(study.seeds), "seed")])
    console.print(
        f"[bold]{escape(study.name)}[/]"
        + escape(f"{preset}: {count_of(len(place.planned), 'run')} = {grid} -> {place.folder}"),
        highlight=False,
        soft_wrap=True,
    )
    for run, result in failed:
        console.print(
            f"{escape(run.title)}: [bold red]failed:[/] {escape(str(result.reason))}", highlight=False, soft_wrap=True
        )
    seconds = place.estimate_seconds_left(left, jobs)
    estimate = "no estimate before a run has finished" if seconds is None else f"about {format_duration(seconds)}"
    waits = any(run not in left for run, _ in failed)
    console.print(
        f"{len(place.done) - len(failed)} finished, {len(failed)} failed, {len(left)} to run, {jobs} at a time: "
        f"{estimate if left else 'nothing to do'}{'; --retry-failed runs the failed ones again' if waits else ''}",
        highlight=False,
        soft_wrap=True,
    )


def load() -> None:
    """Import what every run needs."""
    console.silence_libraries()
    for module in (
        "fedpeft.simulation.simulation",
        "fedpeft.clients.preload",
    ):  # the last one freezes what is in memory
        importlib.import_module(module)


def complete_study(command: Command, console: Console) -> list[Result]:
    """Run the missing runs and write the report; return the results of all runs, in the order of the grid.

    Raises:
        FedpeftError: what the user can mend; nothing was overwritten.
    """
    if command.jobs < 0:
        raise RunError(f"FP5227 --jobs must be at least 0, got {command.jobs}")
    if command.track:
        from fedpeft.reporting.trackers import check_trackers

        check_trackers(command.track)
    catalogue.use(command.plugin)
    study = read_study(command.study, command.preset)
    study.check()
    from fedpeft.study.page import write_study_report
    from fedpeft.study.runner import Workplace, count_fitting_jobs, run_what_is_left

    place = Workplace(study, command.output or study.folder)
    left = place.list_missing_runs(command.retry_failed)
    place.refuse_missing_files(left)
    jobs = command.jobs or count_fitting_jobs(place.planned)
    show_plan(place, left, jobs, console)
    if place.study.precision:
        console.print(
            f"precision: {place.study.precision}, as in the existing results; this machine has another "
            "default (dtype in [base] sets one)",
            highlight=False,
            soft_wrap=True,
            markup=False,
        )
    if place.results.cut_short:
        console.print(
            f"the last line of {place.results.path} was cut short by a kill: it is dropped, its run recorded again",
            markup=False,
            highlight=False,
            soft_wrap=True,
        )
    if place.unsaid:
        console.print(
            f"the contents of your own files at the time of finished runs are not recorded ({len(place.unsaid)} of "
            f"{len(place.planned)}): the present contents are assumed",
            highlight=False,
            soft_wrap=True,
        )
    if command.dry_run:
        return []
    place = run_what_is_left(Program(load, simulate.main), place, jobs, command.retry_failed, command.track, console)
    results = [place.done[run.name] for run in place.planned if run.name in place.done]
    if any(result.is_finished for result in results):
        page = write_study_report(study, results, place.folder)
        console.print(f"report: {page}", markup=False, highlight=False, soft_wrap=True)
    return results


def run_study(command: Command, console: Console) -> int:
    """Do the same as `complete_study`; return the exit code."""
    return 0 if all(result.is_finished for result in complete_study(command, console)) else FAILURES


def main(arguments: list[str] | None = None) -> int:
    """Run the command; return its exit code: 0, 1 if runs failed, 2 for a user's mistake, 130 after a signal."""
    again = "interrupted; the same command continues"
    return run_tool(Command, run_study, arguments, silent=False, interrupted=lambda: again)


if __name__ == "__main__":
    start_command("study.__main__")

"""fedpeft tune SEARCH.toml: settings that suit a federation, by trials, each of which is a run.

optuna draws trials (TPE) and ends those early that fall behind at a rung of rounds (hyperband, successive halving). A
search that was killed goes on by the same command: its running trials continue their runs, and with one worker all is
as if nothing had happened. Everything is in the search's folder: search.journal (optuna's), trials/ with the runs, and
the report.
"""

from __future__ import annotations

import importlib
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import tyro
from rich.markup import escape

from fedpeft import simulate
from fedpeft.errors import RunError, require_extra
from fedpeft.machine.terminal import Console
from fedpeft.reporting import console
from fedpeft.reporting.command import (
    run_command,
    run_tool,
    start_command,
)
from fedpeft.reporting.phases import SILENCE, Heartbeat
from fedpeft.reporting.run_folder import lock_folder, make_folder, refuse_file
from fedpeft.study.__main__ import load

if TYPE_CHECKING:
    from fedpeft.tune.runner import SearchFolder
    from fedpeft.tune.search_file import Search

NOTHING = 1
"""Exit code where no trial has finished."""


@dataclass(frozen=True)
class Command:
    """Search for settings: draw trials, train them, end early those that fall behind; then make the report."""

    search: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="SEARCH.toml", help="the search's file")]
    output: Annotated[
        Path | None, tyro.conf.arg(help="folder of the results (default: beside the file, named alike)")
    ] = None
    trials: Annotated[int, tyro.conf.arg(help="number of trials; 0: that of the file; more can be added later")] = 0
    workers: Annotated[int, tyro.conf.arg(help="trials at a time; with more than one, the draws depend on timing")] = 1
    dry_run: Annotated[bool, tyro.conf.arg(help="only show the search space and the folder")] = False
    plugin: Annotated[
        tuple[str, ...],
        tyro.conf.UseAppendAction,
        tyro.conf.arg(metavar="FILE", help="parts of your own: a file, folder or installed package"),
    ] = ()


def load_all() -> None:
    """Import what every trial needs."""
    load()
    importlib.import_module("fedpeft.tune.trial")


def run_trial(arguments: list[str]) -> int:
    """Run one trial in its process; return its exit code.

    Args:
        arguments: the flags of fedpeft simulate, then the search's folder and the trial's number.
    """
    from fedpeft.tune.trial import NOT_PASSED, Reporter, TrialPruned

    *flags, folder, number = arguments

    def run() -> None:
        reporter = Reporter(Path(folder), int(number))
        config, run_folder, resume, _ = simulate.parse(flags)
        reporter.catch_up(run_folder)
        simulate.simulate(config, run_folder, resume, Console(), on_round=reporter.round_done, tested=False)

    try:
        return run_command(run)
    except TrialPruned:
        return NOT_PASSED


def show_plan(search: Search, folder: Path, trials: int, output: Console) -> None:
    """Print the plan of the search."""

    def say(text: str) -> None:
        output.print(text, highlight=False, soft_wrap=True)

    keys = search.keys
    rungs = "" if keys.pruner == "none" else f", {keys.pruner} over up to {search.rounds} rounds"
    what = f"{trials} trials by {keys.sampler}{rungs}, validation {search.objective}"
    say(f"[bold]{escape(search.name)}[/]: {what} -> {escape(str(folder))}")
    if search.budget is not None:
        say(f"budget: {search.budget}")
    if search.price is not None:
        say(f"price: {search.price}")
    found = {name: str(among) for name, among in search.space.items()}
    if search.hybrid is not None:
        found |= search.hybrid.describe()
    for name, among in found.items():
        output.print(f"  {name}: {among}", markup=False, highlight=False, soft_wrap=True)


def place_of(search: Search, folder: Path, trials: int, output: Console) -> SearchFolder:
    """Return the search in its folder, with the sizes and the number of blocks that it needs.

    Raises:
        FedpeftError: the folder is another's, its trials can't be compared, or no hybrid is within the budget.
    """
    from fedpeft.tune import store
    from fedpeft.tune.alike import check_tokens
    from fedpeft.tune.runner import SearchFolder
    from fedpeft.tune.sizes import Sizes, check_smallest, count_blocks
    from fedpeft.wiring.catalogue import build_part

    rows = Sizes(folder)
    check_tokens(search, rows.facts)
    study = store.open_study(search, folder, build_part(search.build_corner({}), "measure").validation.every)
    sizes, blocks = None, 0
    if search.needs_sizes or search.hybrid is not None:
        doing = "reading the examples and the model, whose sizes count"
        output.print(doing, highlight=False)
        with Heartbeat(lambda: output.print(f"...     {doing}", highlight=False), SILENCE):
            console.silence_libraries()
            sizes = rows
            blocks = count_blocks(search, sizes) if search.hybrid is not None else 0
            check_smallest(search, sizes, blocks)
    return SearchFolder(search, study, folder, trials, sizes, blocks)


def run_search(command: Command, output: Console) -> int:
    """Run the rest of a search and write the report; return the exit code.

    Raises:
        FedpeftError: what the user can mend.
    """
    if command.workers < 1 or command.trials < 0:
        raise RunError("FP5229 --workers must be at least 1 and --trials at least 0")
    require_extra("optuna", "tune", "a search")
    from fedpeft.tune import store
    from fedpeft.tune.search_file import read_search

    search = read_search(command.search)
    folder = command.output or search.folder
    trials = command.trials or search.keys.trials
    refuse_file(folder)
    show_plan(search, folder, trials, output)
    if command.dry_run:
        try:
            store.refuse_others(folder)
        except RunError as error:  # what is searched can be shown all the same
            output.print(f"note: {error}", markup=False, highlight=False, soft_wrap=True)
        return 0
    make_folder(folder)
    taken = f"FP5230 another process searches in {folder}; wait for it or give another --output"
    with lock_folder(folder, "search.lock", taken):
        return _run_search(search, folder, trials, command.workers, output)


def _run_search(search: Search, folder: Path, trials: int, workers: int, output: Console) -> int:
    from fedpeft.study.process import Program, Starter
    from fedpeft.tune.report import PAGE, Report
    from fedpeft.tune.runner import Conductor

    place = place_of(search, folder, trials, output)
    report = Report(search, place.study)
    try:
        Conductor(place, lambda: Starter(Program(load_all, run_trial)), workers, output).run()
    finally:
        report.write(folder)
    output.print(f"{report.extent} report: {folder / PAGE}", markup=False, highlight=False, soft_wrap=True)
    if not report.command:
        output.print("no trial has finished", highlight=False)
        return NOTHING
    output.print(f"the best settings, {report.best_trial}:", highlight=False)
    output.print(report.command, markup=False, highlight=False, soft_wrap=True)
    if report.unpriced:
        output.print(report.unpriced, markup=False, highlight=False, soft_wrap=True)
    if report.tie_note:
        output.print(f"note: {report.tie_note}", markup=False, highlight=False, soft_wrap=True)
    return 0


def main(arguments: list[str] | None = None) -> int:
    """Run the command; return its exit code: 0, 1 if no trial has finished, 2 for a mistake, 130 after a signal."""
    again = "interrupted; the same command continues"
    return run_tool(Command, run_search, arguments, silent=False, interrupted=lambda: again)


if __name__ == "__main__":
    start_command("tune.__main__")

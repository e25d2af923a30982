"""Draws and trains the trials of a search, several at a time in their own processes, and records their ends."""

from __future__ import annotations

import dataclasses
import json
import time
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from optuna.study import Study
from optuna.trial import FrozenTrial, Trial, TrialState
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from fedpeft.errors import ConfigError, FedpeftError, RunError
from fedpeft.machine import files
from fedpeft.machine.hardware import divide_gpus
from fedpeft.machine.terminal import Console
from fedpeft.reporting.console import format_duration
from fedpeft.reporting.phases import SILENCE, Heartbeat
from fedpeft.reporting.records import Records
from fedpeft.reporting.run_folder import GIVEN_UP as MARKER
from fedpeft.rounds.energy import summarize_energy
from fedpeft.study.process import Start, describe_failure
from fedpeft.study.runner import count_finished_rounds
from fedpeft.tune.sampling import NEVER_TRAINED
from fedpeft.tune.search_file import OF_ENERGY, Search
from fedpeft.tune.sizes import Sizes
from fedpeft.tune.store import (
    COST,
    GIVEN_UP,
    REASON,
    SAME_AS,
    SETTINGS,
    get_cost,
    get_trial,
    list_finished,
    list_trained,
    open_trial,
    read_settings,
)
from fedpeft.tune.trial import NOT_PASSED
from fedpeft.wiring import catalogue
from fedpeft.wiring.config import RunConfig

POLL_SECONDS = 0.2

IN_A_ROW = 100
"""Consecutive untrainable draws after which a search gives up."""

FAILURES = 3
"""Failed trials after which a search gives up if no trial has ended well."""

MEASURES = ("validation_loss", "validation_accuracy")
"""Measures on validation examples, at the round that a run keeps."""

KEPT_ALWAYS = ("uplink_bytes", "seconds", "parameters")

KEPT_KEYS = (*KEPT_ALWAYS, *OF_ENERGY, *MEASURES)
"""Keys of a finished trial that are kept as its attributes: of its summary, the energy that its clients used, and its
validation measures without a price."""


class TrialStarter(Protocol):
    """Starts processes and reports their exit codes, as `fedpeft.study.process.Starter` does."""

    def start(self, run: Start) -> None:
        """Start a run."""

    def collect_exit_codes(self) -> Mapping[Path, int]:
        """Return the exit codes of the runs that have ended since the last call, by folder."""

    def close(self) -> None:
        """End the remaining runs."""


@dataclass(frozen=True)
class TrialProcess:
    """A trial in its process."""

    number: int
    folder: Path
    log: Path
    gpus: str

    def __str__(self) -> str:
        """Return the trial's number and its progress."""
        done = count_finished_rounds(self.folder)
        return f"trial {self.number}: " + (f"{done} rounds done" if done else "getting ready")


@dataclass(frozen=True)
class SearchFolder:
    """A search in its folder.

    Attributes:
        search, study: the search, and the trials so far.
        folder: the results folder.
        trials: the number of trials to train.
        sizes: the sizes of trials; None if no budget needs them.
        blocks: the blocks of the base model; 0 if no hybrid needs them.
    """

    search: Search
    study: Study
    folder: Path
    trials: int
    sizes: Sizes | None
    blocks: int

    def run_of(self, number: int) -> Path:
        """Return the folder of a trial's run."""
        return self.folder / "trials" / f"{number:04}"

    def config(self, trial: Trial) -> RunConfig:
        """Draw the settings of a trial's run.

        Raises:
            ConfigError: it would train nothing or exceed the budget, or its settings do not fit together.
        """
        config = self.search.config(lambda name, among: among.suggest(trial, name), self.blocks)
        if config is None:
            raise ConfigError("FP1464 no method in any block")
        if self.sizes is not None:
            try:
                size = self.sizes.of(config)
            except FedpeftError as error:
                raise ConfigError(str(error)) from error
            known = dataclasses.asdict(size)
            trial.set_user_attr("size", known)
            if self.search.price is not None:
                sign = 1.0 if self.search.keys.objective == "loss" else -1.0
                trial.set_user_attr(COST, sign * self.search.price.compute(known))
            if not size.is_within(self.search.budget):
                raise ConfigError(f"FP1465 {size}: over the budget of {self.search.budget}")
        return config

    def read_value(self, number: int) -> tuple[float, Mapping[str, Any]]:
        """Return the objective of a finished run at the round that it keeps, and what is kept of it (`KEPT_KEYS`).

        Raises:
            RunError: that round's state was not validated or has diverged, a file can't be read, or the run used more
                energy than was predicted and exceeds the budget.
        """
        folder, objective = self.run_of(number), self.search.keys.objective
        try:
            summary = files.read_json(folder / "summary.json")
            kept = summary["kept_round"]
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise RunError(f"FP5231 {folder} contains no readable summary.json: {error}") from error
        lines = {line["round"]: line for line in Records(folder).read("rounds.jsonl")}
        for measure in MEASURES:
            at_kept = lines.get(kept, {}).get(measure.removeprefix("validation_"))  # round 0 may have no line
            summary[measure] = summary.get(measure) if at_kept is None else at_kept
        value = summary[f"validation_{objective}"]
        used = summarize_energy(Records(folder).read("clients.jsonl"), lines.values(), pue=1.0) or {}
        summary |= {unit: used.get(unit) for unit in OF_ENERGY}
        self._check_energy(folder, summary)
        if value is None:
            raise RunError(
                f"FP5232 the run in {folder} keeps the state after round {kept}, which has no finite validation "
                f"{objective}: the round was not validated, or the run has diverged"
            )
        return float(value), summary

    def _check_energy(self, folder: Path, summary: Mapping[str, Any]) -> None:
        """Refuse the result of a run that used more energy than the budget allows.

        Raises:
            RunError: names the unit and both numbers.
        """
        budget = self.search.budget
        for unit, most in budget.most.items() if budget else ():
            if unit in OF_ENERGY and (summary[unit] or 0.0) > most:
                raise RunError(
                    f"FP5555 the run in {folder} used {summary[unit]:,.4g} {unit}, over the budget of {most:,} {unit}, "
                    "though fewer were predicted; its traffic or its clients' own measurements exceed the prediction"
                )


class Conductor:
    """A loop that keeps `workers` trials going until there are enough.

    Args:
        place: the search in its folder.
        starts: creates the object that starts processes.
        workers: the number of trials at a time.
        console: prints the trials as they end.

    Args:
        place: the search in its folder.
        starts: makes what starts their processes.
        workers: at a time.
        console: where they are told of.
    """

    def __init__(self, place: SearchFolder, starts: Callable[[], TrialStarter], workers: int, console: Console) -> None:
        """Count the existing trials and prepare the progress bar; `run` starts the trials."""
        self.place, self.study, self.starts, self.workers = place, place.study, starts, workers
        self.running: list[TrialProcess] = []
        self.shares = divide_gpus(workers)
        known = list_trained(self.study)
        self.begun, self.done = len(known), sum(t.state.is_finished() for t in known)
        self.warm = self.done > 0
        self.doing = "starting"
        self.progress = Progress(
            TextColumn("{task.description}", markup=False),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("trials"),
            TimeElapsedColumn(),
            console=console,
            transient=True,
            disable=not console.is_terminal,
        )
        self.task = self.progress.add_task("search", total=place.trials)
        self.heartbeat = Heartbeat(self._print_heartbeat, SILENCE) if not console.is_terminal else None

    def run(self) -> None:
        """Train the missing trials.

        Raises:
            ConfigError: `IN_A_ROW` consecutive draws can't be trained.
            RunError: all trials fail, or the disk can't be written.
        """
        interrupted = [t.number for t in self.study.get_trials(deepcopy=False, states=(TrialState.RUNNING,))]
        if not interrupted and self.begun >= self.place.trials:
            return
        with ExitStack() as held:
            held.enter_context(self.progress)
            if self.heartbeat is not None:
                held.enter_context(self.heartbeat)
            starter = self.starts()
            held.callback(starter.close)
            while self._fill(interrupted, starter) or self.running:
                self._collect(starter.collect_exit_codes())
                self._show()
                time.sleep(POLL_SECONDS)

    def _fill(self, interrupted: list[int], starter: TrialStarter) -> bool:
        """Begin trials while workers are free; return whether there are more to begin."""
        while interrupted or self.begun < self.place.trials:
            if len(self.running) >= self.workers or (self.running and not self._is_prepared()):
                return True
            if interrupted:
                self._go_on(interrupted.pop(0), starter)
            else:
                self._check_row()
                self._begin(self.study.ask(), starter)
        return False

    def _is_prepared(self) -> bool:
        """Return whether a trial has finished the work that trials share, such as tokenization."""
        self.warm = self.warm or any((r.folder / "rounds.jsonl").exists() for r in self.running)
        return bool(self.warm)

    def _check_row(self) -> None:
        last = self.study.get_trials(deepcopy=False)[-IN_A_ROW:]
        reasons = [t.user_attrs.get(NEVER_TRAINED) for t in last]
        if len(reasons) == IN_A_ROW and all(reasons):
            raise ConfigError(
                f"FP1466 {self.place.search.path}: none of {IN_A_ROW} trials in a row could be trained. The "
                f"last reason: {reasons[-1]}; raise the budget, or narrow the ranges"
            )

    # ---------------------------------------------------------------------------------------------------- one trial

    def _go_on(self, number: int, starter: TrialStarter) -> None:
        """Resume a trial that was running when the search was interrupted."""
        trial = get_trial(self.study, number)
        if GIVEN_UP in trial.user_attrs:
            self._record_end(number, NOT_PASSED)
        elif (self.place.run_of(number) / "summary.json").is_file():
            self._record_end(number, 0)
        else:
            self._begin(trial, starter)

    def _begin(self, trial: Trial, starter: TrialStarter) -> None:
        self.doing = f"trial {trial.number}: drawing it"
        try:
            config = self.place.config(trial)
        except ConfigError as error:
            trial.set_user_attr(NEVER_TRAINED, str(error))
            self.study.tell(trial.number, state=TrialState.PRUNED)
            self._say(f"trial {trial.number}  not trained: {escape(str(error))}")
            return
        settings = dataclasses.asdict(config)
        self.begun += SETTINGS not in trial.user_attrs
        twin = next(
            (t for t in list_trained(self.study) if t.state.is_finished() and read_settings(t) == settings), None
        )
        trial.set_user_attr(SETTINGS, json.dumps(settings))
        if twin is not None:
            self._repeat(trial, twin)
            return
        folder = self.place.run_of(trial.number)
        path = folder.with_suffix(".toml")
        with files.raise_write_errors(path):
            path.parent.mkdir(exist_ok=True)
            files.replace(path, catalogue.format_toml(config).encode())
        taken = [r.gpus for r in self.running]
        running = TrialProcess(
            trial.number, folder, folder.with_suffix(".log"), min(self.shares, key=taken.count, default="")
        )
        flags = (str(self.place.folder.absolute()), str(trial.number))
        starter.start(Start(path, folder, running.log, flags, running.gpus))
        self.running.append(running)

    def _repeat(self, trial: Trial, twin: FrozenTrial) -> None:
        """Record a trial whose settings equal those of an earlier one, with the earlier result."""
        trial.set_user_attr(SAME_AS, twin.number)
        for name in (*KEPT_KEYS, GIVEN_UP, REASON):
            if name in twin.user_attrs:
                trial.set_user_attr(name, twin.user_attrs[name])
        for round_number, value in twin.intermediate_values.items():
            trial.report(value, round_number)
        self.study.tell(trial.number, twin.value if twin.state == TrialState.COMPLETE else None, twin.state)
        self.done += 1
        self._say(f"trial {trial.number}  the same run as trial {twin.number}")

    def _collect(self, ended: Mapping[Path, int]) -> None:
        for running in [r for r in self.running if r.folder in ended]:
            self.running.remove(running)
            self._record_end(running.number, ended[running.folder])

    def _record_end(self, number: int, code: int) -> None:
        """Record a trial whose process has ended with this exit code."""
        trial = open_trial(self.study, number)
        self.done += 1
        if code == NOT_PASSED:
            self.study.tell(number, state=TrialState.PRUNED)
            last = self.study.get_trials(deepcopy=False)[number]
            folder = self.place.run_of(number)
            if folder.is_dir():
                with files.raise_write_errors(folder):
                    files.replace(folder / MARKER, f"after round {last.last_step}\n".encode())
            self._say(f"trial {number}  {self._describe_trial(last)}, given up after round {last.last_step}")
            return
        folder = self.place.run_of(number)
        try:
            if code != 0:
                raise RunError(describe_failure(code, folder.with_suffix(".log")))
            value, summary = self.place.read_value(number)
        except RunError as error:
            trial.set_user_attr(REASON, str(error))
            self.study.tell(number, state=TrialState.FAIL)
            self._say(f"trial {number}  [bold red]failed:[/] {escape(str(error))}")
            self._check_failures(error)
            return
        for name in KEPT_KEYS:
            if name in KEPT_ALWAYS or summary.get(name) is not None:
                trial.set_user_attr(name, summary.get(name))
        self.study.tell(number, value + get_cost(trial))
        best = list_finished(self.study)[0]
        comparison = "the best so far" if best.number == number else f"best {best.value:.4f}: trial {best.number}"
        seconds = f"  {format_duration(summary['seconds'])}" if summary.get("seconds") else ""
        self._say(
            f"trial {number}  {self._describe_trial(self.study.get_trials(deepcopy=False)[number])}  "
            f"({comparison}){seconds}"
        )

    def _check_failures(self, error: RunError) -> None:
        states = [t.state for t in list_trained(self.study) if t.state.is_finished()]
        if len(states) >= FAILURES and all(state == TrialState.FAIL for state in states):
            raise RunError(f"FP5233 all {len(states)} trials have failed, the last one: {error}")

    def _describe_trial(self, trial: FrozenTrial) -> str:
        """Return a trial's value and its drawn settings as text."""
        value = trial.value if trial.value is not None else float("nan")
        joules = trial.user_attrs.get("joules")
        used = "" if joules is None else f"  {format_joules(joules)}"
        return f"{self.place.search.objective} {value:.4f}{used}  {escape(format_draws(trial))}"

    # --------------------------------------------------------------------------------------------------- what is seen

    def _say(self, text: str) -> None:
        if self.heartbeat is not None:
            self.heartbeat.reset()
        self.doing = "looking for the next trial"
        self.progress.console.print(text, highlight=False, soft_wrap=True)

    def _print_heartbeat(self) -> None:
        self.progress.console.print(f"...     {self._status_text}", highlight=False, soft_wrap=True)

    @property
    def _status_text(self) -> str:
        return "; ".join(map(str, list(self.running))) or self.doing

    def _show(self) -> None:
        self.progress.update(self.task, completed=self.done, description=self._status_text[:60])


def format_joules(joules: float) -> str:
    """Return joules as readable text."""
    return f"{joules / 1e3:,.3g} kJ" if joules >= 1e3 else f"{joules:.3g} J"


def format_draws(trial: FrozenTrial) -> str:
    """Return a trial's drawn values as text, with its blocks as one list."""
    words: list[str] = []
    blocks: dict[str, list[str]] = {}
    for name, value in trial.params.items():
        owner, marker, index = name.rpartition("block.")
        if marker:
            blocks.setdefault(owner, []).extend([index] if value else [])
        else:
            words.append(f"{name}={value:.3g}" if isinstance(value, float) else f"{name}={value}")
    words += [f"{owner}blocks={'/'.join(indices) or 'none'}" for owner, indices in blocks.items()]
    return ", ".join(words)

"""What is kept of a search: optuna's study, in a journal in the search's folder, which optuna's own tools read.

Every process writes lines of its own to it. A kill leaves no lock behind, and half a line is dropped.
"""

from __future__ import annotations

import json
import os
from functools import cache
from pathlib import Path
from typing import Any

import optuna
from filelock import FileLock
from optuna.samplers import RandomSampler
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend, JournalFileOpenLock
from optuna.study import Study
from optuna.trial import FrozenTrial, Trial, TrialState

from fedpeft.config import read_config
from fedpeft.errors import RunError
from fedpeft.machine import files
from fedpeft.reporting.run_folder import SEARCHS_JOURNAL as JOURNAL
from fedpeft.reporting.user_files import RECORD, find_changed_file, find_own_files, load_record, select_file_settings
from fedpeft.tuning.sampling import NEVER_TRAINED, PRUNERS, SeededSampler
from fedpeft.tuning.search_file import Search

NAME = "search"
"""Of the study in its journal: hyperband counts on it, so it is the same in all searches."""

PLUGINS = "plugins"
"""The term that says what code a search uses from outside."""

TERMS, SETTINGS, GIVEN_UP, REASON, SAME_AS = "terms", "settings", "given up", "reason", "same as"
"""Attributes: of the study what its processes must know; of trials the run's settings, the round of the rung at which
one ended, why one failed, and the trial whose run it would have repeated."""


class Lock(JournalFileOpenLock):
    """Lets one process at a time write; the system releases it where that one is killed. optuna's own stay for half a
    minute."""

    def __init__(self, path: Path) -> None:
        self._lock = FileLock(path)

    def acquire(self) -> bool:
        """Wait for it."""
        self._lock.acquire()
        return True

    def release(self) -> None:
        """Let others write."""
        self._lock.release()


class Backend(JournalFileBackend):
    """The journal in `folder`; what a full disk cuts off is taken back, since other processes go on writing."""

    def __init__(self, folder: Path) -> None:
        self._journal, self._turn = folder / JOURNAL, Lock(folder / f"{JOURNAL}.lock")
        super().__init__(str(self._journal), self._turn)

    def append_logs(self, logs: list[dict[str, Any]]) -> None:
        """A line for each.

        Raises:
            RunError: the disk is full or can't be written.
        """
        lines = "".join(json.dumps(log, separators=(",", ":")) + "\n" for log in logs)
        with files.raise_write_errors(self._journal):
            self._turn.acquire()
            try:
                files.append(self._journal, lines.encode())
            finally:
                self._turn.release()


def _open_storage(folder: Path) -> JournalStorage:
    return JournalStorage(Backend(folder))


def _repair(journal: Path) -> None:
    """Drop half a line at the end, behind which nothing could be read."""
    if journal.is_file():
        content = journal.read_bytes()
        if content and not content.endswith(b"\n"):
            with files.raise_write_errors(journal):
                os.truncate(journal, content.rfind(b"\n") + 1)


def refuse_others(folder: Path) -> None:
    """RunError where a folder holds something else than a search."""
    if folder.is_dir() and not (folder / JOURNAL).exists() and any(not _is_own(path) for path in folder.iterdir()):
        raise RunError(f"FP5234 {folder} is not empty and holds no search; give another --output")


def open_study(search: Search, folder: Path, every: int) -> Study:
    """The study of a search in its folder, made where there is none; no trial ends early by it.

    Args:
        search: the search.
        folder: of the results; exists.
        every: rounds between validations.

    Raises:
        RunError: the folder holds another search, trials of a plugin or of rows that have changed since, or something
            else.
    """
    journal = folder / JOURNAL
    refuse_others(folder)
    keys = search.keys
    try:
        _repair(journal)
        study = optuna.create_study(
            storage=_open_storage(folder),
            study_name=NAME,
            direction="minimize" if keys.objective == "loss" else "maximize",
            sampler=SeededSampler(keys.sampler, keys.seed, keys.startup),
            pruner=optuna.pruners.NopPruner(),
            load_if_exists=True,
        )
        known = study.user_attrs.get(TERMS)
    except RunError:  # it can't be written
        raise
    except Exception as error:  # whatever optuna makes of a file that is none of its own
        raise RunError(f"FP5235 {journal} is no journal of a search ({error}); give another --output") from error
    terms = {
        "identity": search.identity,
        "pruner": keys.pruner,
        "first": search.get_first_rung(every),
        "most": search.rounds,
        "reduction": keys.reduction,
        "objective": keys.objective,
    }
    agreed = _check_terms(search, folder, known, terms)
    if known != agreed:
        study.set_user_attr(TERMS, agreed)
    _refuse_changed(folder)
    return study


def _refuse_changed(folder: Path) -> None:
    """See that what the trials' runs were made of is what is there.

    Raises:
        RunError: it has changed.
    """
    now = cache(find_own_files)  # trials share it
    for run in sorted(path.parent for path in folder.glob(f"trials/*/{RECORD}")):
        config = read_config(run / "config.toml", of_run=True)
        if name := find_changed_file(load_record(run), now(select_file_settings(config))):
            raise RunError(
                f"FP5236 {folder} holds trials made of {name} as it was before it changed; put that back, or give "
                "another --output"
            )


def _check_terms(search: Search, folder: Path, known: dict[str, Any] | None, terms: dict[str, Any]) -> dict[str, Any]:
    """The terms that a search goes on by: those of its file, and the plugins that it has used so far.

    Raises:
        RunError: it was begun by others.
    """
    begun = dict(known or terms)
    recorded, now = begun.pop(PLUGINS, {}), search.plugins
    if begun != terms:
        raise RunError(
            f"FP5237 {folder} holds another search than {search.path} describes; put the file back as it was, or give "
            "another --output"
        )
    for source, was in recorded.items():
        if now.get(source, was) != was:
            raise RunError(
                f"FP5238 {folder} holds trials made with the plugin {source} as it was before it changed; put that "
                "back, or give another --output"
            )
    return {**terms, PLUGINS: recorded | now}


def _is_own(path: Path) -> bool:
    """Whether a kill before the journal was there may have left this."""
    return path.name in ("search.lock", f"{JOURNAL}.lock", "trials")


def get_trial(study: Study, number: int) -> Trial:
    """A trial that was begun, to go on with."""
    frozen = study.get_trials(deepcopy=False)[number]
    return Trial(study, frozen._trial_id)


def open_trial(study: Study, number: int) -> Trial:
    """A trial to write to, for which nothing is drawn any more."""
    return get_trial(optuna.load_study(study_name=NAME, storage=study._storage, sampler=RandomSampler()), number)


def open_running_trial(folder: Path, number: int) -> tuple[Trial, dict[str, Any]]:
    """A trial in its own process, which ends at rungs, and the terms of its search."""
    study = optuna.load_study(study_name=NAME, storage=_open_storage(folder), sampler=RandomSampler())
    terms: dict[str, Any] = study.user_attrs[TERMS]
    study.pruner = PRUNERS[terms["pruner"]](terms["first"], terms["most"], terms["reduction"])
    return get_trial(study, number), terms


def list_trained(study: Study) -> list[FrozenTrial]:
    """The trials that were trained, are being trained or failed in it: without those that never were."""
    return [
        trial
        for trial in study.get_trials(deepcopy=False)
        if NEVER_TRAINED not in trial.user_attrs and SETTINGS in trial.user_attrs
    ]


def list_finished(study: Study) -> list[FrozenTrial]:
    """Those that ended at no rung, the best first."""
    sign = -1 if study.direction == optuna.study.StudyDirection.MAXIMIZE else 1
    done = [t for t in list_trained(study) if t.state == TrialState.COMPLETE]
    return sorted(done, key=lambda t: (sign * float(t.value or 0.0), t.number))


def read_settings(trial: FrozenTrial) -> dict[str, Any]:
    """The settings of a trial's run."""
    found: dict[str, Any] = json.loads(trial.user_attrs[SETTINGS])
    return found

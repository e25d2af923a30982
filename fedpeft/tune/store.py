"""The storage of a search: an optuna study in a journal in the search's folder, which optuna's tools can read.

Every process appends its own lines to the journal. A killed process leaves no lock behind, and an incomplete line is
dropped.
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

from fedpeft.errors import RunError
from fedpeft.machine import files
from fedpeft.reporting.run_folder import SEARCHS_JOURNAL as JOURNAL
from fedpeft.reporting.user_files import RECORD, find_changed_file, find_own_files, load_record, select_file_settings
from fedpeft.tune.sampling import NEVER_TRAINED, PRUNERS, SeededSampler
from fedpeft.tune.search_file import Search
from fedpeft.wiring.config import read_config

NAME = "search"
"""Name of the study in its journal. Hyperband's brackets depend on it, so all searches use the same name."""

PLUGINS = "plugins"
"""The term that records the plugins of a search."""

TERMS, SETTINGS, GIVEN_UP, REASON, SAME_AS, COST = "terms", "settings", "given up", "reason", "same as", "cost"
"""Attributes: the study's terms, which its processes need, and a trial's settings. Others are the round of the rung at
which it was given up, the reason of its failure, the earlier trial with the same settings, and what its price adds to
its values."""


class Lock(JournalFileOpenLock):
    """A lock that lets one process at a time write; the system releases it if that process is killed.

    optuna's own locks remain for half a minute after a kill.
    """

    def __init__(self, path: Path) -> None:
        """Hold the lock file at `path`, without acquiring it."""
        self._lock = FileLock(path)

    def acquire(self) -> bool:
        """Wait for the lock, and return True."""
        self._lock.acquire()
        return True

    def release(self) -> None:
        """Release the lock, so that other processes can write."""
        self._lock.release()


class Backend(JournalFileBackend):
    """The journal in `folder`; a write that a full disk cuts off is undone, since other processes go on writing."""

    def __init__(self, folder: Path) -> None:
        """Open the journal of a search's folder with its lock."""
        self._journal, self._turn = folder / JOURNAL, Lock(folder / f"{JOURNAL}.lock")
        super().__init__(str(self._journal), self._turn)

    def append_logs(self, logs: list[dict[str, Any]]) -> None:
        """Append one line per log to the journal.

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
    """Remove an incomplete last line, which would make later lines unreadable."""
    if journal.is_file():
        content = journal.read_bytes()
        if content and not content.endswith(b"\n"):
            with files.raise_write_errors(journal):
                os.truncate(journal, content.rfind(b"\n") + 1)


def refuse_others(folder: Path) -> None:
    """Refuse a folder that contains something else than a search.

    Raises:
        RunError: the folder is not empty and has no journal of a search.
    """
    if folder.is_dir() and not (folder / JOURNAL).exists() and any(not _is_own(path) for path in folder.iterdir()):
        raise RunError(f"FP5234 {folder} is not empty and contains no search; give another --output")


def open_study(search: Search, folder: Path, every: int) -> Study:
    """Open the study of a search in its folder, and create it if it does not exist; it prunes no trial.

    Args:
        search: the search.
        folder: the results folder, which exists.
        every: the number of rounds between validations.

    Raises:
        RunError: the folder contains another search, trials with a changed plugin or changed files, or other files.
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
    except RunError:  # the journal can't be written
        raise
    except Exception as error:  # optuna raises various errors for a file that is not a journal
        raise RunError(f"FP5235 {journal} is not the journal of a search ({error}); give another --output") from error
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
    """Raise if the user's files have changed since trials used them.

    Raises:
        RunError: a file has changed. The message names it.
    """
    now = cache(find_own_files)  # trials share it
    for run in sorted(path.parent for path in folder.glob(f"trials/*/{RECORD}")):
        config = read_config(run / "config.toml", of_run=True)
        if name := find_changed_file(load_record(run), now(select_file_settings(config))):
            raise RunError(
                f"FP5236 {folder} holds trials made with an earlier version of {name}; restore that version, or "
                "give another --output"
            )


def _check_terms(search: Search, folder: Path, known: dict[str, Any] | None, terms: dict[str, Any]) -> dict[str, Any]:
    """Return the terms of a search: those of its file, and the plugins that it has used so far.

    Raises:
        RunError: the folder's search began with other terms or other plugin versions.
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
                f"FP5238 {folder} holds trials made with an earlier version of the plugin {source}; restore "
                "that version, or give another --output"
            )
    return {**terms, PLUGINS: recorded | now}


def _is_own(path: Path) -> bool:
    """Return whether a path may remain from a kill before the journal existed."""
    return path.name in ("search.lock", f"{JOURNAL}.lock", "trials")


def get_trial(study: Study, number: int) -> Trial:
    """Return a trial that has begun, to continue it."""
    frozen = study.get_trials(deepcopy=False)[number]
    return Trial(study, frozen._trial_id)


def open_trial(study: Study, number: int) -> Trial:
    """Return a trial for writing; its parameters are already drawn."""
    return get_trial(optuna.load_study(study_name=NAME, storage=study._storage, sampler=RandomSampler()), number)


def open_running_trial(folder: Path, number: int) -> tuple[Trial, dict[str, Any]]:
    """Return a trial with its pruner, for the trial's own process, and the terms of its search."""
    study = optuna.load_study(study_name=NAME, storage=_open_storage(folder), sampler=RandomSampler())
    terms: dict[str, Any] = study.user_attrs[TERMS]
    study.pruner = PRUNERS[terms["pruner"]](terms["first"], terms["most"], terms["reduction"])
    return get_trial(study, number), terms


def get_cost(trial: Trial | FrozenTrial) -> float:
    """Return what a trial's price adds to its values; negative if larger values are better; 0: there is no price."""
    return float(trial.user_attrs.get(COST, 0.0))


def list_trained(study: Study) -> list[FrozenTrial]:
    """Return the trials whose training began: finished, pruned, failed or running."""
    return [
        trial
        for trial in study.get_trials(deepcopy=False)
        if NEVER_TRAINED not in trial.user_attrs and SETTINGS in trial.user_attrs
    ]


def list_finished(study: Study) -> list[FrozenTrial]:
    """Return the trials that ended at no rung, the best first."""
    sign = -1 if study.direction == optuna.study.StudyDirection.MAXIMIZE else 1
    done = [t for t in list_trained(study) if t.state == TrialState.COMPLETE]
    return sorted(done, key=lambda t: (sign * float(t.value or 0.0), t.number))


def read_settings(trial: FrozenTrial) -> dict[str, Any]:
    """Return the settings of a trial's run."""
    settings: dict[str, Any] = json.loads(trial.user_attrs[SETTINGS])
    return settings

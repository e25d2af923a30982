"""The folder of a run: a new one, or that of a run to resume; locked against other processes.

It is removed again if nothing was trained.
"""

from __future__ import annotations

import dataclasses
import shlex
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from fedpeft.errors import ConfigError, RunError
from fedpeft.parts import Family
from fedpeft.parts.families import DATASETS, HOOKS, MEASUREMENTS
from fedpeft.parts.spec import split_outside_parentheses
from fedpeft.wiring.config import RunConfig, build_config, read_config


def load_default_settings(file: Path | None, resume: Path | None) -> RunConfig:
    """Return the settings that flags override: those of the run to resume, of the TOML file, or the defaults.

    Raises:
        ConfigError: the file has a wrong setting, or both are given.
        RunError: there is no run in the folder `resume`.
    """
    if resume is not None:
        if file is not None:
            raise ConfigError(f"FP1373 a resumed run keeps its settings, but {file} was given; leave it out")
        file = resume / "config.toml"
        if not file.is_file():
            raise RunError(
                f"FP5176 {resume} holds no run to resume: there is no config.toml in it; "
                f"start a new run with --output {resume}"
            )
    return read_config(file, resume is not None, of_run=resume is not None) if file else RunConfig()


def resolve_settings(
    run: RunConfig, default: RunConfig, output: Path | None, resume: Path | None
) -> tuple[RunConfig, Path]:
    """Return the checked settings, and the run's folder: the one to resume, `output`, or a new one under runs/.

    Raises:
        ConfigError: a setting is wrong.
        RunError: a folder can't be used, or a resumed run gets other settings.
    """
    config = build_config(dataclasses.asdict(run), "the command line")
    if resume is not None:
        changed = [f.name for f in dataclasses.fields(RunConfig) if getattr(default, f.name) != getattr(config, f.name)]
        if changed or output:
            raise RunError(
                f"FP5177 a resumed run keeps its settings and folder, but {', '.join(changed) or 'output'} was given; "
                "start a new run to change it"
            )
        return config, resume
    from fedpeft.wiring import early_checks  # which would delay --help

    early_checks.check(config)
    name = (
        f"{datetime.now():%Y%m%d-%H%M%S}-{config.dataset.split(':')[0].split('(')[0]}-{config.strategy.split('(')[0]}"
    )
    folder = output or Path("runs") / name
    refuse_file(folder)
    if folder.is_dir() and not _is_unused(folder):
        raise RunError(
            f"FP5178 {folder} exists and is not empty; give another --output, or continue it with --resume {folder}"
        )
    return config, folder


def _is_unused(folder: Path) -> bool:
    """Return whether a folder is empty, or has only files of a run that was killed before it wrote config.toml."""
    return all(f.name in (".lock", "serve.jsonl", "roster.json") or f.suffix == ".partial" for f in folder.iterdir())


def refuse_file(folder: Path) -> None:
    """Reject a `folder` to write to if there is a file in its place.

    Raises:
        RunError: there is a file, or the name is not a legal one.
    """
    try:
        taken = folder.lstat() is not None and not folder.is_dir()
    except (FileNotFoundError, NotADirectoryError, PermissionError):
        return  # `make_folder` raises the error
    except (OSError, ValueError) as error:  # a name of too many bytes, or with a NUL
        reason = error.strerror if isinstance(error, OSError) else error
        raise RunError(f"FP5179 {str(folder)[:60]!r} can't name a folder: {reason}; give another --output") from None
    if taken:
        raise RunError(f"FP5180 {folder} is a file, and --output names a folder; give another --output")


def resolve_paths(config: RunConfig) -> RunConfig:
    """Return the settings with absolute paths of files and folders, so that they hold from everywhere.

    Raises:
        ConfigError: the dataset is unknown.
    """
    from fedpeft.models.base_model import find_local_folder

    def absolute(path: str) -> str:
        there = Path(path).expanduser()
        return str(there.absolute()) if there.exists() else path

    return dataclasses.replace(
        replace_paths(config, absolute), model=str(find_local_folder(config.model) or config.model)
    )


def replace_paths(config: RunConfig, path: Callable[[str], str]) -> RunConfig:
    """Return the settings with changed files and folders, except the model's.

    The order is: those of the examples, in the order of their text; those of measurements and hooks; the file of
    clients.

    Args:
        config: the settings.
        path: returns the new path.

    Raises:
        ConfigError: the dataset is unknown.
    """
    return dataclasses.replace(
        config,
        dataset=DATASETS.replace_paths(config.dataset, path),
        measure=_replace_measure_paths(MEASUREMENTS, config.measure, path),
        hook=_replace_measure_paths(HOOKS, config.hook, path),
        clients=path(config.clients) if isinstance(config.clients, str) else config.clients,
    )


def _replace_measure_paths(family: Family[Any], text: str, path: Callable[[str], str]) -> str:
    """Return the text of several parts of a family, joined by +, with changed files and folders."""
    parts = split_outside_parentheses(text, "+")
    changed = [family.replace_paths(part, path) if part else part for part in parts]
    return text if changed == parts else " + ".join(changed)


SERVERS_OPTIONS = "serve.toml"
"""A file in folders of `fedpeft serve` that simulations do not have."""


SEARCHS_JOURNAL = "search.journal"
"""A file in folders of `fedpeft tune`."""

GIVEN_UP = "given_up.txt"
"""A file in the folder of a search's trial that has not passed a rung."""


def describe_unfinished(folder: Path) -> str:
    """Return a sentence on how to continue the run in `folder`, which has no results, or why that is impossible."""
    if (folder / GIVEN_UP).is_file():
        anew = shlex.quote(str(folder.with_suffix(".toml")))
        return (
            f"FP5181 {folder} holds a trial that its search stopped at a rung; choose a finished one, or train "
            f"it completely: fedpeft simulate {anew}"
        )
    return f"FP5182 {folder} holds an unfinished run; continue it with: {resume_command(folder)}"


def resume_command(folder: Path) -> str:
    """Return the command that continues the run in `folder`; a server continues as a server."""
    module = "serve" if (folder / SERVERS_OPTIONS).exists() else "simulate"
    return f"fedpeft {module} --resume {shlex.quote(str(folder))}"


def refuse_simulations_run(folder: Path) -> None:
    """Reject the run of a simulation, which has no clients to wait for.

    Raises:
        RunError: the folder is a simulation's.
    """
    begun = (folder / "config.toml").is_file()
    if begun and not any((folder / name).exists() for name in (SERVERS_OPTIONS, "serve.jsonl")):
        raise RunError(
            f"FP5183 {folder} is the run of a simulation, not of a server; continue it with: {resume_command(folder)}"
        )


def refuse_servers_run(folder: Path) -> None:
    """Reject the run of a server, whose clients hold the examples.

    Raises:
        RunError: the folder is a server's.
    """
    if (folder / SERVERS_OPTIONS).exists():
        raise RunError(
            f"FP5184 {folder} is the run of a server, whose clients hold the examples; continue it with: "
            f"{resume_command(folder)}"
        )


def make_folder(folder: Path) -> None:
    """Create the run's folder.

    Raises:
        RunError: it can't be created.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise RunError(
            f"FP5185 the run's folder {folder} can't be made: {error.strerror}; give another --output"
        ) from error


@contextmanager
def remove_on_error(folder: Path, kept: Callable[[], bool]) -> Iterator[None]:
    """Remove a new run's folder after an error, unless something in it is `kept`.

    A folder is new if it was missing or empty before.
    """
    new = not folder.exists() or not any(folder.iterdir())
    try:
        yield
    except BaseException:
        if new and not kept():
            shutil.rmtree(folder, ignore_errors=True)
        raise


@contextmanager
def lock_folder(folder: Path, lock: str = ".lock", taken: str = "") -> Iterator[None]:
    """Lock a folder, by default a run's, against a second process that would write there, too.

    Args:
        folder: an existing folder.
        lock: name of the lock file.
        taken: the error if another process has the lock; empty: that of a run.

    Raises:
        RunError: another process has the lock, or the folder can't be written or locked.
    """
    held = FileLock(folder / lock)
    try:
        held.acquire(blocking=False)
    except Timeout:
        told = taken or f"FP5186 another process works on the run in {folder}; wait for its end, or stop it"
        raise RunError(told) from None
    except (OSError, NotImplementedError) as error:  # the latter: a file system without locks
        reason = error.strerror if isinstance(error, OSError) else error
        raise RunError(f"FP5187 the folder {folder} can't be written: {reason}") from error
    try:
        yield
    finally:
        held.release()

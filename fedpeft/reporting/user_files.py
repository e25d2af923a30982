"""Files and folders of a user's own that a run is made of, by what is in them: what has changed since is found out."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from fedpeft.config import RunConfig
from fedpeft.errors import RunError
from fedpeft.machine import cache, files
from fedpeft.models.base_model import find_local_folder
from fedpeft.reporting.records import Records
from fedpeft.reporting.run_folder import replace_paths
from fedpeft.wiring.profiles import PROFILES

RECORD = "made_of.json"
"""In a run's folder. Confidential under privacy: who knows all rows but one could try out which that one is."""

MODEL_FILES = ("*.safetensors", "config.json")
"""What a base model is told apart by, in its folder."""


@dataclass(frozen=True)
class OwnFile:
    """What a configuration names: a file or folder of the user's own, or what is none.

    Attributes:
        file: as it was named.
        sha256: of its content; None: it is none, or none that can be read.
    """

    file: str
    sha256: str | None


MadeOf = tuple[OwnFile, ...]
"""The base model, and after it what other settings name (`fedpeft.reporting.run_folder.replace_paths`), wherever its
files lie.
"""


def select_file_settings(config: RunConfig) -> RunConfig:
    """The settings of a run that name files of the user's own, and the others by default."""
    return RunConfig(
        dataset=config.dataset, model=config.model, measure=config.measure, hook=config.hook, clients=config.clients
    )


def find_own_files(config: RunConfig, model_key: str = "", folder: Path | None = None) -> MadeOf:
    """What is there now of what a run's settings name.

    Args:
        config: the settings.
        model_key: of the model, where it is known.
        folder: of the run, where it has begun: its copy of the file of clients is what it goes on by.

    Raises:
        ConfigError: unknown data set.
    """
    found: list[str] = []

    def noted(path: str) -> str:
        found.append(path)
        return path

    replace_paths(config, noted)
    own, lies = find_local_folder(config.model), {}
    key = None if own is None else model_key or cache.hash_files(own, MODEL_FILES)
    if isinstance(config.clients, str) and folder is not None and (folder / PROFILES).exists():
        lies[config.clients] = folder / PROFILES
    return OwnFile(config.model, key), *(OwnFile(p, _hash(lies.get(p, Path(p).expanduser()))) for p in found)


def _hash(path: Path) -> str | None:
    """SHA-256 of a file; of a folder, of the names and contents of all files in it that count."""
    try:
        if not path.is_dir():
            with open(files.check_regular_file(path), "rb") as file:
                return hashlib.file_digest(file, "sha256").hexdigest()
        total = hashlib.sha256()
        for inner in sorted(p for p in path.rglob("*") if _is_data_file(p.relative_to(path)) and p.is_file()):
            total.update(f"{inner.relative_to(path).as_posix()}\0{_hash(inner)}\n".encode("utf-8", "surrogateescape"))
        return total.hexdigest()
    except (OSError, ValueError):  # ValueError: a name that no file can have
        return None


def _is_data_file(path: Path) -> bool:
    """Return whether rows are read from it: it is not hidden, and no cache of the `datasets` library."""
    hidden = any(name.startswith(".") for name in path.parts)
    return not hidden and not (path.name.startswith("cache-") and path.suffix == ".arrow")


def record(records: Records, found: MadeOf) -> None:
    """Write down what a run is made of, where anything is the user's own.

    Raises:
        RunError: the disk is full or can't be written.
    """
    if any(own.sha256 for own in found):
        records.write_json(RECORD, {"files": [asdict(own) for own in found]})


def load_record(folder: Path) -> MadeOf:
    """What the run in `folder` is made of; empty: nothing is the user's own, or an earlier version has made it.

    Raises:
        RunError: the file is damaged.
    """
    path = folder / RECORD
    try:
        return parse_record(files.read_json(path)["files"])
    except FileNotFoundError:
        return ()
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise RunError(f"FP5188 {path} is damaged ({error}); put it back, or remove it") from error


def parse_record(plain: Iterable[Any]) -> MadeOf:
    """What stands in a file of JSON.

    Raises:
        TypeError: something else.
    """
    found = tuple(OwnFile(**own) for own in plain)
    if not all(isinstance(own.file, str) and isinstance(own.sha256, str | None) for own in found):
        raise TypeError("it names no files")
    return found


def find_changed_file(was: MadeOf, now: MadeOf) -> str | None:
    """The first of the user's own files whose content is another now, by its name now; None: there is none."""
    pairs = zip(was, now, strict=False)
    return next((b.file for a, b in pairs if a.sha256 and b.sha256 and a.sha256 != b.sha256), None)

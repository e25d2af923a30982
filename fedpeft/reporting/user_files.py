"""A record of the user's own files and folders that a run uses, by their content, to detect later changes."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from fedpeft.errors import RunError
from fedpeft.machine import cache, files
from fedpeft.models.base_model import find_local_folder
from fedpeft.reporting.records import Records
from fedpeft.reporting.run_folder import replace_paths
from fedpeft.wiring.config import RunConfig
from fedpeft.wiring.profiles import PROFILES

RECORD = "made_of.json"
"""The record's name in a run's folder.

It is confidential under privacy: an observer who knows all examples but one could guess the last one and check.
"""

MODEL_FILES = ("*.safetensors", "config.json")
"""The files that identify a base model, in its folder."""


@dataclass(frozen=True)
class OwnFile:
    """A file or folder of the user's own that a configuration names, or another name.

    Attributes:
        file: the name in the configuration.
        sha256: digest of its content; None: there is no such file, or it can't be read.
    """

    file: str
    sha256: str | None


MadeOf = tuple[OwnFile, ...]
"""The base model, and after it the names in other settings (`fedpeft.reporting.run_folder.replace_paths`)."""


def select_file_settings(config: RunConfig) -> RunConfig:
    """Return the settings of a run that can name the user's own files; the others are defaults."""
    return RunConfig(
        dataset=config.dataset, model=config.model, measure=config.measure, hook=config.hook, clients=config.clients
    )


def find_own_files(config: RunConfig, model_key: str = "", folder: Path | None = None) -> MadeOf:
    """Return the present state of the files that a run's settings name.

    Args:
        config: the settings.
        model_key: key of the model, if it is known.
        folder: folder of the run, if it has begun: it continues with its own copy of the file of clients.

    Raises:
        ConfigError: the dataset is unknown.
    """
    found: list[str] = []

    def note_path(path: str) -> str:
        found.append(path)
        return path

    replace_paths(config, note_path)
    own, lies = find_local_folder(config.model), {}
    key = None if own is None else model_key or cache.hash_files(own, MODEL_FILES)
    if isinstance(config.clients, str) and folder is not None and (folder / PROFILES).exists():
        lies[config.clients] = folder / PROFILES
    return OwnFile(config.model, key), *(OwnFile(p, _hash(lies.get(p, Path(p).expanduser()))) for p in found)


def _hash(path: Path) -> str | None:
    """Return the SHA-256 of a file, or of the names and contents of all files in a folder that examples are read from.

    None: there is no such file, or it can't be read.
    """
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
    """Return whether examples are read from a file: it is neither hidden nor a cache of the `datasets` library."""
    hidden = any(name.startswith(".") for name in path.parts)
    return not hidden and not (path.name.startswith("cache-") and path.suffix == ".arrow")


def record(records: Records, found: MadeOf) -> None:
    """Write the record of a run that uses files of the user's own.

    Raises:
        RunError: the disk is full or can't be written.
    """
    if any(own.sha256 for own in found):
        records.write_json(RECORD, {"files": [asdict(own) for own in found]})


def load_record(folder: Path) -> MadeOf:
    """Load the record of the run in `folder`; empty: no file is the user's own, or an earlier version made the run.

    Raises:
        RunError: the file is damaged.
    """
    path = folder / RECORD
    try:
        return parse_record(files.read_json(path)["files"])
    except FileNotFoundError:
        return ()
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise RunError(f"FP5188 {path} is damaged ({error}); restore the file, or remove it") from error


def parse_record(plain: Iterable[Any]) -> MadeOf:
    """Parse the content of a JSON file.

    Raises:
        TypeError: it is not a record.
    """
    found = tuple(OwnFile(**own) for own in plain)
    if not all(isinstance(own.file, str) and isinstance(own.sha256, str | None) for own in found):
        raise TypeError("it names no files")
    return found


def find_changed_file(was: MadeOf, now: MadeOf) -> str | None:
    """Return the present name of the first file of the user's own whose content has changed; None: there is none."""
    pairs = zip(was, now, strict=False)
    return next((b.file for a, b in pairs if a.sha256 and b.sha256 and a.sha256 != b.sha256), None)

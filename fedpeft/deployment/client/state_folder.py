"""The folder of a client's state, in which only one process works at a time.

Two processes with one key would draw the same noise for two inputs, and each would spend the whole budget. So the
folder is locked before key and ledger are read, and until the process ends, however it ends.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock, Timeout

from fedpeft.errors import RunError

RUN = re.compile("[0-9a-f]{16}")
"""Pattern of a federation's name, which is part of a path here."""


def get_client_folder(state: Path, run: str, name: str) -> Path:
    """Return the folder of the client `name` in the federation `run`, below `state`.

    `fedpeft.deployment.identity.certificates` has checked the name.

    Raises:
        RunError: the server gives its federation an illegal name.
    """
    if not RUN.fullmatch(run):
        raise RunError(
            f"FP5036 the server names its federation {run!r:.80}; a legal name has 16 digits of 0 to 9 and a to f"
        )
    return state / run / name


def get_ledger_folder(state: Path) -> Path:
    """Return the folder in `state` of what all runs have released, by dataset; no run has this name."""
    return state / "ledgers"


@contextmanager
def lock_state_folder(folder: Path) -> Iterator[None]:
    """Create the folder of a client's state, and keep every other process out of it.

    Raises:
        RunError: another process works in it, or it can't be created, written or locked.
    """
    try:
        for made in (folder.parent.parent, folder.parent, folder):  # the names of the federations are private
            made.mkdir(mode=0o700, parents=True, exist_ok=True)  # the mode is that of the last folder only
        lock = FileLock(folder / ".lock")
        lock.acquire(blocking=False)
    except Timeout:
        raise RunError(
            f"FP5037 another process already runs this client, with its state in {folder}; end that process, or "
            "join with another certificate and other examples"
        ) from None
    except (OSError, NotImplementedError) as error:  # the latter: a file system without locks
        reason = error.strerror if isinstance(error, OSError) else error
        raise RunError(f"FP5038 the client's state can't be kept in {folder}: {reason}; give another --state") from None
    try:
        yield
    finally:
        lock.release()

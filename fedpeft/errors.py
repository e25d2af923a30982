"""The errors a user can cause, and therefore mend.

Every one carries a single sentence: what was given, what is legal, what to do. The command line prints that
sentence and ends with exit code 2; nothing else in fedpeft catches these errors silently.

A sentence starts with the code of its cause: `raise ConfigError(f"FP1234 --cohort must be ..., got {cohort}")`. The
code is a part of the text, so logs, worker processes, messages and errors that quote the sentence keep it.
`docs/errors.md` lists all codes. `python .ci/errors.py` writes that page and prints the next free code.

    FedpeftError
    ├── ConfigError     FP1...  a flag, key, part or setting
    ├── AssetError      FP2...  a model or dataset that can't be fetched or verified
    ├── DataError       FP3...  rows, columns, labels, partitions
    ├── ModelError      FP4...  a base model or its fit with the PEFT method
    ├── RunError        FP5...  a run directory: exists already, can't be resumed, can't be read
    │   └── GoneError           in which a client's own state of earlier rounds is missing
    ├── PayloadError    FP6...  bytes from a peer that are not a valid update
    └── PrivacyError    FP7...  a privacy setting that would not protect, or a spent budget
"""

import errno
import importlib.util
import os
import re
from typing import ClassVar, Final

CODE: Final = re.compile(r"FP\d{4}\b")
"""The code at the start of a sentence."""


class FedpeftError(Exception):
    """Base of all errors with a message for the user."""

    uncoded: ClassVar[str] = "FP0000"
    """Code of a sentence without one, such as a plugin's; its digits but the last three are those of the class."""

    @property
    def code(self) -> str:
        """Code of the cause, such as FP1234."""
        return str(self)[: len(self.uncoded)]

    def __str__(self) -> str:
        """Return the sentence, its code first."""
        text = super().__str__()
        return text if CODE.match(text) else f"{self.uncoded} {text}"


class ConfigError(FedpeftError):
    """A wrong flag, key, part, setting or value."""

    uncoded = "FP1000"


class AssetError(FedpeftError):
    """A model or dataset that can't be fetched, verified or stored."""

    uncoded = "FP2000"


class DataError(FedpeftError):
    """Rows, columns, labels or a partition that can't be used."""

    uncoded = "FP3000"


class ModelError(FedpeftError):
    """A base model that can't be loaded, or does not fit the PEFT method or task."""

    uncoded = "FP4000"


class RunError(FedpeftError):
    """A run directory that can't be written, read or resumed."""

    uncoded = "FP5000"


class GoneError(RunError):
    """What a client has kept of the rounds before, and builds on in the next, is not there any more."""


class PayloadError(FedpeftError):
    """Bytes from a peer that are not the payload that was expected."""

    uncoded = "FP6000"


class PrivacyError(FedpeftError):
    """A privacy setting that is unsound, or a budget that is spent."""

    uncoded = "FP7000"


def require_extra(module: str, extra: str, what: str) -> None:
    """Raise AssetError unless `module`, which the optional dependencies `extra` bring, can be imported."""
    if importlib.util.find_spec(module) is None:
        raise AssetError(f"FP2008 {what} needs the package {module}; install it with: pip install 'fedpeft[{extra}]'")


def shorten_value(value: object) -> str:
    """Return a user's value as messages show it; long values are cut."""
    text = repr(value)
    return text if len(text) <= 40 else text[:37] + "..."


NO_ROOM = (os.strerror(errno.ENOSPC), os.strerror(errno.EDQUOT), "Not enough disk space")
"""Messages about a full disk; the last one comes from the library `datasets`."""


def is_disk_full(error: BaseException) -> bool:
    """Return whether an error, or one of its causes, reports a full disk or quota, by its code or its message."""
    came: BaseException | None = error
    while came is not None:
        full = isinstance(came, OSError) and came.errno in (errno.ENOSPC, errno.EDQUOT)
        if full or any(words in str(came) for words in NO_ROOM):
            return True
        came = came.__cause__ or came.__context__
    return False

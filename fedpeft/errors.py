"""The errors a user can cause, and therefore mend.

Every one carries a single sentence: what was given, what is legal, what to do. The command line prints that
sentence and ends with exit code 2; nothing else in fedpeft catches these errors silently.

    FedpeftError
    ├── ConfigError     a flag, key, part or setting
    ├── AssetError      a model or data set that can't be fetched or verified
    ├── DataError       rows, columns, labels, partitions
    ├── ModelError      a base model or its fit with the PEFT method
    ├── RunError        a run directory: exists already, can't be resumed, can't be read
    │   └── GoneError   in which a client's own state of earlier rounds is missing
    ├── PayloadError    bytes from a peer that are not a valid update
    └── PrivacyError    a privacy setting that would not protect, or a spent budget
"""

import importlib.util


class FedpeftError(Exception):
    """Base of all errors with a message for the user."""


class ConfigError(FedpeftError):
    """A wrong flag, key, part, setting or value."""


class AssetError(FedpeftError):
    """A model or data set that can't be fetched, verified or stored."""


class DataError(FedpeftError):
    """Rows, columns, labels or a partition that can't be used."""


class ModelError(FedpeftError):
    """A base model that can't be loaded, or does not fit the PEFT method or task."""


class RunError(FedpeftError):
    """A run directory that can't be written, read or resumed."""


class GoneError(RunError):
    """What a client has kept of the rounds before, and builds on in the next, is not there any more."""


class PayloadError(FedpeftError):
    """Bytes from a peer that are not the payload that was expected."""


class PrivacyError(FedpeftError):
    """A privacy setting that is unsound, or a budget that is spent."""


def needs_extra(module: str, extra: str, what: str) -> None:
    """Raise AssetError unless `module`, which the optional dependencies `extra` bring, can be imported."""
    if importlib.util.find_spec(module) is None:
        raise AssetError(f"{what} needs the package {module}; install it with: pip install 'fedpeft[{extra}]'")


def brief(value: object) -> str:
    """A value of the user's as messages show it, cut where it is long."""
    text = repr(value)
    return text if len(text) <= 40 else text[:37] + "..."

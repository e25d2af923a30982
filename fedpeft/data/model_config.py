"""What the config.json in a model's folder says, or why it says nothing here."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from fedpeft.errors import ModelError

UNKNOWN = "does not recognize this architecture"
"""How transformers tells that no class of its own, or registered, has the kind that a config.json names."""


def config_of(folder: Path) -> Any:
    """What config.json of a model's folder says, as transformers' class of its kind.

    Raises:
        ModelError: there is none, or none of a kind that is known here.
    """
    from transformers import AutoConfig

    try:
        return AutoConfig.from_pretrained(str(folder), local_files_only=True)
    except (OSError, ValueError, KeyError) as error:
        raise ModelError(f"no model could be loaded from {folder}: {reason(error)}") from error


def reason(error: Exception) -> str:
    """The first line of what an exception of a library says; of a kind of model that it does not know, what to do."""
    text = str(error).strip()
    if UNKNOWN in text:
        own = "if its class is your own, register it in a file (docs/own-parts.md) and name that: --plugin FILE"
        return f"{text.partition(UNKNOWN)[0]}{UNKNOWN}; {own}"
    return text.splitlines()[0] if text else type(error).__name__

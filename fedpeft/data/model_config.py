"""Loading of the config.json in a model's folder."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from fedpeft.errors import ModelError

UNKNOWN = "does not recognize this architecture"
"""Part of transformers' message about a model type that neither it nor a registered class supports."""

CODE = "`trust_remote_code=True`"
"""Part of transformers' message about a model folder whose `auto_map` names code to run."""


def load_model_config(folder: Path) -> Any:
    """Return the transformers configuration of the model in a folder.

    Raises:
        ModelError: config.json is missing, has an unknown model type, or needs code from elsewhere.
    """
    from transformers import AutoConfig

    try:
        config = AutoConfig.from_pretrained(str(folder), local_files_only=True, trust_remote_code=False)
    except (OSError, ValueError, LookupError, TypeError, AttributeError) as error:
        raise ModelError(f"FP4009 no model could be loaded from {folder}: {describe_error(error)}") from error
    _check_attention(config, folder)
    return config


def _check_attention(config: Any, folder: Path) -> None:
    """Reject an attention that transformers would download as code (ORG/NAME of the hub's kernels)."""
    parts = [config, *(getattr(config, name, None) for name in getattr(config, "sub_configs", ()))]
    for name in (getattr(part, "_attn_implementation", None) for part in parts):
        if "/" in str(name):
            raise ModelError(
                f"FP4081 no model could be loaded from {folder}: its config.json names the attention "
                f"{name!r:.80}, which is code from the hub; remove attn_implementation, since fedpeft runs no "
                "code that a model folder names"
            )


def needs_remote_code(error: Exception) -> bool:
    """Return whether transformers failed because a model folder needs code of its own (`auto_map`)."""
    return CODE in str(error)


def describe_error(error: Exception) -> str:
    """Return the first line of a library's exception; for an unsupported model, also the remedy."""
    text = str(error).strip()
    if needs_remote_code(error):
        return (
            "its files name code to run (auto_map), and fedpeft never runs code from a model folder; choose a model "
            "that transformers supports without it, or register your own class (docs/own-parts.md): --plugin FILE"
        )
    if UNKNOWN in text:
        own = "if its class is your own, register it in a file (docs/own-parts.md) and name that: --plugin FILE"
        return f"{text.partition(UNKNOWN)[0]}{UNKNOWN}; {own}"
    return text.splitlines()[0] if text else type(error).__name__

"""Conversion of values to JSON."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from typing import Any

from fedpeft.errors import ConfigError


def check_json(values: Mapping[str, Any], what: str) -> dict[str, Any]:
    """Return a copy of `values` after a round trip through JSON.

    Raises:
        ConfigError: JSON can't represent one of them.
    """
    try:
        copied: dict[str, Any] = json.loads(json.dumps(convert_to_plain(dict(values))))
    except (TypeError, ValueError) as error:
        raise ConfigError(f"FP1511 {what} must be JSON values (numbers, texts, lists, mappings): {error}") from None
    return copied


def convert_to_plain(value: Any) -> Any:
    """Return a value for JSON: NaN and infinity become null, numbers of numpy and torch become Python's."""
    if isinstance(value, dict):
        return {str(k): convert_to_plain(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [convert_to_plain(v) for v in value]
    if hasattr(value, "item"):
        value = value.item()
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value

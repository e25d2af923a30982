"""The family of data sets, which tells who gives a file's name alone how a file of rows is named."""

from __future__ import annotations

import re
from typing import TypeVar

from fedpeft.errors import ConfigError
from fedpeft.parts import Family
from fedpeft.spec import Spec

T = TypeVar("T")

_FILE = re.compile(
    r"[^:()]*(/[^:()]*|\.(csv|tsv|tab|xlsx?|jsonl?|ndjson|parquet|pq|arrow|feather|txt|gz))", re.IGNORECASE
)


class DatasetFamily(Family[T]):
    """Data sets; a file's name alone is none."""

    def parsed(self, text: str) -> Spec:
        """See `Family`."""
        if _FILE.fullmatch(text.strip()):
            path = text.strip()
            hub = "" if "." in path else f", and a data set of the hub hf:{path}"
            raise ConfigError(f"FP1085 {text!r} is no data set; a file of rows is written file:{path}{hub}")
        return super().parsed(text)

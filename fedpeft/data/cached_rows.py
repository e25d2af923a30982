"""What runs share on one machine: tokenised rows, frozen hidden states, frozen features. Never results.

Everything is keyed by a hash of what it was computed from, written to a temporary name and renamed.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from fedpeft.data.examples import Examples, ImageRows, TokenRows
from fedpeft.data.rows import Rows
from fedpeft.errors import AssetError
from fedpeft.machine import files
from fedpeft.machine.downloads import cached_folder

TOKENIZER_FILES = ("*token*", "vocab*", "merges.txt", "*.model", "*.jinja", "config.json")
"""What tokens depend on, in a model's folder."""


def key(**parts: Any) -> str:
    """A short hash of `parts` (anything JSON holds)."""
    text = json.dumps(parts, sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:24]


def rows_hash(rows: Rows) -> str:
    """SHA-256 of the rows' inputs and labels."""
    digest = hashlib.sha256()
    if isinstance(rows.inputs, np.ndarray):
        digest.update(repr((rows.inputs.shape, rows.inputs.dtype)).encode())
        digest.update(np.ascontiguousarray(rows.inputs).data)
    else:
        for text in rows.inputs:
            encoded = text.encode("utf-8", "surrogatepass")
            digest.update(len(encoded).to_bytes(8, "little"))
            digest.update(encoded)
    if rows.labels is not None:
        digest.update(rows.labels.tobytes())
    return digest.hexdigest()


def file_hash(folder: Path, names: tuple[str, ...]) -> str:
    """SHA-256 of the files in `folder` whose names match one of the glob patterns `names`."""
    digest = hashlib.sha256()
    for path in sorted(p for pattern in names for p in folder.glob(pattern)):
        digest.update(path.name.encode())
        with open(path, "rb") as file:
            digest.update(hashlib.file_digest(file, "sha256").digest())
    return digest.hexdigest()


def arrays(kind: str, name: str, compute: Callable[[], Mapping[str, np.ndarray]]) -> dict[str, np.ndarray]:
    """Named arrays, memory-mapped from the cache; computed and stored where they are missing.

    They are made of rows that may be private, so nobody else can read them.

    Raises:
        AssetError: the cache can't be written, or the arrays are another user's.
    """

    def fill(empty: Path) -> None:
        files.make_private_folder(empty)
        for label, array in compute().items():
            np.save(empty / f"{label}.npy", array, allow_pickle=False)

    target = cached_folder(f"{kind}-{name}", fill)
    try:
        files.make_private_folder(target)  # an earlier version may have left it open
    except PermissionError:
        raise AssetError(
            f"{target} belongs to another user, and so do its rows; set FEDPEFT_CACHE to a directory of your own"
        ) from None
    return {p.stem: np.load(p, mmap_mode="r", allow_pickle=False) for p in sorted(target.glob("*.npy"))}


def examples_to_arrays(examples: Examples) -> dict[str, np.ndarray]:
    """The arrays of model-ready rows, for `arrays`."""
    if isinstance(examples, ImageRows):
        return {"pixels": examples.pixels, "labels": examples.labels, "tokens": np.array(examples.tokens)}
    assert isinstance(examples, TokenRows)
    found = {"ids": examples.ids, "offsets": examples.offsets, "padding": np.array(examples.padding_id)}
    optional = {"labels": examples.labels, "targets": examples.targets}
    return found | {name: array for name, array in optional.items() if array is not None}


def examples_from_arrays(found: Mapping[str, np.ndarray]) -> Examples:
    """The inverse of `examples_to_arrays`."""
    if "pixels" in found:
        return ImageRows(found["pixels"], found["labels"], int(found["tokens"]))
    return TokenRows(
        found["ids"], np.asarray(found["offsets"]), found.get("labels"), int(found["padding"]), found.get("targets")
    )

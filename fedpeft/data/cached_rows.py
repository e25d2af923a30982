"""Cache of tokenized examples, frozen hidden states and frozen features, shared by all runs on a machine.

Results of runs are never cached. Each entry's key is a hash of what it was computed from. Entries are written to a
temporary name and then renamed.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from typing import Any, cast

import numpy as np

from fedpeft.data.examples import (
    AnsweredRows,
    CaptionedRows,
    DescribedRows,
    Examples,
    ImageRows,
    PairRows,
    TaggedRows,
    TokenRows,
)
from fedpeft.data.images import get_size
from fedpeft.data.rows import Inputs, Rows
from fedpeft.data.square_pictures import AS_EVER
from fedpeft.machine import cache

TOKENIZER_FILES = ("*token*", "vocab*", "merges.txt", "*.model", "*.jinja", "config.json")
"""Files of a model's folder that tokens depend on."""


def hash_rows(rows: Rows) -> str:
    """Return the SHA-256 of the inputs, texts and labels of `rows`, in hexadecimal."""
    digest = hashlib.sha256()
    if isinstance(rows.inputs, np.ndarray):
        digest.update(repr((rows.inputs.shape, rows.inputs.dtype)).encode())
        digest.update(np.ascontiguousarray(rows.inputs).data)
    else:
        _add(digest, rows.inputs)
    if rows.texts is not None:
        _add(digest, rows.texts)
    if rows.labels is not None:
        digest.update(rows.labels.tobytes())
    if rows.masks is not None:
        digest.update(b"masks")
        digest.update(np.ascontiguousarray(rows.masks).data)
    return digest.hexdigest()


def read_as(inputs: Inputs) -> dict[str, str]:
    """Return the cache-key fields that describe how images are fed to the model; empty for texts and small images.

    Older versions neither smoothed images above 28 pixels a side nor gave them more than 4 x 4 patches. The field keeps
    their cache entries apart from today's.
    """
    if not isinstance(inputs, np.ndarray) or max(get_size(inputs)) <= AS_EVER:
        return {}
    return {"pixels": "smoothed, as many patches as fit"}


def _add(digest: Any, texts: Sequence[str]) -> None:
    for text in texts:
        encoded = text.encode("utf-8", "surrogatepass")
        digest.update(len(encoded).to_bytes(8, "little"))
        digest.update(encoded)


def convert_to_arrays(examples: Examples) -> dict[str, np.ndarray]:
    """Return the named arrays that `restore_examples` turns back into `examples`."""
    if isinstance(examples, ImageRows):
        return {"pixels": examples.pixels, "labels": examples.labels, "tokens": np.array(examples.tokens)}
    if isinstance(examples, CaptionedRows):
        image = {"pixels": examples.pixels, "held": examples.held, "tokens": np.array(examples.tokens)}
        return image | _convert_texts(examples.texts)
    if isinstance(examples, DescribedRows):
        return {"patches": examples.patches, "cut": np.array(examples.cut)} | _convert_texts(examples.texts)
    if isinstance(examples, AnsweredRows):
        own = convert_to_arrays(examples.texts) | {"cut": np.array(examples.cut)}
        return own | _convert_texts(examples.answers)
    if isinstance(examples, PairRows):
        return convert_to_arrays(examples.answers) | {"pairs": np.array(examples.cut)}
    assert isinstance(examples, TokenRows)
    found = {"ids": examples.ids, "offsets": examples.offsets, "padding": np.array(examples.padding_id)}
    found |= {"cut": np.array(examples.cut)} if examples.cut else {}
    tags = examples.tags if isinstance(examples, TaggedRows) else None
    optional = {"labels": examples.labels, "targets": examples.targets, "tags": tags}
    return found | {name: array for name, array in optional.items() if array is not None}


def _convert_texts(texts: TokenRows) -> dict[str, np.ndarray]:
    """Return the arrays of a row's second text, or of the text beside an image, with `TEXT` before their names."""
    return {f"{TEXT}{name}": array for name, array in convert_to_arrays(texts).items()}


TEXT = "text_"
"""Prefix of the names of arrays that belong to a second text, or to the text beside an image."""


def restore_examples(found: Mapping[str, np.ndarray]) -> Examples:
    """Return the examples that `convert_to_arrays` turned into these arrays."""
    own = {name.removeprefix(TEXT): array for name, array in found.items() if name.startswith(TEXT)}
    if own:
        texts = cast(TokenRows, restore_examples(own))
        if "ids" in found:
            read = {name: array for name, array in found.items() if not name.startswith(TEXT) and name != "cut"}
            return AnsweredRows(cast(TokenRows, restore_examples(read)), texts, int(found["cut"]))
        if "patches" in found:
            return DescribedRows(found["patches"], texts, int(found["cut"]))
        return CaptionedRows(found["pixels"], texts, found["held"], int(found["tokens"]))
    if "pixels" in found:
        return ImageRows(found["pixels"], found["labels"], int(found["tokens"]))
    if "tags" in found:
        ids, offsets, padding = found["ids"], np.asarray(found["offsets"]), int(found["padding"])
        return TaggedRows(ids, offsets, None, padding, tags=found["tags"])
    rows = TokenRows(
        found["ids"],
        np.asarray(found["offsets"]),
        found.get("labels"),
        int(found["padding"]),
        found.get("targets"),
        int(found.get("cut", 0)),
    )
    return PairRows(rows, int(found["pairs"])) if "pairs" in found else rows


def load_cached_examples(data_key: str) -> Examples:
    """Return the tokenized examples of the cache entry `data_key`, memory-mapped.

    Raises:
        FileNotFoundError: the entry was evicted during the run.
    """

    def report_missing() -> Mapping[str, np.ndarray]:
        raise FileNotFoundError(f"the tokenized examples {data_key} were evicted from the cache during the run")

    return restore_examples(cache.load_arrays("rows", data_key, report_missing))

"""What runs share on one machine: tokenised rows, frozen hidden states, frozen features. Never results.

Everything is keyed by a hash of what it was computed from, written to a temporary name and renamed.
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
from fedpeft.data.rows import Inputs, Rows
from fedpeft.data.square_pictures import AS_EVER
from fedpeft.machine import cache

TOKENIZER_FILES = ("*token*", "vocab*", "merges.txt", "*.model", "*.jinja", "config.json")
"""What tokens depend on, in a model's folder."""


def hash_rows(rows: Rows) -> str:
    """SHA-256 of the rows' inputs, texts and labels."""
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
    return digest.hexdigest()


def read_as(inputs: Inputs) -> dict[str, str]:
    """How the model is fed such inputs, for keys of what is made of them; of those that are fed as ever nothing.

    Images above 28 pixels a side were once neither smoothed nor given more than 4 x 4 patches; what lies in a cache
    from that time is not theirs.
    """
    if not isinstance(inputs, np.ndarray) or max(inputs.shape[1:3]) <= AS_EVER:
        return {}
    return {"pixels": "smoothed, as many patches as fit"}


def _add(digest: Any, texts: Sequence[str]) -> None:
    for text in texts:
        encoded = text.encode("utf-8", "surrogatepass")
        digest.update(len(encoded).to_bytes(8, "little"))
        digest.update(encoded)


def convert_to_arrays(examples: Examples) -> dict[str, np.ndarray]:
    """The arrays of model-ready rows, for `arrays`."""
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
    """The arrays of texts beside images, or beside other texts."""
    return {f"{TEXT}{name}": array for name, array in convert_to_arrays(texts).items()}


TEXT = "text_"
"""What the names of arrays of texts beside something else begin with."""


def restore_examples(found: Mapping[str, np.ndarray]) -> Examples:
    """The inverse of `convert_to_arrays`."""
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
    """The tokenised rows called `data_key`, memory-mapped."""

    def missing() -> Mapping[str, np.ndarray]:
        raise FileNotFoundError(f"the tokenised rows {data_key} have left the cache while the run was going on")

    return restore_examples(cache.load_arrays("rows", data_key, missing))

"""Text to token ids with the model's own tokenizer."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from fedpeft.data.examples import TaggedRows, TokenRows
from fedpeft.errors import ModelError


def load_tokenizer(model_directory: Path) -> Any:
    """The model's tokenizer.

    Raises:
        ModelError: the directory has none.
    """
    from transformers import AutoTokenizer

    try:
        return AutoTokenizer.from_pretrained(str(model_directory), local_files_only=True)
    except (OSError, ValueError) as error:
        raise ModelError(f"no tokenizer could be loaded from {model_directory}; a text model needs one") from error


def token_rows(texts: Sequence[str], labels: np.ndarray | None, model_directory: Path, max_tokens: int) -> TokenRows:
    """Tokenise `texts` (special tokens included), each cut to `max_tokens` (at least 2).

    Raises:
        ModelError: the directory has no tokenizer.
    """
    tokenizer = load_tokenizer(model_directory)
    encoded = tokenizer(list(texts), truncation=True, max_length=max_tokens)["input_ids"] if len(texts) else []
    return rows_of(encoded, padding_of(tokenizer), labels)


def padding_of(tokenizer: Any) -> int:
    """The id that shorter rows are filled up with."""
    return int(tokenizer.pad_token_id if tokenizer.pad_token_id is not None else tokenizer.eos_token_id or 0)


def rows_of(
    encoded: Sequence[Sequence[int]],
    padding: int,
    labels: np.ndarray | None,
    targets: Sequence[Sequence[bool]] | None = None,
) -> TokenRows:
    """Rows of ids in one flat array; a row without tokens becomes one token of padding.

    Args:
        targets: which tokens count in a language model's loss, as long as the rows; None: all.
    """
    encoded = [list(ids) or [padding] for ids in encoded]
    lengths = np.array([len(ids) for ids in encoded], dtype=np.int64)
    offsets = np.concatenate([[0], np.cumsum(lengths)])
    ids = np.fromiter((token for row in encoded for token in row), dtype=np.int32, count=int(offsets[-1]))
    counted = None if targets is None else np.fromiter((t for row in targets for t in row), dtype=bool, count=len(ids))
    return TokenRows(ids, offsets, labels, padding, counted)


def tagged_rows(encoded: Sequence[Sequence[int]], labels: Sequence[np.ndarray], padding: int) -> TaggedRows:
    """Rows of ids with the label of each token (`IGNORED`: none); every row has a token."""
    plain = rows_of(encoded, padding, None)
    tags = np.concatenate([np.zeros(0, np.int64), *labels])
    return TaggedRows(plain.ids, plain.offsets, None, plain.padding_id, tags=tags)

"""Text to token ids with the model's own tokenizer."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from fedpeft.errors import ModelError
from fedpeft.examples import TokenRows


def token_rows(texts: Sequence[str], labels: np.ndarray | None, model_directory: Path, max_tokens: int) -> TokenRows:
    """Tokenise `texts` (special tokens included), each cut to `max_tokens` (at least 2).

    Raises:
        ModelError: the directory has no tokenizer.
    """
    from transformers import AutoTokenizer

    try:
        tokenizer = AutoTokenizer.from_pretrained(str(model_directory), local_files_only=True)
    except (OSError, ValueError) as error:
        raise ModelError(f"no tokenizer could be loaded from {model_directory}; a text model needs one") from error
    encoded = tokenizer(list(texts), truncation=True, max_length=max_tokens)["input_ids"] if len(texts) else []
    padding = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else tokenizer.eos_token_id or 0
    lengths = np.array([len(ids) for ids in encoded], dtype=np.int64)
    if (lengths == 0).any():
        encoded = [ids or [padding] for ids in encoded]
        lengths = np.maximum(lengths, 1)
    offsets = np.concatenate([[0], np.cumsum(lengths)])
    ids = np.fromiter((token for row in encoded for token in row), dtype=np.int32, count=int(offsets[-1]))
    return TokenRows(ids, offsets, labels, padding)

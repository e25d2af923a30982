"""Tokenization of texts with the model's own tokenizer."""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from fedpeft.data.examples import TaggedRows, TokenRows
from fedpeft.data.model_config import describe_error, needs_remote_code
from fedpeft.errors import ModelError
from fedpeft.machine.growing_array import GrowingArray, create_spool, iterate_parts


def load_tokenizer(model_directory: Path) -> Any:
    """Return the model's tokenizer.

    Raises:
        ModelError: the directory has none, or one with more tokens than the model embeds.
    """
    from transformers import AutoTokenizer

    try:
        tokenizer = AutoTokenizer.from_pretrained(str(model_directory), local_files_only=True, trust_remote_code=False)
    except (OSError, ValueError, LookupError, TypeError, AttributeError) as error:
        why = f": {describe_error(error)}" if needs_remote_code(error) else "; a text model needs one"
        raise ModelError(f"FP4082 no tokenizer could be loaded from {model_directory}{why}") from error
    _check_vocabulary(tokenizer, model_directory)
    return tokenizer


FEW_WORDS = 10
"""Tokens beside the special ones from which on a tokenizer without files needs none, such as one of bytes."""


def _check_vocabulary(tokenizer: Any, model_directory: Path) -> None:
    """Reject the tokenizer that transformers silently makes if files are missing or belong to another model."""
    files = {"tokenizer.json", *tokenizer.vocab_files_names.values()}
    words = len(tokenizer) - len(set(tokenizer.all_special_ids))
    if words < FEW_WORDS and not any((model_directory / name).is_file() for name in files):
        raise ModelError(
            f"FP4011 {model_directory} has no vocabulary ({', '.join(sorted(files))}), so every word would be unknown; "
            "save the model's tokenizer beside its weights: tokenizer.save_pretrained(FOLDER)"
        )
    config = json.loads((model_directory / "config.json").read_text("utf-8"))
    known = config.get("vocab_size") or (config.get("text_config") or {}).get("vocab_size")
    needed = max(tokenizer.vocab_size, get_padding_id(tokenizer) + 1)
    if isinstance(known, int) and needed > known:
        raise ModelError(
            f"FP4012 the tokenizer in {model_directory} has {needed:,} tokens, but the model embeds {known:,} "
            "(vocab_size in config.json); save the model's own tokenizer there, or call resize_token_embeddings on "
            "the model and save it"
        )


TOGETHER = 1000
"""Number of texts per tokenizer call; ids in lists of Python numbers take 30 bytes each."""


def tokenize_texts(
    texts: Iterable[str], labels: np.ndarray | None, model_directory: Path, max_tokens: int
) -> TokenRows:
    """Tokenize `texts` (special tokens included), each truncated to `max_tokens` (at least 2).

    Raises:
        ModelError: the directory has no tokenizer.
    """
    tokenizer = load_tokenizer(model_directory)
    made = TokenSpool(get_padding_id(tokenizer))
    remaining = iter(texts)
    while some := list(itertools.islice(remaining, TOGETHER)):
        for ids in tokenizer(some, truncation=True, max_length=max_tokens)["input_ids"]:
            made.add(ids)
    return made.rows(labels)


def get_padding_id(tokenizer: Any) -> int:
    """Return the id that fills up shorter rows."""
    return int(tokenizer.pad_token_id if tokenizer.pad_token_id is not None else tokenizer.eos_token_id or 0)


class TokenSpool:
    """Collector of token ids, row by row; many rows are stored in a file (`fedpeft.machine.growing_array`)."""

    def __init__(self, padding: int, counted: bool = False) -> None:
        """Start empty; `counted` keeps the targets of each row."""
        self._padding, self._counted = padding, counted
        self._ids, self._targets, self._lengths = GrowingArray(np.int32), GrowingArray(bool), GrowingArray(np.int64)
        self._waiting: list[Sequence[int]] = []
        self._marks: list[Sequence[bool]] = []

    def add(self, ids: Sequence[int], targets: Sequence[bool] = ()) -> None:
        """Add a row; one without tokens becomes one token of padding.

        Args:
            ids: token ids.
            targets: the tokens that count in a language model's loss, as long as `ids`, if the spool keeps them.
        """
        self._waiting.append(list(ids) or [self._padding])
        self._marks.append(targets)
        if len(self._waiting) == TOGETHER:
            self._write()

    def _write(self) -> None:
        lengths = np.array([len(ids) for ids in self._waiting], dtype=np.int64)
        total = int(lengths.sum())
        self._ids.append(np.fromiter((token for row in self._waiting for token in row), np.int32, total))
        self._lengths.append(lengths)
        if self._counted:
            self._targets.append(np.fromiter((t for row in self._marks for t in row), bool, total))
        self._waiting, self._marks = [], []

    def rows(self, labels: np.ndarray | None) -> TokenRows:
        """Return the rows that were added."""
        self._write()
        offsets = compute_ends(self._lengths.create_array())
        targets = self._targets.create_array() if self._counted else None
        return TokenRows(self._ids.create_array(), offsets, labels, self._padding, targets)


def compute_ends(lengths: np.ndarray) -> np.ndarray:
    """Return the start and end of rows with these lengths (rows,) in one flat array: int64 (rows + 1,), from 0 on."""
    made, end = create_spool(np.int64), 0
    made.append([0])
    for part in iterate_parts(len(lengths)):
        ends = np.cumsum(lengths[part]) + end
        made.append(ends)
        end = int(ends[-1])
    return made.create_array()


def build_token_rows(
    encoded: Iterable[Sequence[int]],
    padding: int,
    labels: np.ndarray | None,
    targets: Sequence[Sequence[bool]] | None = None,
) -> TokenRows:
    """Return rows of ids in one flat array; a row without tokens becomes one token of padding.

    Args:
        encoded: token ids of each row.
        padding: id of the padding token.
        labels: (rows,), or None.
        targets: the tokens that count in a language model's loss, as long as the rows; None: all.
    """
    made = TokenSpool(padding, counted=targets is not None)
    for ids, counted in zip(encoded, itertools.repeat(()) if targets is None else targets, strict=targets is not None):
        made.add(ids, counted)
    return made.rows(labels)


def build_tagged_rows(encoded: Sequence[Sequence[int]], labels: Sequence[np.ndarray], padding: int) -> TaggedRows:
    """Return rows of ids with the label of each token (`IGNORED`: none); every row has a token."""
    plain = build_token_rows(encoded, padding, None)
    tags = np.concatenate([np.zeros(0, np.int64), *labels])
    return TaggedRows(plain.ids, plain.offsets, None, plain.padding_id, tags=tags)

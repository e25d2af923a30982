"""Model-ready rows: token ids of ragged length (or images of one size), with labels.

Token ids live in one flat array with offsets, so that ten thousand clients share one copy, memory-mapped from the
cache. Rows are padded only when a batch is made, to the longest in that batch.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, ClassVar, Protocol

import numpy as np
import torch
from torch import Tensor

from fedpeft.machine import growing_array
from fedpeft.machine.mapped import leave

Batch = dict[str, Tensor]
"""Arguments of the model's forward pass, and `labels` ((B,) classes, or (B, T) tokens with -100 where none)."""

IGNORED = -100
"""The label of a token that does not count."""


LENGTH_STEP = 16
"""Batches are padded to a multiple of this many tokens: the CPU's matrix library keeps kernels and scratch memory for
every shape it has seen, which is half a gigabyte a worker after a few hundred lengths."""


def round_up_length(tokens: int) -> int:
    """`tokens`, rounded up to LENGTH_STEP."""
    return -(-tokens // LENGTH_STEP) * LENGTH_STEP


class Examples(Protocol):
    """What training and evaluation need of a set of rows."""

    @property
    def lengths(self) -> np.ndarray:
        """Tokens per row, (rows,)."""
        ...

    def __len__(self) -> int: ...

    def batch(self, rows: Sequence[int] | np.ndarray) -> Batch:
        """The padded batch of these rows."""
        ...


@dataclass(frozen=True)
class TokenRows:
    """Token ids.

    Attributes:
        ids: int32 (total,); row i is ids[offsets[i]:offsets[i + 1]].
        offsets: int64 (rows + 1,).
        labels: int64 (rows,); None for language modelling.
        padding_id: fills the end of shorter rows.
        targets: bool (total,), which tokens count in a language model's loss; None: all but the first of a row.
        cut: rows whose end was cut off, where it was counted: of language models.
    """

    ids: np.ndarray
    offsets: np.ndarray
    labels: np.ndarray | None
    padding_id: int
    targets: np.ndarray | None = None
    cut: int = 0

    def __len__(self) -> int:
        return len(self.offsets) - 1

    @cached_property
    def lengths(self) -> np.ndarray:
        """Tokens per row, (rows,)."""
        made = growing_array.create_spool(np.int64)
        for part in growing_array.iterate_parts(len(self)):
            made.append(np.diff(self.offsets[part.start : part.stop + 1]))
        leave(self.offsets)
        return made.create_array()

    def batch(self, rows: Sequence[int] | np.ndarray) -> Batch:
        """input_ids and attention_mask (B, T), labels (B,) or (B, T); T: the longest row, rounded up to LENGTH_STEP."""
        spans = [(int(self.offsets[r]), int(self.offsets[r + 1])) for r in rows]
        longest = round_up_length(max(end - start for start, end in spans))
        input_ids = torch.full((len(spans), longest), self.padding_id, dtype=torch.long)
        attention_mask = torch.zeros((len(spans), longest), dtype=torch.long)
        for b, (start, end) in enumerate(spans):
            input_ids[b, : end - start] = torch.from_numpy(self.ids[start:end].astype(np.int64))
            attention_mask[b, : end - start] = 1
        if self.labels is not None:
            labels = torch.from_numpy(self.labels[np.asarray(rows)])
        else:
            labels = input_ids.masked_fill(attention_mask == 0, IGNORED)
            labels[:, 0] = IGNORED
            if self.targets is not None:
                for b, (start, end) in enumerate(spans):
                    labels[b, : end - start][~torch.from_numpy(np.array(self.targets[start:end]))] = IGNORED
        leave(self.ids)  # each row that is read maps 16 pages around it
        return {"input_ids": input_ids, "attention_mask": attention_mask, "labels": labels}

    def pack_batch(self, sequences: Sequence[Sequence[int]], tokens: int) -> Batch:
        """The rows of each sequence one behind the other, for language modelling.

        Args:
            sequences: rows; a sequence may be empty.
            tokens: T, at least as many as any sequence holds.

        Returns:
            input_ids, position_ids and labels (B, T). Positions begin anew with each row, and with the padding at the
            end: by that transformers keeps rows from seeing each other where there is no attention_mask.
        """
        shape = (len(sequences), tokens)
        input_ids = torch.full(shape, self.padding_id, dtype=torch.long)
        position_ids = torch.zeros(shape, dtype=torch.long)
        labels = torch.full(shape, IGNORED, dtype=torch.long)
        for b, rows in enumerate(sequences):
            start = 0
            for row in rows:
                span = slice(int(self.offsets[row]), int(self.offsets[row + 1]))
                end = start + span.stop - span.start
                input_ids[b, start:end] = torch.from_numpy(self.ids[span].astype(np.int64))
                labels[b, start + 1 : end] = input_ids[b, start + 1 : end]
                if self.targets is not None:
                    labels[b, start:end][~torch.from_numpy(np.array(self.targets[span]))] = IGNORED
                position_ids[b, start:end] = torch.arange(end - start)
                start = end
            position_ids[b, start:] = torch.arange(tokens - start)
        leave(self.ids)
        return {"input_ids": input_ids, "position_ids": position_ids, "labels": labels}


@dataclass(frozen=True)
class TaggedRows(TokenRows):
    """Token ids with a label for some of them.

    Attributes:
        tags: int64 (total,), the label of each token; `IGNORED` where it has none.
    """

    tags: np.ndarray = field(default_factory=lambda: np.zeros(0, np.int64))

    def batch(self, rows: Sequence[int] | np.ndarray) -> Batch:
        """As of `TokenRows`, with the tokens' labels (B, T)."""
        batch = super().batch(rows)
        labels = torch.full_like(batch["input_ids"], IGNORED)
        for b, row in enumerate(rows):
            start, end = int(self.offsets[row]), int(self.offsets[row + 1])
            labels[b, : end - start] = torch.from_numpy(np.array(self.tags[start:end], np.int64))
        return {**batch, "labels": labels}


@dataclass(frozen=True)
class PairRows:
    """Two sequences a row: answers to a question, the preferred one first, or a query and its document.

    Attributes:
        answers: 2 n rows, as tokens or as hidden states; row i is answers 2 i and 2 i + 1.
        cut: rows of which an answer's end was cut off.
    """

    answers: Examples
    cut: int = 0

    sequences: ClassVar[int] = 2
    """Sequences that a row has in a pass."""

    def __len__(self) -> int:
        return len(self.answers) // 2

    @property
    def lengths(self) -> np.ndarray:
        """Tokens of each row's longer sequence, (rows,)."""
        longest: np.ndarray = self.answers.lengths.reshape(-1, 2).max(1)
        return longest

    def batch(self, rows: Sequence[int] | np.ndarray) -> Batch:
        """As of a sequence, all of (B, 2, ...)."""
        index = np.asarray(rows)
        both = self.answers.batch(np.stack([2 * index, 2 * index + 1], 1).ravel())
        return {name: tensor.view(-1, 2, *tensor.shape[1:]) for name, tensor in both.items()}


@dataclass(frozen=True)
class ImageRows:
    """Images: `pixels` float32 (rows, channels, height, width), normalised for the model; `labels` int64 (rows,)."""

    pixels: np.ndarray
    labels: np.ndarray
    tokens: int

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def lengths(self) -> np.ndarray:
        """Tokens per image, (rows,): all equal."""
        return np.full(len(self), self.tokens)

    def batch(self, rows: Sequence[int] | np.ndarray) -> Batch:
        """pixel_values (B, channels, height, width) and labels (B,)."""
        index = np.asarray(rows)
        return {
            "pixel_values": torch.from_numpy(np.ascontiguousarray(self.pixels[index])),
            "labels": torch.from_numpy(self.labels[index]),
        }


@dataclass(frozen=True)
class CaptionedRows:
    """Images with their texts.

    Attributes:
        pixels: float32 (rows, channels, height, width), normalised for the model.
        texts: one each, with the pairs' labels.
        held: bool (rows, 2), whether a row has its image, and its text.
        tokens: of an image.
    """

    pixels: np.ndarray
    texts: TokenRows
    held: np.ndarray
    tokens: int

    def __len__(self) -> int:
        return len(self.texts)

    @property
    def lengths(self) -> np.ndarray:
        """Tokens of both, (rows,)."""
        lengths: np.ndarray = self.texts.lengths + self.tokens
        return lengths

    def batch(self, rows: Sequence[int] | np.ndarray) -> Batch:
        """pixel_values (B, channels, height, width); input_ids and attention_mask (B, T); held and labels (B, 2)."""
        index = np.asarray(rows)
        text = self.texts.batch(rows)
        return text | {
            "pixel_values": torch.from_numpy(np.ascontiguousarray(self.pixels[index])),
            "held": torch.from_numpy(np.array(self.held[index])),
            "labels": text["labels"][:, None].expand(-1, 2),
        }


@dataclass(frozen=True)
class DescribedRows:
    """What a frozen encoder has made of images, and texts that say what they show.

    Attributes:
        patches: float32 (rows, N, width).
        texts: one each.
        cut: texts whose end was cut off.
    """

    patches: np.ndarray
    texts: TokenRows
    cut: int = 0

    def __len__(self) -> int:
        return len(self.texts)

    @property
    def lengths(self) -> np.ndarray:
        """Tokens of both, (rows,)."""
        lengths: np.ndarray = self.texts.lengths + self.patches.shape[1]
        return lengths

    def batch(self, rows: Sequence[int] | np.ndarray) -> Batch:
        """patches (B, N, width); input_ids, attention_mask and labels (B, T), of the texts alone."""
        patches = torch.from_numpy(np.ascontiguousarray(self.patches[np.asarray(rows)]))
        return self.texts.batch(rows) | {"patches": patches}


@dataclass(frozen=True)
class AnsweredRows:
    """Texts that an encoder reads, and those that a decoder is to write.

    Attributes:
        texts: what is read.
        answers: one each.
        cut: rows of which a text's or an answer's end was cut off.
    """

    texts: TokenRows
    answers: TokenRows
    cut: int = 0

    def __len__(self) -> int:
        return len(self.texts)

    @property
    def lengths(self) -> np.ndarray:
        """Tokens of both, (rows,)."""
        lengths: np.ndarray = self.texts.lengths + self.answers.lengths
        return lengths

    @property
    def longer_lengths(self) -> np.ndarray:
        """Tokens of each row's longer side, (rows,): a limit of tokens is one of either."""
        longer: np.ndarray = np.maximum(self.texts.lengths, self.answers.lengths)
        return longer

    def batch(self, rows: Sequence[int] | np.ndarray) -> Batch:
        """input_ids and attention_mask (B, S) of the texts; labels (B, T), the answers' tokens, all of them."""
        read, said = self.texts.batch(rows), self.answers.batch(rows)
        labels = said["input_ids"].masked_fill(said["attention_mask"] == 0, IGNORED)
        return {"input_ids": read["input_ids"], "attention_mask": read["attention_mask"], "labels": labels}


MADE_UP_TOKENS = 16
"""Tokens or patches of a made-up row: any model reads as many."""


def make_up_batch(config: Any, rows: int, generator: torch.Generator) -> Batch:
    """Rows that a model of `config` can read: texts of random tokens, or images of noise."""
    if hasattr(config, "patch_size"):  # BEiT has a vocabulary, too: of what it was trained to see
        side = math.isqrt(MADE_UP_TOKENS) * config.patch_size
        return {"pixel_values": torch.randn(rows, 3, side, side, generator=generator)}
    ids = torch.randint(config.vocab_size, (rows, MADE_UP_TOKENS), generator=generator)
    return {"input_ids": ids, "attention_mask": torch.ones_like(ids)}


def batch_by_length(lengths: np.ndarray, batch_size: int) -> list[np.ndarray]:
    """Row indices in batches of similar length: a pure function of the lengths, longest first."""
    order = np.argsort(-lengths, kind="stable")
    return [order[i : i + batch_size] for i in range(0, len(order), batch_size)]


@dataclass(frozen=True)
class RelabeledRows:
    """Rows whose labels (n,) are others than those that `examples` holds."""

    examples: Examples
    labels: np.ndarray

    def __len__(self) -> int:
        return len(self.examples)

    @property
    def lengths(self) -> np.ndarray:
        """Tokens per row, (rows,)."""
        return self.examples.lengths

    def batch(self, rows: Sequence[int] | np.ndarray) -> Batch:
        """The batch with the other labels."""
        return self.examples.batch(rows) | {"labels": torch.from_numpy(self.labels[np.asarray(rows)])}

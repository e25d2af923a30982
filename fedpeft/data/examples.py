"""Model-ready examples: token ids of ragged length, or images of one size, with labels.

Token ids are stored in one flat array with offsets, memory-mapped from the cache, so ten thousand clients share one
copy. Examples are padded only when a batch is built, to the longest one in the batch.
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

from fedpeft.data.rows import CLIP_AXES
from fedpeft.data.tagged_words import IGNORED
from fedpeft.machine import growing_array
from fedpeft.machine.mapped_files import leave

Batch = dict[str, Tensor]
"""Arguments of the model's forward pass, and `labels`: classes (B,), or tokens (B, T) with -100 for none."""

LENGTH_STEP = 16
"""Batches are padded to a multiple of this many tokens.

The CPU's matrix library keeps kernels and scratch memory for every shape that it has seen. After a few hundred
lengths these take half a gigabyte per worker.
"""


def round_up_length(tokens: int) -> int:
    """Round `tokens` up to a multiple of `LENGTH_STEP`."""
    return -(-tokens // LENGTH_STEP) * LENGTH_STEP


class Examples(Protocol):
    """Interface of a set of examples for training and evaluation."""

    @property
    def lengths(self) -> np.ndarray:
        """Tokens per row, (rows,)."""
        ...

    def __len__(self) -> int:
        """Return the number of examples."""
        ...

    def batch(self, rows: Sequence[int] | np.ndarray) -> Batch:
        """Return the padded batch of these rows."""
        ...


@dataclass(frozen=True)
class TokenRows:
    """Token ids of texts.

    Attributes:
        ids: int32 (total,); row i is ids[offsets[i]:offsets[i + 1]].
        offsets: int64 (rows + 1,).
        labels: int64 (rows,); None for language modeling.
        padding_id: fills the end of shorter rows.
        targets: bool (total,), the tokens that count in a language model's loss; None: all but the first of a row.
        cut: number of rows that were truncated; counted for language models only.
    """

    ids: np.ndarray
    offsets: np.ndarray
    labels: np.ndarray | None
    padding_id: int
    targets: np.ndarray | None = None
    cut: int = 0

    def __len__(self) -> int:
        """Return the number of rows."""
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
        """Return input_ids and attention_mask (B, T), and labels (B,) or (B, T).

        T is the longest row's length, rounded up to `LENGTH_STEP`.
        """
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
        """Return the rows of each sequence concatenated without padding between them, for language modeling.

        Args:
            sequences: rows; a sequence may be empty.
            tokens: T, at least as many as any sequence holds.

        Returns:
            input_ids, position_ids and labels (B, T). Positions start at 0 with each row, and with the padding at the
            end.
            Without attention_mask, transformers uses these restarts to keep rows from seeing each other.
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
    """Token ids with a label for some of the tokens.

    Attributes:
        tags: int64 (total,), the label of each token; `IGNORED` for tokens without one.
    """

    tags: np.ndarray = field(default_factory=lambda: np.zeros(0, np.int64))

    def batch(self, rows: Sequence[int] | np.ndarray) -> Batch:
        """Return the batch of `TokenRows`, with the tokens' labels (B, T)."""
        batch = super().batch(rows)
        labels = torch.full_like(batch["input_ids"], IGNORED)
        for b, row in enumerate(rows):
            start, end = int(self.offsets[row]), int(self.offsets[row + 1])
            labels[b, : end - start] = torch.from_numpy(np.array(self.tags[start:end], np.int64))
        return {**batch, "labels": labels}


@dataclass(frozen=True)
class PairRows:
    """Two sequences per example: two answers to a question, the better one first, or a query and its document.

    Attributes:
        answers: 2 n rows, as tokens or as hidden states; example i has the rows 2 i and 2 i + 1.
        cut: number of examples with a truncated sequence.
    """

    answers: Examples
    cut: int = 0

    sequences: ClassVar[int] = 2
    """Number of sequences per example in a forward pass."""

    def __len__(self) -> int:
        """Return the number of pairs."""
        return len(self.answers) // 2

    @property
    def lengths(self) -> np.ndarray:
        """Tokens of each row's longer sequence, (rows,)."""
        longest: np.ndarray = self.answers.lengths.reshape(-1, 2).max(1)
        return longest

    def batch(self, rows: Sequence[int] | np.ndarray) -> Batch:
        """Return the batch of both sequences; each tensor has the shape (B, 2, ...)."""
        index = np.asarray(rows)
        both = self.answers.batch(np.stack([2 * index, 2 * index + 1], 1).ravel())
        return {name: tensor.view(-1, 2, *tensor.shape[1:]) for name, tensor in both.items()}


@dataclass(frozen=True)
class ImageRows:
    """Images for a model, or clips, whose frames pass it as images do.

    Attributes:
        pixels: float32 (rows, channels, height, width), normalized for the model; for clips (rows, frames, channels,
            height, width).
        labels: int64 (rows,), or with labels of patches (rows, patches).
        tokens: number of tokens per image or frame.
    """

    pixels: np.ndarray
    labels: np.ndarray
    tokens: int

    def __len__(self) -> int:
        """Return the number of images."""
        return len(self.labels)

    @property
    def sequences(self) -> int:
        """Number of sequences per example in a forward pass: the frames of a clip."""
        return int(self.pixels.shape[1]) if self.pixels.ndim == CLIP_AXES else 1

    @property
    def lengths(self) -> np.ndarray:
        """Tokens per image or frame, (rows,): all equal."""
        return np.full(len(self), self.tokens)

    def batch(self, rows: Sequence[int] | np.ndarray) -> Batch:
        """Return pixel_values (B, channels, height, width), for clips (B, frames, ...), and labels (B,)."""
        index = np.asarray(rows)
        return {
            "pixel_values": torch.from_numpy(np.ascontiguousarray(self.pixels[index])),
            "labels": torch.from_numpy(self.labels[index]),
        }


@dataclass(frozen=True)
class CaptionedRows:
    """Images with their texts.

    Attributes:
        pixels: float32 (rows, channels, height, width), normalized for the model.
        texts: one text per image, with the pairs' labels.
        held: bool (rows, 2), whether an example has its image, and whether it has its text.
        tokens: number of tokens per image.
    """

    pixels: np.ndarray
    texts: TokenRows
    held: np.ndarray
    tokens: int

    def __len__(self) -> int:
        """Return the number of pairs."""
        return len(self.texts)

    @property
    def lengths(self) -> np.ndarray:
        """Tokens of image and text together, (rows,)."""
        lengths: np.ndarray = self.texts.lengths + self.tokens
        return lengths

    def batch(self, rows: Sequence[int] | np.ndarray) -> Batch:
        """Return pixel_values, input_ids and attention_mask, held and labels.

        Their shapes are (B, channels, height, width), twice (B, T), and twice (B, 2).
        """
        index = np.asarray(rows)
        text = self.texts.batch(rows)
        return text | {
            "pixel_values": torch.from_numpy(np.ascontiguousarray(self.pixels[index])),
            "held": torch.from_numpy(np.array(self.held[index])),
            "labels": text["labels"][:, None].expand(-1, 2),
        }


@dataclass(frozen=True)
class DescribedRows:
    """Outputs of a frozen image encoder, with captions.

    Attributes:
        patches: float32 (rows, N, width).
        texts: one caption per image.
        cut: number of truncated captions.
    """

    patches: np.ndarray
    texts: TokenRows
    cut: int = 0

    def __len__(self) -> int:
        """Return the number of pairs."""
        return len(self.texts)

    @property
    def lengths(self) -> np.ndarray:
        """Tokens of patches and caption together, (rows,)."""
        lengths: np.ndarray = self.texts.lengths + self.patches.shape[1]
        return lengths

    def batch(self, rows: Sequence[int] | np.ndarray) -> Batch:
        """Return patches (B, N, width), and the captions' input_ids, attention_mask and labels (B, T)."""
        patches = torch.from_numpy(np.ascontiguousarray(self.patches[np.asarray(rows)]))
        return self.texts.batch(rows) | {"patches": patches}


@dataclass(frozen=True)
class AnsweredRows:
    """Pairs of source text, for an encoder, and target text, for a decoder.

    Attributes:
        texts: source texts.
        answers: one target text per source text.
        cut: number of pairs with a truncated text.
    """

    texts: TokenRows
    answers: TokenRows
    cut: int = 0

    def __len__(self) -> int:
        """Return the number of pairs."""
        return len(self.texts)

    @property
    def lengths(self) -> np.ndarray:
        """Tokens of both texts together, (rows,)."""
        lengths: np.ndarray = self.texts.lengths + self.answers.lengths
        return lengths

    @property
    def longer_lengths(self) -> np.ndarray:
        """Tokens of each pair's longer text, (rows,); a limit of tokens applies to each text."""
        longer: np.ndarray = np.maximum(self.texts.lengths, self.answers.lengths)
        return longer

    def batch(self, rows: Sequence[int] | np.ndarray) -> Batch:
        """Return the source's input_ids and attention_mask (B, S), and labels (B, T), all of the target's tokens."""
        read, said = self.texts.batch(rows), self.answers.batch(rows)
        labels = said["input_ids"].masked_fill(said["attention_mask"] == 0, IGNORED)
        return {"input_ids": read["input_ids"], "attention_mask": read["attention_mask"], "labels": labels}


MADE_UP_TOKENS = 16
"""Number of tokens or patches of a made-up example; any model accepts as many."""


def make_up_batch(config: Any, rows: int, generator: torch.Generator) -> Batch:
    """Return made-up examples for a model of `config`: random tokens, or images of noise."""
    if hasattr(config, "patch_size"):  # BEiT has a vocabulary, too: its visual tokens
        side = math.isqrt(MADE_UP_TOKENS) * config.patch_size
        return {"pixel_values": torch.randn(rows, 3, side, side, generator=generator)}
    ids = torch.randint(config.vocab_size, (rows, MADE_UP_TOKENS), generator=generator)
    return {"input_ids": ids, "attention_mask": torch.ones_like(ids)}


def batch_by_length(lengths: np.ndarray, batch_size: int) -> list[np.ndarray]:
    """Return row indices in batches of similar length, longest first; they depend on the lengths alone."""
    order = np.argsort(-lengths, kind="stable")
    return [order[i : i + batch_size] for i in range(0, len(order), batch_size)]


@dataclass(frozen=True)
class RelabeledRows:
    """Examples with other labels (n,) than those of `examples`."""

    examples: Examples
    labels: np.ndarray

    def __len__(self) -> int:
        """Return the number of rows."""
        return len(self.examples)

    @property
    def lengths(self) -> np.ndarray:
        """Tokens per row, (rows,)."""
        return self.examples.lengths

    def batch(self, rows: Sequence[int] | np.ndarray) -> Batch:
        """Return the batch with the other labels."""
        return self.examples.batch(rows) | {"labels": torch.from_numpy(self.labels[np.asarray(rows)])}

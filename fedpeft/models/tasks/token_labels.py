"""Token labels: a label for each word of a text, from its first token; the base, and one linear head on each token.

A row is a JSON object of two lists of equal length, `words` (strings) and `tags` (positions among the label names). The
model's own fast tokenizer cuts words into tokens; the first token of a word bears its tag, and the others none. What is
cut off at the end of a row is not asked.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fedpeft.data.examples import IGNORED, Batch, Examples
from fedpeft.data.images import check_reads_texts
from fedpeft.data.rows import Rows
from fedpeft.data.tagged_words import parse_row
from fedpeft.data.tokens import build_tagged_rows, get_padding_id, load_tokenizer
from fedpeft.errors import ConfigError, ModelError
from fedpeft.models import encoders
from fedpeft.models.loading import Say, ignore_message, load_base
from fedpeft.models.task import FederatedModel, RowLosses, Task
from fedpeft.models.tasks.classification import Classifier, compute_hidden_states


class TokenClassifier(Classifier):
    """Base and head, of each token; several copies of a base are not made for it."""

    def features(self, batch: Batch) -> Tensor:
        """Of each token, (B, T, d), in at least fp32."""
        hidden = compute_hidden_states(self.base, {name: tensor for name, tensor in batch.items() if name != "labels"})
        hidden = hidden[:, -batch["labels"].shape[1] :]  # the positions of a prompt stand before the row's own
        return hidden if hidden.dtype == torch.float64 else hidden.float()

    def forward(self, batch: Batch) -> Tensor:
        """Logits, (B, T, classes)."""
        features = self.features(batch)
        logits: Tensor = self.head(features.flatten(0, 1))  # as rows, so that a head of many clients fits
        return logits.view(*features.shape[:2], -1)


@dataclass(frozen=True)
class TokenLabels(Task):
    """Labels of words."""

    metric = "accuracy"
    encodes: ClassVar[bool] = True
    per_example: ClassVar[bool] = False
    per_example_missing: ClassVar[str] = "has a head that sees the words of all rows side by side"

    def check(self, model: FederatedModel) -> None:
        """Refuse adapters that make several copies of a row.

        Raises:
            ConfigError: this one does.
        """
        if getattr(model, "copies", 1) != 1 or model.objective is not None:
            raise ConfigError(
                "FP1220 this PEFT method mixes what it says of whole rows; take lora for labels of tokens"
            )

    def tokenise(self, rows: Rows, model_directory: Path, max_tokens: int) -> Examples:
        """Token ids with the tag of each token, `IGNORED` where it has none.

        Raises:
            DataError: a row is no such object.
            ModelError: the model reads no texts, or its tokenizer does not say which word a token is of.
        """
        check_reads_texts(model_directory)
        tokenizer = load_tokenizer(model_directory)
        if not getattr(tokenizer, "is_fast", False):
            raise ModelError(
                f"FP4048 the tokenizer in {model_directory} does not say which word a token is of; labels of tokens "
                "need a fast one, such as minilm's"
            )
        parsed = [parse_row(row) for row in rows.inputs]
        if not parsed:  # of which the tokenizer would make one
            return build_tagged_rows([], [], get_padding_id(tokenizer))
        encoded = tokenizer(
            [words for words, _ in parsed], is_split_into_words=True, truncation=True, max_length=max_tokens
        )
        labels = [align_tags(encoded.word_ids(i), tags) for i, (_, tags) in enumerate(parsed)]
        return build_tagged_rows(encoded["input_ids"], labels, get_padding_id(tokenizer))

    def base(self, model_directory: Path, dtype: torch.dtype, say: Say = ignore_message, **options: Any) -> nn.Module:
        """The encoder (see `fedpeft.models.encoders`)."""
        return load_base(encoders.from_pretrained, model_directory, dtype, compute_hidden_states, say, **options)

    def model(self, base: nn.Module, classes: int | None) -> TokenClassifier:
        """The encoder with a zero head."""
        return TokenClassifier(base, encoders.zero_head(base, classes or 0))

    def losses(self, logits: Tensor, batch: Batch) -> RowLosses:
        """Cross-entropy summed over a row's labelled tokens."""
        labels = batch["labels"]
        counted = labels != IGNORED
        each = F.cross_entropy(logits.flatten(0, 1), labels.flatten(), reduction="none", ignore_index=IGNORED)
        correct = ((logits.argmax(-1) == labels) & counted).sum(1)
        return RowLosses(each.view(labels.shape).sum(1), counted.sum(1).to(each.dtype), correct.to(each.dtype))


def align_tags(words: list[int | None], tags: list[int]) -> np.ndarray:
    """The tag of each token, (tokens,), given which word it is of: of the first of a word that word's, else none."""
    found = np.full(len(words), IGNORED, np.int64)
    before: int | None = None
    for place, word in enumerate(words):
        if word is not None and word != before:
            found[place] = tags[word]
        before = word
    return found


part = TokenLabels

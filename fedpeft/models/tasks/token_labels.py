"""Token labels: a label for each word of a text, from its first token; the base, and one linear head on each token.

An example is a JSON object of two lists of equal length, `words` (strings) and `tags` (indices of label names). The
model's own fast tokenizer cuts words into tokens. The first token of a word has its tag, and the others have none.
Words that are cut off at the end of an example are not predicted.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
import torch.nn.functional as functional
from torch import Tensor, nn

from fedpeft.data.examples import Batch, Examples
from fedpeft.data.images import check_reads_texts
from fedpeft.data.rows import Rows
from fedpeft.data.tagged_words import IGNORED, parse_row
from fedpeft.data.tokens import build_tagged_rows, get_padding_id, load_tokenizer
from fedpeft.errors import ConfigError, ModelError
from fedpeft.models import encoders
from fedpeft.models.loading import load_base
from fedpeft.models.task import FederatedModel, RowLosses, Say, Task, ignore_message
from fedpeft.models.tasks.classification import Classifier, compute_hidden_states
from fedpeft.parts import name_of


class TokenClassifier(Classifier):
    """Base and head for each token; it does not support several copies of an example."""

    def features(self, batch: Batch) -> Tensor:
        """Compute features of each token, (B, T, d), in at least fp32."""
        hidden = compute_hidden_states(self.base, {name: tensor for name, tensor in batch.items() if name != "labels"})
        hidden = hidden[:, -batch["labels"].shape[1] :]  # a prompt's positions come first and are skipped
        return hidden if hidden.dtype == torch.float64 else hidden.float()

    def forward(self, batch: Batch) -> Tensor:
        """Compute logits, (B, T, classes)."""
        features = self.features(batch)
        logits: Tensor = self.head(features.flatten(0, 1))  # flat, so that a stacked head of many clients works
        return logits.view(*features.shape[:2], -1)


@dataclass(frozen=True)
class TokenLabels(Task):
    """Prediction of the words' labels."""

    metric = "accuracy"
    encodes: ClassVar[bool] = True
    per_example: ClassVar[bool] = False
    per_example_missing: ClassVar[str] = "has a head that reads the words of all examples in one batch"

    def check(self, model: FederatedModel) -> None:
        """Refuse adapters that make several copies of an example.

        Raises:
            ConfigError: the model's adapter does.
        """
        if model.copies != 1 or model.objective is not None:
            raise ConfigError(
                f"FP1220 this PEFT method mixes predictions of whole examples, and {name_of(type(self))} predicts "
                "their parts; use --peft lora"
            )

    def tokenise(self, rows: Rows, model_directory: Path, max_tokens: int) -> Examples:
        """Convert words to token ids with the tag of each token, `IGNORED` if it has none.

        Raises:
            DataError: an example is not such an object.
            ModelError: the model does not read texts, or its tokenizer does not map tokens to words.
        """
        check_reads_texts(model_directory)
        tokenizer = load_tokenizer(model_directory)
        if not getattr(tokenizer, "is_fast", False):
            raise ModelError(
                f"FP4048 the tokenizer in {model_directory} does not map tokens to words; token labels need a fast "
                "tokenizer, such as minilm's"
            )
        parsed = [parse_row(row) for row in rows.inputs]
        if not parsed:  # the tokenizer would create one example
            return build_tagged_rows([], [], get_padding_id(tokenizer))
        encoded = tokenizer(
            [words for words, _ in parsed], is_split_into_words=True, truncation=True, max_length=max_tokens
        )
        labels = [align_tags(encoded.word_ids(i), tags) for i, (_, tags) in enumerate(parsed)]
        return build_tagged_rows(encoded["input_ids"], labels, get_padding_id(tokenizer))

    def base(self, model_directory: Path, dtype: torch.dtype, say: Say = ignore_message, **options: Any) -> nn.Module:
        """Load the encoder (see `fedpeft.models.encoders`)."""
        return load_base(encoders.from_pretrained, model_directory, dtype, compute_hidden_states, say, **options)

    def model(self, base: nn.Module, classes: int | None) -> TokenClassifier:
        """Return the encoder with a zero head."""
        return TokenClassifier(base, encoders.create_zero_head(base, classes or 0))

    def losses(self, logits: Tensor, batch: Batch) -> RowLosses:
        """Compute the cross-entropy summed over an example's labeled tokens."""
        labels = batch["labels"]
        counted = labels != IGNORED
        each = functional.cross_entropy(logits.flatten(0, 1), labels.flatten(), reduction="none", ignore_index=IGNORED)
        correct = ((logits.argmax(-1) == labels) & counted).sum(1)
        return RowLosses(each.view(labels.shape).sum(1), counted.sum(1).to(each.dtype), correct.to(each.dtype))


def align_tags(words: list[int | None], tags: list[int]) -> np.ndarray:
    """Return the tag of each token, (tokens,): the first token of a word has its tag, and the others have none.

    Args:
        words: the word of each token; None: a special token.
        tags: the tag of each word.
    """
    labels = np.full(len(words), IGNORED, np.int64)
    before: int | None = None
    for place, word in enumerate(words):
        if word is not None and word != before:
            labels[place] = tags[word]
        before = word
    return labels


part = TokenLabels

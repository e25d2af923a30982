"""Causal language modelling: predict each token from the ones before it; the headline number is perplexity."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fedpeft.data.examples import IGNORED, Batch, Examples
from fedpeft.data.rows import Rows
from fedpeft.data.tokens import token_rows
from fedpeft.errors import DataError
from fedpeft.models.task import FederatedModel, RowLosses, Task, load_base


class LanguageModel(FederatedModel):
    """A causal language model; logits are kept for the predicting positions only."""

    def __init__(self, base: nn.Module) -> None:
        super().__init__()
        self.base = base

    def forward(self, batch: Batch) -> Tensor:
        """Logits of the next token, (B, T - 1, vocabulary), in at least fp32."""
        logits: Tensor = self.base(
            input_ids=batch["input_ids"], attention_mask=batch["attention_mask"], use_cache=False
        ).logits
        logits = logits[:, -batch["input_ids"].shape[1] :][:, :-1]  # a prompt's positions stand before, uncounted
        return logits if logits.dtype == torch.float64 else logits.float()


@dataclass(frozen=True)
class CausalLM(Task):
    """Next tokens of rows."""

    metric = "perplexity"
    higher_is_better = False

    def tokenise(self, rows: Rows, model_directory: Path, max_tokens: int) -> Examples:
        """Token ids; no labels but the tokens themselves."""
        if not isinstance(rows.inputs, list | tuple):
            raise DataError("causal language modelling needs text rows; this data set holds images")
        return token_rows(rows.inputs, None, model_directory, max_tokens)

    def base(self, model_directory: Path, dtype: torch.dtype, **options: Any) -> nn.Module:
        """The language model with its output layer."""
        from transformers import AutoModelForCausalLM

        return load_base(AutoModelForCausalLM.from_pretrained, model_directory, dtype, **options)

    def model(self, base: nn.Module, classes: int | None) -> LanguageModel:
        """The language model as it is: no head is added."""
        return LanguageModel(base)

    def losses(self, logits: Tensor, batch: Batch) -> RowLosses:
        """Cross-entropy summed over a row's predicted tokens."""
        labels = batch["labels"][:, 1:]
        counted = labels != IGNORED
        token_losses = F.cross_entropy(logits.transpose(1, 2), labels, reduction="none", ignore_index=IGNORED)
        correct = ((logits.argmax(-1) == labels) & counted).sum(1)
        return RowLosses(token_losses.sum(1), counted.sum(1).to(token_losses.dtype), correct.to(token_losses.dtype))


part = CausalLM

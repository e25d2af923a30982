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
from fedpeft.errors import DataError, ModelError
from fedpeft.models.loading import Say, load_base, reads_ahead, reason, unheard
from fedpeft.models.task import FederatedModel, RowLosses, Task


def next_tokens(base: nn.Module, batch: Batch) -> Tensor:
    """What a base says of the token behind each, (B, T, vocabulary)."""
    logits: Tensor = base(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"], use_cache=False).logits
    return logits


class LanguageModel(FederatedModel):
    """A causal language model; logits are kept for the predicting positions only."""

    def __init__(self, base: nn.Module) -> None:
        super().__init__()
        self.base = base

    def forward(self, batch: Batch) -> Tensor:
        """Logits of the next token, (B, T - 1, vocabulary), in at least fp32."""
        logits = next_tokens(self.base, batch)
        logits = logits[:, -batch["input_ids"].shape[1] :][:, :-1]  # a prompt's positions stand before, uncounted
        return logits if logits.dtype == torch.float64 else logits.float()


def check_causal(model_directory: Path) -> None:
    """Refuse what its architecture tells is no causal language model, before its weights are loaded.

    Raises:
        ModelError: it is an encoder, or of a kind that transformers has no causal language model for.
    """
    from transformers import AutoConfig
    from transformers.models.auto.modeling_auto import (
        MODEL_FOR_CAUSAL_LM_MAPPING_NAMES,
        MODEL_FOR_MASKED_LM_MAPPING_NAMES,
    )

    try:
        config = AutoConfig.from_pretrained(str(model_directory), local_files_only=True)
    except (OSError, ValueError, KeyError) as error:
        raise ModelError(f"no model could be loaded from {model_directory}: {reason(error)}") from error
    kind = config.model_type
    if kind not in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES:
        raise ModelError(
            f"the model in {model_directory} is of the kind {kind!r}, which has no causal language model; take one "
            "such as smollm2"
        )
    decoder = getattr(config, "is_decoder", False) or config.is_encoder_decoder  # of the latter the decoder is taken
    if kind in MODEL_FOR_MASKED_LM_MAPPING_NAMES and not decoder:
        raise _not_causal(model_directory, kind)


def _not_causal(model_directory: Path, kind: str) -> ModelError:
    return ModelError(
        f"the model in {model_directory} ({kind}) reads ahead: what it predicts of a token depends on later ones, so "
        "it is no causal language model; take one such as smollm2, or rows with labels and classification"
    )


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

    def base(self, model_directory: Path, dtype: torch.dtype, say: Say = unheard, **options: Any) -> nn.Module:
        """The language model with its output layer.

        Raises:
            ModelError: it is no causal one: what it predicts depends on later tokens.
        """
        from transformers import AutoModelForCausalLM

        check_causal(model_directory)
        base = load_base(AutoModelForCausalLM.from_pretrained, model_directory, dtype, next_tokens, say, **options)
        if reads_ahead(base, next_tokens):
            raise _not_causal(model_directory, type(base).__name__)
        return base

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

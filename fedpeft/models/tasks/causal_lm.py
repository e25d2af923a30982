"""Causal language modelling: predict each token from the ones before it; the headline number is perplexity."""

from __future__ import annotations

import warnings
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fedpeft.data.examples import IGNORED, Batch, Examples, make_up_batch
from fedpeft.data.model_config import load_model_config
from fedpeft.data.rows import Rows
from fedpeft.data.text_column import take_texts
from fedpeft.data.tokens import tokenize_texts
from fedpeft.errors import DataError, ModelError
from fedpeft.models.loading import Say, ignore_message, is_reading_ahead, load_base
from fedpeft.models.task import FederatedModel, RowLosses, Task
from fedpeft.models.token_losses import (
    AGREEMENT,
    OutputLayer,
    compute_token_losses,
    find_language_model,
    get_counted_labels,
    sum_by_row,
)

INPUTS = ("input_ids", "inputs_embeds", "attention_mask", "position_ids")
"""What a language model is given of a batch."""


def compute_logits(base: nn.Module, batch: Batch) -> Tensor:
    """What a base says of the token behind each, (B, T, vocabulary)."""
    given = {name: batch[name] for name in INPUTS if name in batch}
    logits: Tensor = base(**given, use_cache=False).logits
    return logits


def _count_positions(batch: Batch) -> int:
    """Positions of a batch, padding included."""
    return next(batch[name] for name in INPUTS if name in batch).shape[1]


class LanguageModel(FederatedModel):
    """A causal language model; logits are kept for the predicting positions only."""

    peft_task: ClassVar[str] = "CAUSAL_LM"

    def __init__(self, base: nn.Module) -> None:
        super().__init__()
        self.base = base
        self._output: list[OutputLayer | None] = []  # in a list, or it would be a child twice; empty: not looked for

    def select_inputs(self, batch: Batch) -> Batch:
        """What the base reads of a batch: by default all of it."""
        return batch

    def read(self, batch: Batch) -> Tensor:
        """The base's logits at all positions."""
        return compute_logits(self.base, self.select_inputs(batch))

    def select_predicting(self, values: Tensor, batch: Batch) -> Tensor:
        """Of what the base has at all positions those that predict a token of the row."""
        return values[:, -_count_positions(batch) :][:, :-1]  # a prompt's positions stand before, uncounted

    def get_counted_labels(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """Labels of the predicting positions, and which of them count."""
        return get_counted_labels(batch)

    def row_losses(self, batch: Batch) -> RowLosses | None:
        """Losses without the logits of all positions; None where the output layer is trained, or is none that
        `OutputLayer` knows."""
        if not self._output:
            self._output = [OutputLayer.from_base(self.base)]
        [output] = self._output
        if output is None or not (output.plain or not torch.is_grad_enabled()):
            return None
        hidden, known = output.capture_input(lambda: self.read(batch))
        if not known:
            self._output = [None]
            return None
        hidden = self.select_predicting(hidden, batch)
        labels, counted = self.get_counted_labels(batch)
        each, right = compute_token_losses(hidden[counted], labels[counted], output.compute_logits)
        return RowLosses(
            sum_by_row(each, counted), counted.sum(1).to(each.dtype), sum_by_row(right.to(each.dtype), counted)
        )

    def forward(self, batch: Batch) -> Tensor:
        """Logits of the next token, (B, T - 1, vocabulary), in at least fp32."""
        logits = self.select_predicting(self.read(batch), batch)
        return logits if logits.dtype == torch.float64 else logits.float()


def check_causal(model_directory: Path) -> None:
    """Refuse what its architecture tells is no causal language model, before its weights are loaded.

    Raises:
        ModelError: it is an encoder, or of a kind that transformers has no causal language model for.
    """
    from transformers.models.auto.modeling_auto import (
        MODEL_FOR_CAUSAL_LM_MAPPING,
        MODEL_FOR_MASKED_LM_MAPPING_NAMES,
    )

    config = load_model_config(model_directory)
    kind = config.model_type
    if type(config) not in MODEL_FOR_CAUSAL_LM_MAPPING:
        raise ModelError(
            f"FP4043 the model in {model_directory} is of the kind {kind!r}, which has no causal language model; take "
            "one such as smollm2"
            + (", or pairs of texts: file(path=..., text=COLUMN, target=COLUMN)" if config.is_encoder_decoder else "")
        )
    decoder = getattr(config, "is_decoder", False) or config.is_encoder_decoder  # of the latter the decoder is taken
    if kind in MODEL_FOR_MASKED_LM_MAPPING_NAMES and not decoder:
        raise _create_not_causal_error(model_directory, kind)


def _check_window(config: Any, dtype: torch.dtype) -> None:
    """Refuse windows in fp64 where transformers writes attention out, as for Gemma 2, whose caps no kernel has: it
    computes it in fp32, in which a mask of fp64 is infinite, and padding that sees nothing but padding not a number.

    Raises:
        ModelError: the model is of that kind.
    """
    window = getattr(config, "sliding_window", None)
    written_out = getattr(config, "_attn_implementation", None) == "eager"
    if dtype == torch.float64 and written_out and window and window < config.max_position_embeddings:
        raise ModelError(
            f"FP4044 {config.model_type} looks through windows of {window} tokens with an attention that is computed "
            "in fp32, and in fp64 padded rows come out as not a number; take --dtype fp32 or bf16"
        )


def _create_not_causal_error(model_directory: Path, kind: str) -> ModelError:
    return ModelError(
        f"FP4045 the model in {model_directory} ({kind}) reads ahead: what it predicts of a token depends on later "
        "ones, so it is no causal language model; take one such as smollm2, or rows with labels and classification"
    )


def sum_losses(logits: Tensor, labels: Tensor, counted: Tensor) -> RowLosses:
    """Cross-entropy of logits (B, T, vocabulary) summed over the positions (B, T) that count."""
    each = F.cross_entropy(logits.flatten(0, 1), labels.flatten(), reduction="none", ignore_index=IGNORED)
    correct = ((logits.argmax(-1) == labels) & counted).sum(1)
    return RowLosses(each.view(labels.shape).sum(1), counted.sum(1).to(each.dtype), correct.to(each.dtype))


@dataclass(frozen=True)
class CausalLM(Task):
    """Next tokens of rows."""

    metric = "perplexity"

    def tokenise(self, rows: Rows, model_directory: Path, max_tokens: int) -> Examples:
        """Token ids; no labels but the tokens themselves."""
        if isinstance(rows.inputs, np.ndarray):
            raise DataError("FP3169 causal language modelling needs text rows; this data set holds images")
        cut = tokenize_texts(rows.inputs, None, model_directory, max_tokens)
        full = take_texts(rows.inputs, np.flatnonzero(cut.lengths == max_tokens))
        whole = tokenize_texts(full, None, model_directory, max_tokens + 1)
        return replace(cut, cut=int((whole.lengths > max_tokens).sum()))

    def base(self, model_directory: Path, dtype: torch.dtype, say: Say = ignore_message, **options: Any) -> nn.Module:
        """The language model with its output layer.

        Raises:
            ModelError: it is no causal one: what it predicts depends on later tokens.
        """
        from transformers import AutoModelForCausalLM

        check_causal(model_directory)
        base = load_base(AutoModelForCausalLM.from_pretrained, model_directory, dtype, compute_logits, say, **options)
        if is_reading_ahead(base, compute_logits):
            raise _create_not_causal_error(model_directory, type(base).__name__)
        _check_window(base.config, dtype)
        return base

    def model(self, base: nn.Module, classes: int | None) -> LanguageModel:
        """The language model as it is: no head is added."""
        return LanguageModel(base)

    def losses(self, logits: Tensor, batch: Batch) -> RowLosses:
        """Cross-entropy summed over a row's predicted tokens."""
        return sum_losses(logits, *get_counted_labels(batch))

    def row_losses(self, model: FederatedModel, batch: Batch, offsets: Tensor | None = None) -> RowLosses:
        """The same; where the output layer is not trained, without the logits of all positions."""
        found = model.row_losses(batch) if isinstance(model, LanguageModel) else None
        return super().row_losses(model, batch, offsets) if found is None else found

    def packs(self, model: FederatedModel) -> bool:
        """Two made-up rows give the same logits in a sequence as in two."""
        inner: Any = find_language_model(model.base)
        device = next(model.parameters()).device
        rows = make_up_batch(inner.config, 2, torch.Generator().manual_seed(0))["input_ids"].to(device)
        long, short = rows.shape[1], rows.shape[1] // 2
        mask = torch.ones_like(rows)
        mask[1, short:] = 0
        positions = torch.arange(long, device=device)
        one = {
            "input_ids": torch.cat([rows[0], rows[1, :short]])[None],
            "position_ids": torch.cat([positions, positions[:short]])[None],
        }
        try:
            with torch.no_grad(), warnings.catch_warnings(action="ignore"):
                apart = compute_logits(model.base, {"input_ids": rows, "attention_mask": mask})[:, -long:]
                both = compute_logits(model.base, one)[0, -long - short :]
        except (TypeError, ValueError, RuntimeError, AttributeError, IndexError):
            return False
        expected = torch.cat([apart[0], apart[1, :short]])
        off, largest = (both - expected).abs().max(), expected.abs().max()
        return bool(off <= AGREEMENT.get(expected.dtype, 1e-4) * largest)


part = CausalLM

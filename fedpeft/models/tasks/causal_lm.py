"""Causal language modeling: predict each token from the previous ones; the headline number is perplexity."""

from __future__ import annotations

import warnings
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
import torch.nn.functional as functional
from torch import Tensor, nn

from fedpeft.data.examples import Batch, Examples, make_up_batch
from fedpeft.data.model_config import load_model_config
from fedpeft.data.rows import Rows
from fedpeft.data.tagged_words import IGNORED
from fedpeft.data.text_column import take_texts
from fedpeft.data.tokens import tokenize_texts
from fedpeft.errors import DataError, ModelError
from fedpeft.models.loading import is_reading_ahead, load_base
from fedpeft.models.task import FederatedModel, RowLosses, Say, Task, ignore_message
from fedpeft.models.token_losses import (
    AGREEMENT,
    OutputLayer,
    compute_token_losses,
    find_language_model,
    find_likeliest,
    get_counted_labels,
    sum_by_row,
)

INPUTS = ("input_ids", "inputs_embeds", "attention_mask", "position_ids")
"""Names of the tensors in a batch that a language model reads."""


def compute_logits(base: nn.Module, batch: Batch) -> Tensor:
    """Compute a base's logits of the next tokens, (B, T, vocabulary)."""
    given = {name: batch[name] for name in INPUTS if name in batch}
    logits: Tensor = base(**given, use_cache=False).logits
    return logits


def _count_positions(batch: Batch) -> int:
    """Return the number of positions of a batch, with padding."""
    return next(batch[name] for name in INPUTS if name in batch).shape[1]


class LanguageModel(FederatedModel):
    """A causal language model; logits are kept for the predicting positions only."""

    peft_task: ClassVar[str] = "CAUSAL_LM"

    def __init__(self, base: nn.Module) -> None:
        """Hold the base."""
        super().__init__()
        self.base = base
        self._output: list[OutputLayer | None] = []  # in a list, so that it is not a child twice; empty: not searched

    def select_inputs(self, batch: Batch) -> Batch:
        """Return the part of a batch that the base reads; by default all of it."""
        return batch

    def read(self, batch: Batch) -> Tensor:
        """Compute the base's logits at all positions."""
        return compute_logits(self.base, self.select_inputs(batch))

    def select_predicting(self, values: Tensor, batch: Batch) -> Tensor:
        """Select the positions that predict a token of the example."""
        return values[:, -_count_positions(batch) :][:, :-1]  # a prompt's positions come first and are skipped

    def get_counted_labels(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """Return the labels of the predicting positions, and which of them count."""
        return get_counted_labels(batch)

    def _capture_predicting(self, batch: Batch) -> tuple[Tensor, OutputLayer] | None:
        """Return the output layer and its inputs at the predicting positions, (copies * B, T - 1, d).

        None if the output layer is trained, or `OutputLayer` does not support it.
        """
        if not self._output:
            self._output = [OutputLayer.from_base(self.base)]
        [output] = self._output
        if output is None or not (output.plain or not torch.is_grad_enabled()):
            return None
        hidden, known = output.capture_input(lambda: self.read(batch))
        if not known:
            self._output = [None]
            return None
        return self.select_predicting(hidden, batch), output

    def row_losses(self, batch: Batch) -> RowLosses | None:
        """Compute losses without the logits of all positions.

        Returns:
            The losses; None if the output layer is trained, or `OutputLayer` does not support it.
        """
        captured = self._capture_predicting(batch)
        if captured is None:
            return None
        hidden, output = captured
        labels, counted = self.get_counted_labels(batch)
        if self.copies > 1:
            of_copies = self.split_by_copy(hidden).transpose(1, 2)[counted]
            each = torch.stack(
                [
                    compute_token_losses(of_copy, labels[counted], output.compute_logits)[0]
                    for of_copy in of_copies.unbind(1)
                ]
            )
            each = -(self.get_log_shares(each)[:, None] - each).logsumexp(0)
            likeliest = find_likeliest(of_copies, self.get_log_shares(each), output.compute_logits)
            right = likeliest == labels[counted]
        else:
            each, right = compute_token_losses(hidden[counted], labels[counted], output.compute_logits)
        return _sum_tokens(each, right, counted)

    def copy_losses(self, batch: Batch) -> list[RowLosses]:
        """Compute the losses of each copy alone."""
        labels, counted = self.get_counted_labels(batch)
        captured = self._capture_predicting(batch)
        if captured is None:
            logits = self.split_by_copy(self.select_predicting(self.read(batch), batch))
            return [sum_losses(of_copy, labels, counted) for of_copy in logits.unbind(1)]
        hidden, output = captured
        return [
            _sum_tokens(*compute_token_losses(of_copy[counted], labels[counted], output.compute_logits), counted)
            for of_copy in self.split_by_copy(hidden).unbind(1)
        ]

    def predict(self, batch: Batch) -> Tensor:
        """Compute the logits of the token behind each position, (B, T, vocabulary)."""
        return self._mix(self.read(batch)[:, -_count_positions(batch) :])

    def forward(self, batch: Batch) -> Tensor:
        """Compute logits of the next token, (B, T - 1, vocabulary), in at least fp32."""
        return self._mix(self.select_predicting(self.read(batch), batch))

    def _mix(self, logits: Tensor) -> Tensor:
        """Return logits in at least fp32; for several copies, the log probabilities of their mixture."""
        logits = logits if logits.dtype == torch.float64 else logits.float()
        return logits if self.copies == 1 else self.mix_copies(self.split_by_copy(logits))


def _sum_tokens(each: Tensor, right: Tensor, counted: Tensor) -> RowLosses:
    """Sum losses and correct predictions (n,) of the positions that `counted` (B, T) marks, by example."""
    return RowLosses(
        sum_by_row(each, counted), counted.sum(1).to(each.dtype), sum_by_row(right.to(each.dtype), counted)
    )


def check_causal(model_directory: Path) -> None:
    """Refuse architectures that are not causal language models before their weights are loaded.

    Raises:
        ModelError: the model is an encoder, or transformers has no causal language model of its type.
    """
    from transformers.models.auto.modeling_auto import (
        MODEL_FOR_CAUSAL_LM_MAPPING,
        MODEL_FOR_MASKED_LM_MAPPING_NAMES,
    )

    config = load_model_config(model_directory)
    kind = config.model_type
    if type(config) not in MODEL_FOR_CAUSAL_LM_MAPPING:
        raise ModelError(
            f"FP4043 the model in {model_directory} has the type {kind!r}, which has no causal language model; "
            "choose one such as smollm2"
            + (", or pairs of texts: file(path=..., text=COLUMN, target=COLUMN)" if config.is_encoder_decoder else "")
        )
    decoder = getattr(config, "is_decoder", False) or config.is_encoder_decoder  # the latter's decoder is used
    if kind in MODEL_FOR_MASKED_LM_MAPPING_NAMES and not decoder:
        raise _create_not_causal_error(model_directory, kind)


def _check_window(config: Any, dtype: torch.dtype) -> None:
    """Refuse windows in fp64 if transformers computes attention without a kernel, as for Gemma 2's caps.

    It computes such attention in fp32, where a mask of fp64 is infinite, and padding that sees only padding becomes
    NaN.

    Raises:
        ModelError: the model is of that kind.
    """
    window = getattr(config, "sliding_window", None)
    written_out = getattr(config, "_attn_implementation", None) == "eager"
    if dtype == torch.float64 and written_out and window and window < config.max_position_embeddings:
        raise ModelError(
            f"FP4044 {config.model_type} has attention windows of {window} tokens, with which padded examples "
            "become NaN in fp64; use --dtype fp32 or bf16"
        )


def _create_not_causal_error(model_directory: Path, kind: str) -> ModelError:
    return ModelError(
        f"FP4045 the model in {model_directory} ({kind}) is not a causal language model, since its predictions "
        "depend on later tokens; choose one such as smollm2, or examples with labels and classification"
    )


def sum_losses(logits: Tensor, labels: Tensor, counted: Tensor) -> RowLosses:
    """Sum the cross-entropy of logits (B, T, vocabulary) over the positions (B, T) that count."""
    each = functional.cross_entropy(logits.flatten(0, 1), labels.flatten(), reduction="none", ignore_index=IGNORED)
    correct = ((logits.argmax(-1) == labels) & counted).sum(1)
    return RowLosses(each.view(labels.shape).sum(1), counted.sum(1).to(each.dtype), correct.to(each.dtype))


@dataclass(frozen=True)
class TokenTask(Task):
    """Prediction of tokens by a language model, from whatever comes before them."""

    metric = "perplexity"

    def base(self, model_directory: Path, dtype: torch.dtype, say: Say = ignore_message, **options: Any) -> nn.Module:
        """Load the language model with its output layer.

        Raises:
            ModelError: the model is not causal: its predictions depend on later tokens.
        """
        from transformers import AutoModelForCausalLM

        check_causal(model_directory)
        base = load_base(AutoModelForCausalLM.from_pretrained, model_directory, dtype, compute_logits, say, **options)
        if is_reading_ahead(base, compute_logits):
            raise _create_not_causal_error(model_directory, type(base).__name__)
        _check_window(base.config, dtype)
        return base

    def model(self, base: nn.Module, classes: int | None) -> LanguageModel:
        """Return the language model without a head."""
        return LanguageModel(base)

    def losses(self, logits: Tensor, batch: Batch) -> RowLosses:
        """Compute the cross-entropy summed over an example's predicted tokens."""
        return sum_losses(logits, *get_counted_labels(batch))

    def row_losses(self, model: FederatedModel, batch: Batch, offsets: Tensor | None = None) -> RowLosses:
        """Compute the losses; if the output layer is frozen, without the logits of all positions."""
        losses = model.row_losses(batch) if isinstance(model, LanguageModel) else None
        return super().row_losses(model, batch, offsets) if losses is None else losses


@dataclass(frozen=True)
class CausalLM(TokenTask):
    """Prediction of next tokens."""

    def tokenise(self, rows: Rows, model_directory: Path, max_tokens: int) -> Examples:
        """Convert texts to token ids, which are their own labels.

        Raises:
            DataError: the examples are images.
        """
        if isinstance(rows.inputs, np.ndarray):
            raise DataError(
                "FP3169 causal language modeling needs texts, and this dataset contains images; choose a "
                "dataset of texts"
            )
        cut = tokenize_texts(rows.inputs, None, model_directory, max_tokens)
        full = take_texts(rows.inputs, np.flatnonzero(cut.lengths == max_tokens))
        whole = tokenize_texts(full, None, model_directory, max_tokens + 1)
        return replace(cut, cut=int((whole.lengths > max_tokens).sum()))

    def packs(self, model: FederatedModel) -> bool:
        """Return whether two made-up examples have the same logits in one sequence as in two."""
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

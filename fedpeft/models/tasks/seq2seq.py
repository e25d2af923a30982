"""Sequence to sequence: an encoder reads one text, and a decoder learns to write another (T5, BART and relatives).

    loss = - sum_t log p(y_t | y_<t, x)     over the answer's tokens and the one that ends it

The decoder reads the answer shifted by one, after the model's start token, from the model's own
`prepare_decoder_input_ids_from_labels`. Both stacks have adapters. The headline number is perplexity.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor, nn

from fedpeft.data.examples import AnsweredRows, Batch, Examples
from fedpeft.data.model_config import load_model_config
from fedpeft.data.rows import Rows
from fedpeft.data.tagged_words import IGNORED
from fedpeft.data.text_to_text import cut_source, parse_pair, tokenize_source, tokenize_target
from fedpeft.data.tokens import TokenSpool, get_padding_id, load_tokenizer
from fedpeft.errors import ConfigError, DataError, ModelError
from fedpeft.models.loading import load_base
from fedpeft.models.task import FederatedModel, RowLosses, Say, ignore_message
from fedpeft.models.tasks.causal_lm import LanguageModel, TokenTask, sum_losses
from fedpeft.models.token_losses import find_language_model


def compute_logits(base: nn.Module, batch: Batch) -> Tensor:
    """Compute a base's logits at the positions of the answers, (B, T, vocabulary).

    A made-up batch has no labels; its inputs serve as answers.
    """
    inner: Any = find_language_model(base)
    labels = batch.get("labels", batch["input_ids"])
    logits: Tensor = base(
        input_ids=batch["input_ids"],
        attention_mask=batch["attention_mask"],
        decoder_input_ids=inner.prepare_decoder_input_ids_from_labels(labels=labels),
        use_cache=False,
    ).logits
    return logits


def get_answer_labels(batch: Batch) -> tuple[Tensor, Tensor]:
    """Return the answers' tokens (B, T), and which of them count: all but padding."""
    labels = batch.get("labels", batch["input_ids"])
    return labels, labels != IGNORED


class Seq2SeqModel(LanguageModel):
    """An encoder and a decoder with its output layer."""

    peft_task: ClassVar[str] = "SEQ_2_SEQ_LM"

    def read(self, batch: Batch) -> Tensor:
        """Compute the decoder's logits at all positions of the answers."""
        return compute_logits(self.base, batch)

    def select_predicting(self, values: Tensor, batch: Batch) -> Tensor:
        """Return all positions, because each position of the decoder predicts."""
        return values

    def get_counted_labels(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """Return the answers' tokens, and which of them count."""
        return get_answer_labels(batch)


@dataclass(frozen=True)
class Seq2Seq(TokenTask):
    """Prediction of the text that answers another."""

    asks: ClassVar[bool] = True
    translates: ClassVar[bool] = True
    starts_above: ClassVar[bool] = False  # an example passes two stacks

    def tokenise(self, rows: Rows, model_directory: Path, max_tokens: int) -> Examples:
        """Convert both sides to token ids, each cut to `max_tokens`.

        Raises:
            DataError: the examples are not pairs of texts.
        """
        if isinstance(rows.inputs, np.ndarray):
            raise DataError(
                "FP3172 seq2seq needs pairs of texts, and this dataset contains images; choose a dataset of text pairs"
            )
        tokenizer = load_tokenizer(model_directory)
        padding = get_padding_id(tokenizer)
        sources, answers, cut = TokenSpool(padding), TokenSpool(padding), 0
        for row in rows.inputs:
            source, target = parse_pair(str(row))
            whole, answer = tokenize_source(tokenizer, source), tokenize_target(tokenizer, target)
            sources.add(whole if len(whole) <= max_tokens else cut_source(tokenizer, source, max_tokens))
            answers.add(answer[:max_tokens])
            cut += max(len(whole), len(answer)) > max_tokens
        return AnsweredRows(sources.rows(None), answers.rows(None), cut)

    def base(self, model_directory: Path, dtype: torch.dtype, say: Say = ignore_message, **options: Any) -> nn.Module:
        """Load encoder and decoder with the output layer.

        Raises:
            ModelError: the model is not an encoder with a decoder, or does not define an answer's first token.
        """
        from transformers import AutoModelForSeq2SeqLM

        check_seq2seq(model_directory)
        return load_base(AutoModelForSeq2SeqLM.from_pretrained, model_directory, dtype, compute_logits, say, **options)

    def model(self, base: nn.Module, classes: int | None) -> Seq2SeqModel:
        """Return both stacks without a head."""
        return Seq2SeqModel(base)

    def check(self, model: FederatedModel) -> None:
        """Refuse prompts.

        Raises:
            ConfigError: the adapter puts a prompt before the texts.
        """
        configs: Any = getattr(model.base, "peft_config", {})
        if any(config.is_prompt_learning for config in configs.values()):
            raise ConfigError("FP1219 seq2seq does not support prompts, since it has two texts; use --peft lora")

    def losses(self, logits: Tensor, batch: Batch) -> RowLosses:
        """Compute the cross-entropy summed over an answer's tokens."""
        return sum_losses(logits, *get_answer_labels(batch))


def check_seq2seq(model_directory: Path) -> None:
    """Refuse a model whose configuration is not that of an encoder with a decoder, before its weights are loaded.

    Raises:
        ModelError: names the model's type and the remedy.
    """
    from transformers.models.auto.modeling_auto import MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING

    config = load_model_config(model_directory)
    kind = config.model_type
    if type(config) not in MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING or not config.is_encoder_decoder:
        raise ModelError(
            f"FP4046 the model in {model_directory} has the type {kind!r}, which is not an encoder with a decoder; "
            "choose T5, BART or a relative; a causal language model needs instruction data: prompt and completion"
        )
    if getattr(config, "decoder_start_token_id", None) is None:
        raise ModelError(
            f"FP4047 the config.json in {model_directory} lacks decoder_start_token_id, an answer's first token; add "
            "it (T5: the padding token, BART: the end token)"
        )


part = Seq2Seq

"""Sequence to sequence: an encoder reads one text, and a decoder learns to write another (T5, BART and their kin).

    loss = - sum_t log p(y_t | y_<t, x)     over the answer's tokens and the one that ends it

What the decoder reads is the answer shifted by one behind the model's token of start, by the model's own
`prepare_decoder_input_ids_from_labels`. Adapters are in both stacks. The headline number is perplexity.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor, nn

from fedpeft.data.examples import IGNORED, AnsweredRows, Batch, Examples
from fedpeft.data.model_config import load_model_config
from fedpeft.data.rows import Rows
from fedpeft.data.text_to_text import cut_source, parse_pair, tokenize_source, tokenize_target
from fedpeft.data.tokens import TokenSpool, get_padding_id, load_tokenizer
from fedpeft.errors import ConfigError, DataError, ModelError
from fedpeft.models.loading import Say, ignore_message, load_base
from fedpeft.models.task import FederatedModel, RowLosses
from fedpeft.models.tasks.causal_lm import CausalLM, LanguageModel, sum_losses
from fedpeft.models.token_losses import find_language_model


def compute_logits(base: nn.Module, batch: Batch) -> Tensor:
    """What a base says at each position of the batch's answers, (B, T, vocabulary); a made-up row answers itself."""
    inner: Any = find_language_model(base)
    labels = batch.get("labels", batch["input_ids"])
    logits: Tensor = base(
        input_ids=batch["input_ids"],
        attention_mask=batch["attention_mask"],
        decoder_input_ids=inner.prepare_decoder_input_ids_from_labels(labels=labels),
        use_cache=False,
    ).logits
    return logits


def answer_labels(batch: Batch) -> tuple[Tensor, Tensor]:
    """The answers' tokens (B, T), and which of them count: no padding."""
    labels = batch.get("labels", batch["input_ids"])
    return labels, labels != IGNORED


class Seq2SeqModel(LanguageModel):
    """An encoder and a decoder with its output layer."""

    peft_task: ClassVar[str] = "SEQ_2_SEQ_LM"

    def read(self, batch: Batch) -> Tensor:
        """The decoder's logits at all positions of the answers."""
        return compute_logits(self.base, batch)

    def select_predicting(self, values: Tensor, batch: Batch) -> Tensor:
        """All positions of the decoder predict."""
        return values

    def get_counted_labels(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """The answers' tokens, and which of them count."""
        return answer_labels(batch)


@dataclass(frozen=True)
class Seq2Seq(CausalLM):
    """The texts that answer others."""

    asks: ClassVar[bool] = True
    translates: ClassVar[bool] = True
    starts_above: ClassVar[bool] = False  # a row passes two stacks

    def tokenise(self, rows: Rows, model_directory: Path, max_tokens: int) -> Examples:
        """Token ids of both sides, each cut to `max_tokens`.

        Raises:
            DataError: the rows are no pairs of texts.
        """
        if isinstance(rows.inputs, np.ndarray):
            raise DataError("FP3172 seq2seq learns from pairs of texts; this data set holds images")
        tokenizer = load_tokenizer(model_directory)
        padding = get_padding_id(tokenizer)
        read, said, cut = TokenSpool(padding), TokenSpool(padding), 0
        for row in rows.inputs:
            source, target = parse_pair(str(row))
            whole, answer = tokenize_source(tokenizer, source), tokenize_target(tokenizer, target)
            read.add(whole if len(whole) <= max_tokens else cut_source(tokenizer, source, max_tokens))
            said.add(answer[:max_tokens])
            cut += max(len(whole), len(answer)) > max_tokens
        return AnsweredRows(read.rows(None), said.rows(None), cut)

    def base(self, model_directory: Path, dtype: torch.dtype, say: Say = ignore_message, **options: Any) -> nn.Module:
        """Encoder and decoder with the output layer.

        Raises:
            ModelError: it is none, or does not say what an answer begins with.
        """
        from transformers import AutoModelForSeq2SeqLM

        check_seq2seq(model_directory)
        return load_base(AutoModelForSeq2SeqLM.from_pretrained, model_directory, dtype, compute_logits, say, **options)

    def model(self, base: nn.Module, classes: int | None) -> Seq2SeqModel:
        """Both stacks as they are: no head is added."""
        return Seq2SeqModel(base)

    def check(self, model: FederatedModel) -> None:
        """Refuse prompts.

        Raises:
            ConfigError: the adapter puts one before the texts.
        """
        configs: Any = getattr(model.base, "peft_config", {})
        if any(config.is_prompt_learning for config in configs.values()):
            raise ConfigError("FP1219 seq2seq has two texts that a prompt could stand before; take --peft lora")

    def losses(self, logits: Tensor, batch: Batch) -> RowLosses:
        """Cross-entropy summed over an answer's tokens."""
        return sum_losses(logits, *answer_labels(batch))

    def packs(self, model: FederatedModel) -> bool:
        """Not two sequences."""
        return False


def check_seq2seq(model_directory: Path) -> None:
    """Refuse what its configuration tells is no encoder with a decoder, before its weights are loaded.

    Raises:
        ModelError: says what it is, and what to take.
    """
    from transformers.models.auto.modeling_auto import MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING

    config = load_model_config(model_directory)
    kind = config.model_type
    if type(config) not in MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING or not config.is_encoder_decoder:
        raise ModelError(
            f"FP4046 the model in {model_directory} is of the kind {kind!r}, which has no encoder with a decoder; take "
            "T5, BART or one of their kin, or with a causal language model such as smollm2 instruction data: prompt "
            "and completion"
        )
    if getattr(config, "decoder_start_token_id", None) is None:
        raise ModelError(
            f"FP4047 the config.json in {model_directory} does not say what an answer begins with; give it a "
            "decoder_start_token_id (T5: that of padding, BART: that of end)"
        )


part = Seq2Seq

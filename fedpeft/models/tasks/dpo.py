"""Preferences: of two answers to a question, the chosen one shall become more likely than the other.

    m = beta ((log p(chosen) - log q(chosen)) - (log p(rejected) - log q(rejected))),   loss = -log sigmoid(m)

Direct preference optimization (Rafailov et al., arXiv 2305.18290, equation 7). p is the model, and q the reference: the
same model with its adapters off, so no second model is needed. Log-likelihoods are summed over an answer's tokens. An
example is a pair, and correct if m > 0.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import torch
import torch.nn.functional as functional
from torch import Tensor

from fedpeft.data.examples import Batch, Examples, PairRows
from fedpeft.data.preferences import SIDES
from fedpeft.data.rows import Rows
from fedpeft.data.tokens import load_tokenizer
from fedpeft.errors import ConfigError
from fedpeft.models.adapters_off import check_adapters_come_off, disable_adapters
from fedpeft.models.task import FederatedModel, RowLosses
from fedpeft.models.tasks.causal_lm import TokenTask
from fedpeft.models.tasks.instruction import declare_beyond, tokenize_answers
from fedpeft.parts import setting


@dataclass(frozen=True)
class DPO(TokenTask):
    """Prediction of the preferred of two answers."""

    metric = "accuracy"
    asks: ClassVar[bool] = True
    per_example: ClassVar[bool] = False
    per_example_missing: ClassVar[str] = "reads two sequences for each example"
    reference: ClassVar[bool] = True
    starts_above: ClassVar[bool] = False  # an example is two sequences

    beyond: str = declare_beyond()
    beta: float = setting(0.1, "penalty for departing from the base's answers", above=0.0, high=100.0)

    def check(self, model: FederatedModel) -> None:
        """Refuse adapters that can't be turned off.

        Raises:
            ConfigError: a prompt, or the whole model, is trained, or the adapter changes the loss.
        """
        check_adapters_come_off(model, "dpo")
        if model.objective is not None:
            raise ConfigError(
                "FP1218 this adapter changes the loss of single sequences, and dpo compares two; use --peft "
                "lora, or adamix(consistency=0)"
            )

    def tokenise(self, rows: Rows, model_directory: Path, max_tokens: int) -> Examples:
        """Convert both answers to each question to token ids, with a mask of the counted tokens.

        Raises:
            DataError: `max_tokens` leaves nothing of an answer.
        """
        pairs = (json.loads(str(row)) for row in rows.inputs)
        texts = (json.dumps(pair[side]) for pair in pairs for side in SIDES)
        tokens, cut = tokenize_answers(load_tokenizer(model_directory), texts, max_tokens, self.beyond)
        return PairRows(tokens, int((cut[::2] | cut[1::2]).sum()))

    def losses(self, logits: Tensor, batch: Batch) -> RowLosses:
        """Raise NotImplementedError: the loss needs the reference's logits, too."""
        raise NotImplementedError

    def row_losses(self, model: FederatedModel, batch: Batch, offsets: Tensor | None = None) -> RowLosses:
        """Compute the losses of the pairs in a batch of (B, 2, T)."""
        both = {name: tensor.flatten(0, 1) for name, tensor in batch.items()}
        with torch.no_grad(), disable_adapters(model):
            reference = super().row_losses(model, both).sums
        return compute_preference_losses(super().row_losses(model, both).sums, reference, self.beta)


def compute_preference_losses(model: Tensor, reference: Tensor, beta: float) -> RowLosses:
    """Compute the losses of B pairs.

    Args:
        model: the model's negative log-likelihoods of the chosen and the rejected answer of each pair, (2 B,).
        reference: those of the reference, (2 B,).
        beta: above 0.
    """
    chosen, rejected = (reference - model).view(-1, 2).unbind(1)
    margin = beta * (chosen - rejected)
    return RowLosses(-functional.logsigmoid(margin), torch.ones_like(margin), (margin > 0).to(margin.dtype))


part = DPO

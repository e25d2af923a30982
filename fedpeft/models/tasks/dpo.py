"""Preferences: of two answers to a question the one that people chose is to become likelier than the other.

    m = beta ((log p(chosen) - log q(chosen)) - (log p(rejected) - log q(rejected))),   loss = -log sigmoid(m)

Direct preference optimisation (Rafailov et al., arXiv 2305.18290, equation 7). p is the model, q the reference: the
same model with its adapters off, so there is no second one. Log-likelihoods are summed over an answer's tokens. A row
is a pair, and correct where m > 0.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from fedpeft.data.examples import Batch, Examples, PairRows
from fedpeft.data.preferences import SIDES
from fedpeft.data.rows import Rows
from fedpeft.data.tokens import load_tokenizer
from fedpeft.errors import ConfigError
from fedpeft.models.adapters_off import check_adapters_come_off, disable_adapters
from fedpeft.models.task import FederatedModel, RowLosses
from fedpeft.models.tasks.instruction import Instruction, tokenize_answers
from fedpeft.parts import setting


@dataclass(frozen=True)
class DPO(Instruction):
    """Which of two answers is preferred."""

    metric = "accuracy"
    per_example: ClassVar[bool] = False
    per_example_missing: ClassVar[str] = "reads two sequences for each row"
    reference: ClassVar[bool] = True
    starts_above: ClassVar[bool] = False  # a row is two sequences

    beta: float = setting(0.1, "how much it costs to leave the base's answers; lower: less", above=0.0, high=100.0)

    def check(self, model: FederatedModel) -> None:
        """Refuse adapters that can't be taken off.

        Raises:
            ConfigError: a prompt, or the whole model, is trained.
        """
        check_adapters_come_off(model, "dpo")
        if model.objective is not None:
            raise ConfigError(
                "FP1218 this adapter adds to the loss of what is said of each row, and preferences compare two rows; "
                "take --peft lora, or adamix(consistency=0)"
            )

    def tokenise(self, rows: Rows, model_directory: Path, max_tokens: int) -> Examples:
        """Token ids of both answers to each question, and which of them count.

        Raises:
            DataError: `max_tokens` leaves nothing of an answer.
        """
        pairs = (json.loads(str(row)) for row in rows.inputs)
        texts = (json.dumps(pair[side]) for pair in pairs for side in SIDES)
        made, cut = tokenize_answers(load_tokenizer(model_directory), texts, max_tokens, self.beyond)
        return PairRows(made, int((cut[::2] | cut[1::2]).sum()))

    def packs(self, model: FederatedModel) -> bool:
        """Not pairs."""
        return False

    def losses(self, logits: Tensor, batch: Batch) -> RowLosses:
        """Nothing that logits alone could tell: the reference's are needed, too."""
        raise NotImplementedError

    def row_losses(self, model: FederatedModel, batch: Batch, offsets: Tensor | None = None) -> RowLosses:
        """Losses of the pairs in a batch of (B, 2, T)."""
        both = {name: tensor.flatten(0, 1) for name, tensor in batch.items()}
        with torch.no_grad(), disable_adapters(model):
            reference = super().row_losses(model, both).sums
        return compute_preference_losses(super().row_losses(model, both).sums, reference, self.beta)


def compute_preference_losses(model: Tensor, reference: Tensor, beta: float) -> RowLosses:
    """Losses of B pairs, from the negative log-likelihoods (2 B,) of the chosen and the rejected answer of each."""
    chosen, rejected = (reference - model).view(-1, 2).unbind(1)
    margin = beta * (chosen - rejected)
    return RowLosses(-F.logsigmoid(margin), torch.ones_like(margin), (margin > 0).to(margin.dtype))


part = DPO

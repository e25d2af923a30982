"""Instruction tuning: conversations in the model's chat template, with the loss on the answers only.

instruction                    rows whose answer begins beyond the cut are an error
instruction(beyond=unlearned)  they stay where they are, and teach nothing
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from fedpeft.data.conversations import tokenize_row
from fedpeft.data.examples import Examples, TokenRows
from fedpeft.data.rows import Rows
from fedpeft.data.tokens import TokenSpool, get_padding_id, load_tokenizer
from fedpeft.errors import DataError
from fedpeft.models.tasks.causal_lm import CausalLM
from fedpeft.parts import setting


@dataclass(frozen=True)
class Instruction(CausalLM):
    """Next tokens of what the assistant says."""

    beyond: str = setting(
        "refused",
        "rows whose answer begins beyond the cut: refused, or unlearned: they stay, and teach nothing",
        choices=("refused", "unlearned"),
    )
    asks: ClassVar[bool] = True

    def tokenise(self, rows: Rows, model_directory: Path, max_tokens: int) -> Examples:
        """Token ids, and which of them count.

        Raises:
            DataError: `max_tokens` leaves nothing of an answer, where that is refused, or of any.
        """
        made, cut = tokenize_answers(load_tokenizer(model_directory), map(str, rows.inputs), max_tokens, self.beyond)
        return replace(made, cut=int(cut.sum()))


def tokenize_answers(
    tokenizer: Any, rows: Iterable[str], max_tokens: int, beyond: str = "refused"
) -> tuple[TokenRows, NDArray[np.bool_]]:
    """Packed rows as token ids, at most `max_tokens` of each; and which of them were cut, (rows,).

    Raises:
        DataError: the cut leaves nothing of an answer, and `beyond` refuses that; or it leaves nothing of any.
    """
    made, cut = TokenSpool(get_padding_id(tokenizer), counted=True), bytearray()
    lost = longest = 0
    for row in rows:
        ids, answers = tokenize_row(tokenizer, row)
        lost += not any(answers[1:max_tokens])
        longest = max(longest, answers.index(True) + 1 if True in answers else 0)
        cut.append(len(ids) > max_tokens)
        made.add(ids[:max_tokens], answers[:max_tokens])
    if lost and (beyond == "refused" or lost == len(cut)):
        raise DataError(
            f"FP3170 {lost} of {len(cut)} conversations have no answer within --tokens {max_tokens}; "
            f"give more than {longest}, or leave those rows out"
        )
    return made.rows(None), np.frombuffer(cut, bool)


part = Instruction

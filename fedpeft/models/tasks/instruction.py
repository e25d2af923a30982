"""Instruction tuning: conversations in the model's chat template, with the loss on the answers only.

instruction                    an example whose answer begins beyond the cut is an error instruction(beyond=unlearned)
such examples stay in the dataset, but are not learned from
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


def declare_beyond() -> Any:
    """Return the setting for answers that begin beyond the cut."""
    return setting(
        "refused",
        "examples whose answer begins beyond the cut: refused, or unlearned: kept, but not learned from",
        choices=("refused", "unlearned"),
    )


@dataclass(frozen=True)
class Instruction(CausalLM):
    """Prediction of the assistant's next tokens."""

    beyond: str = declare_beyond()
    asks: ClassVar[bool] = True

    def tokenise(self, rows: Rows, model_directory: Path, max_tokens: int) -> Examples:
        """Convert conversations to token ids with a mask of the counted tokens.

        Raises:
            DataError: `max_tokens` leaves nothing of an answer and `beyond` refuses that, or it leaves nothing of any.
        """
        tokens, cut = tokenize_answers(load_tokenizer(model_directory), map(str, rows.inputs), max_tokens, self.beyond)
        return replace(tokens, cut=int(cut.sum()))


def tokenize_answers(
    tokenizer: Any, rows: Iterable[str], max_tokens: int, beyond: str = "refused"
) -> tuple[TokenRows, NDArray[np.bool_]]:
    """Convert conversations to token ids, at most `max_tokens` of each, and report which were cut, (rows,).

    Raises:
        DataError: the cut leaves nothing of an answer and `beyond` refuses that, or it leaves nothing of any.
    """
    spool, cut = TokenSpool(get_padding_id(tokenizer), counted=True), bytearray()
    lost = longest = 0
    for row in rows:
        ids, answers = tokenize_row(tokenizer, row)
        lost += not any(answers[1:max_tokens])
        longest = max(longest, answers.index(True) + 1 if True in answers else 0)
        cut.append(len(ids) > max_tokens)
        spool.add(ids[:max_tokens], answers[:max_tokens])
    if lost and (beyond == "refused" or lost == len(cut)):
        raise DataError(
            f"FP3170 {lost} of {len(cut)} conversations have no answer within --tokens {max_tokens}; "
            f"give more than {longest}, or remove those conversations"
        )
    return spool.rows(None), np.frombuffer(cut, bool)


part = Instruction

"""Instruction tuning: conversations in the model's chat template, with the loss on the answers only.

instruction                    rows whose answer begins beyond the cut are an error
instruction(beyond=unlearned)  they stay where they are, and teach nothing
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar

from fedpeft.data.conversations import ids_and_answers
from fedpeft.data.examples import Examples, TokenRows
from fedpeft.data.rows import Rows
from fedpeft.data.tokens import load_tokenizer, padding_of, rows_of
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
        made, cut = answered_rows(load_tokenizer(model_directory), list(map(str, rows.inputs)), max_tokens, self.beyond)
        return replace(made, cut=sum(cut))


def answered_rows(
    tokenizer: Any, rows: Sequence[str], max_tokens: int, beyond: str = "refused"
) -> tuple[TokenRows, list[bool]]:
    """Packed rows as token ids, at most `max_tokens` of each; and which of them were cut.

    Raises:
        DataError: the cut leaves nothing of an answer, and `beyond` refuses that; or it leaves nothing of any.
    """
    made = [ids_and_answers(tokenizer, row) for row in rows]
    lost = sum(not any(answers[1:max_tokens]) for _, answers in made)
    if lost and (beyond == "refused" or lost == len(made)):
        longest = max(answers.index(True) for _, answers in made) + 1
        raise DataError(
            f"{lost} of {len(made)} conversations have no answer within --tokens {max_tokens}; "
            f"give more than {longest}, or leave those rows out"
        )
    kept = [(ids[:max_tokens], answers[:max_tokens]) for ids, answers in made]
    made_rows = rows_of([i for i, _ in kept], padding_of(tokenizer), None, [a for _, a in kept])
    return made_rows, [len(ids) > max_tokens for ids, _ in made]


part = Instruction

"""Preference data: two answers to a question, and which of them is better; one JSON text per row.

The chosen and the rejected answer are packed as instruction data, {"chosen": ..., "rejected": ...}. Each value is what
`fedpeft.data.conversations` makes of the question with that answer.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from typing import Any

from fedpeft.data.conversations import encode_row, pack_conversation
from fedpeft.data.prompt_templates import CHAT, PromptTemplate
from fedpeft.data.record_files import name_incomplete_part
from fedpeft.errors import DataError
from fedpeft.parts import suggest_legal

SIDES = ("chosen", "rejected")
"""Columns of the two answers, the better one first."""

PROMPT = "prompt"
"""Column of the question: a text, or the messages before the answer.

It may be missing if both answers are the last messages of conversations that begin alike.
"""


def pack_preferences(
    records: Iterable[tuple[str, Mapping[str, Any]]], text: str, source: str, template: str | None = None
) -> Any:
    """Yield the records with the two packed answers in the column `text`.

    Args:
        records: the records with the names of their places.
        text: the column for packed rows.
        source: name of the source, for messages.
        template: the prompt template; None and "chat": the model's own chat template.

    Raises:
        ConfigError: the template does not exist.
        DataError: a record lacks a column, an answer is empty, or both answers are the same.
    """
    own = None if template in (None, CHAT) else PromptTemplate(str(template))
    for place, record in records:
        where = f"{place} of {source}"
        for column in SIDES:
            if column not in record:
                lacks = name_incomplete_part(place, source)
                raise DataError(
                    f"FP3095 {lacks} has no column {column!r}, which preferences need; {suggest_legal(column, record)}"
                )
        prompt = _get_prompt(record, where)
        asked = [{"role": "user", "content": prompt}] if isinstance(prompt, str) else prompt
        answers = [_get_answer(record, side, asked, where) for side in SIDES]
        if answers[0] == answers[1]:
            raise DataError(
                f"FP3096 {where}: the chosen and the rejected answer are the same, so neither can be preferred; "
                "remove the row"
            )
        if own is None:
            if not isinstance(asked, list) or not str(prompt).strip():
                raise DataError(f"FP3097 {where}: the column {PROMPT!r} must hold a text, or a list of messages")
            pair = [
                json.loads(pack_conversation([*asked, {"role": "assistant", "content": answer}], where))
                for answer in answers
            ]
        else:
            columns = {name: value for name, value in record.items() if name not in SIDES}
            written = own.format_prompt({"instruction": prompt, **columns}, where)
            pair = [{"prompt": written, "answer": answer} for answer in answers]
        yield place, {**record, text: encode_row(dict(zip(SIDES, pair, strict=True)), where)}


def _get_prompt(record: Mapping[str, Any], where: str) -> Any:
    """Return the question of a record; without its column, the messages before the better answer."""
    if PROMPT in record:
        return record[PROMPT]
    conversation = record[SIDES[0]]
    if not isinstance(conversation, list) or len(conversation) < 2:
        raise DataError(
            f"FP3098 {where} has no column {PROMPT!r}; preferences need it unless their answers are conversations that "
            "include the prompt's messages"
        )
    return conversation[:-1]


def _get_answer(record: Mapping[str, Any], side: str, asked: Any, where: str) -> str:
    """Return the answer in a column: a text, or the last message of a conversation that starts with `asked`."""
    answer = record[side]
    if isinstance(answer, list) and answer and isinstance(answer[-1], dict):
        *before, last = answer
        if last.get("role") != "assistant":
            raise DataError(
                f"FP3099 {where}: the last message in the column {side!r} is not the assistant's; correct or remove "
                "the row"
            )
        if before and before != asked:
            raise DataError(
                f"FP3100 {where}: the messages before the answer in the column {side!r} differ from the prompt; "
                "correct or remove the row"
            )
        answer = last.get("content")
    if not isinstance(answer, str) or not answer.strip():
        raise DataError(f"FP3101 {where}: the column {side!r} must hold an answer, got {record[side]!r:.40}")
    return answer

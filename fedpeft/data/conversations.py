"""Conversations: lists of {"role": ..., "content": ...}, as instruction data has them; one JSON text a row."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from typing import Any

from jinja2 import TemplateError

from fedpeft.errors import DataError, ModelError

ROLES = ("system", "user", "assistant")


def packed(value: object, where: str) -> str:
    """A conversation as one text, checked.

    Raises:
        DataError: it is no list of messages, or nobody answers; `where` is named.
    """
    if not isinstance(value, list) or not value:
        raise DataError(f'{where}: a conversation is a list of {{"role": ..., "content": ...}}')
    for message in value:
        if (
            not isinstance(message, dict)
            or message.get("role") not in ROLES
            or not isinstance(message.get("content"), str)
        ):
            raise DataError(f"{where}: a message has a role ({', '.join(ROLES)}) and a text as its content")
    if value[0]["role"] == "assistant":
        raise DataError(f"{where}: the assistant speaks first; a conversation begins with the user, or the system")
    if not any(m["role"] == "assistant" and m["content"].strip() for m in value):
        raise DataError(f"{where}: nobody answers; a conversation has at least one message of the assistant")
    return json.dumps([{"role": m["role"], "content": m["content"]} for m in value])


def with_messages(records: Iterable[tuple[str, Mapping[str, Any]]], column: str, text: str, source: str) -> Any:
    """The records with the conversation in `column` packed into the column `text`.

    Raises:
        DataError: a record has no such column, or no conversation in it.
    """
    for place, record in records:
        where = f"{place} of {source}"
        if column not in record:
            raise DataError(f"{where} has no column {column!r} for the conversation; it has: {', '.join(record)}")
        yield place, {**record, text: packed(record[column], where)}


def ids_and_answers(tokenizer: Any, conversation: str) -> tuple[list[int], list[bool]]:
    """Token ids of a packed conversation in the model's chat template, and which of them the assistant says.

    An answer is what the template adds to the conversation so far, opened for an answer: its text and the token that
    ends it.

    Raises:
        ModelError: the tokenizer has no chat template, or one that changes what it has written.
        DataError: the template refuses the conversation.
    """
    messages = json.loads(conversation)
    if not getattr(tokenizer, "chat_template", None):
        raise ModelError("the model's tokenizer has no chat template; take an instruction-tuned model such as smollm2")
    ids: list[int] = []
    answers: list[bool] = []
    for i, message in enumerate(messages):
        if message["role"] != "assistant":
            continue
        for until, opened, answered in ((i, True, False), (i + 1, False, True)):
            try:
                now = list(
                    tokenizer.apply_chat_template(
                        messages[:until], tokenize=True, add_generation_prompt=opened, return_dict=True
                    )["input_ids"]
                )
            except (TemplateError, ValueError, TypeError) as error:
                raise DataError(
                    f"the model's chat template refuses the conversation {conversation:.80}: {error}"
                ) from error
            if now[: len(ids)] != ids:
                raise ModelError(
                    "the model's chat template writes earlier messages anew when another one follows, so that answers "
                    "can't be told from the rest; take conversations with one answer each, or another model"
                )
            answers += [answered] * (len(now) - len(ids))
            ids = now
    return ids, answers

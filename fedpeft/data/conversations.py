"""Instruction data: one JSON text per example; the model learns the answers in it.

The text has one of three forms:

- A conversation is a list of {"role": ..., "content": ...}. The model's own chat template formats it.
- A conversation for a template file is {"template": ..., "sha256": ..., "messages": ...}.
- Columns are {"prompt": ..., "answer": ...}. With {"whole": true}, both are tokenized as one text. With {"choices":
  [...]}, the answer is one of them; training ignores the others.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from jinja2 import TemplateError

from fedpeft.data.prompt_templates import (
    CHAT,
    LONGEST,
    OF_COLUMNS,
    ROOM,
    SUFFIX,
    PromptTemplate,
    compute_fingerprint,
    describe_error,
    read_template,
)
from fedpeft.data.record_files import name_incomplete_part
from fedpeft.errors import ConfigError, DataError, ModelError, shorten_value
from fedpeft.machine import memory

ROLES = ("system", "user", "assistant")


def pack_conversation(value: object, where: str) -> str:
    """Check a conversation and return it as one JSON text.

    Raises:
        DataError: it is not a list of messages, or has no answer; the message contains `where`.
    """
    if not isinstance(value, list) or not value:
        raise DataError(
            f'FP3013 {where}: a conversation is a list of {{"role": ..., "content": ...}}, got {value!r:.60}'
        )
    for number, message in enumerate(value, 1):
        if (
            not isinstance(message, dict)
            or message.get("role") not in ROLES
            or not isinstance(message.get("content"), str)
        ):
            raise DataError(
                f"FP3014 {where}: a message has a role ({', '.join(ROLES)}) and a text as its content; message "
                f"{number} is {message!r:.80}"
            )
    if value[0]["role"] == "assistant":
        raise DataError(
            f"FP3015 {where}: the first message is the assistant's; begin with one of the user or the system"
        )
    if not any(m["role"] == "assistant" and m["content"].strip() for m in value):
        empty = "the assistant's are empty" if any(m["role"] == "assistant" for m in value) else "there is none"
        raise DataError(f"FP3016 {where}: the conversation needs a message of the assistant with text, and {empty}")
    return encode_row([{"role": m["role"], "content": m["content"]} for m in value], where)


def encode_row(row: object, where: str) -> str:
    """Return a row as JSON.

    Raises:
        DataError: a text contains half of a character (a lone surrogate), which no tokenizer accepts; the message
            contains `where`.
    """
    made = json.dumps(row)
    if "\\ud" in made and any("\ud800" <= c <= "\udfff" for c in json.dumps(row, ensure_ascii=False)):
        raise DataError(f"FP3017 {where} holds half of a character (a lone surrogate); remove it")
    return made


def pack_choice(prompt: str, answer: str, choices: Sequence[str], where: str) -> str:
    """Return a question whose answer is one of `choices` as a row; without choices, the answer is free.

    The prompt ends in a word, so a space comes before each answer.

    Raises:
        DataError: as in `encode_row`.
    """
    row: dict[str, Any] = {"prompt": prompt, "answer": f" {answer}"}
    return encode_row(row | ({"choices": [f" {choice}" for choice in choices]} if choices else {}), where)


def pack_messages(
    records: Iterable[tuple[str, Mapping[str, Any]]], column: str, text: str, source: str, template: str | None = None
) -> Any:
    """Yield the records with the conversation of `column` packed into the column `text`.

    `template` is a template file, or None or `CHAT` for the model's own chat template.

    Raises:
        ConfigError: the template formats columns, not messages.
        DataError: a record lacks the column or a valid conversation, or the template does not exist.
    """
    if template in (None, CHAT):
        own = ""
    elif str(template).endswith(SUFFIX):
        file = str(Path(str(template)).expanduser().absolute())
        own = f'{{"template": {json.dumps(file)}, "sha256": "{compute_fingerprint(file)}", "messages": %s}}'
    else:
        raise ConfigError(
            f"FP1084 the prompt template {template} formats columns, but {source} contains conversations; choose "
            f"{CHAT}, or a file of your own that ends in {SUFFIX}"
        )
    for place, record in records:
        where = f"{place} of {source}"
        if column not in record:
            lacks = name_incomplete_part(place, source)
            raise DataError(
                f"FP3018 {lacks} has no column {column!r} for the conversation; it has: {', '.join(record)}"
            )
        conversation = pack_conversation(record[column], where)
        yield place, {**record, text: own.replace("%s", conversation) if own else conversation}


def pack_prompts(
    records: Iterable[tuple[str, Mapping[str, Any]]], template: str, answer: str, text: str, source: str
) -> Any:
    """Yield the records with the formatted prompt and the answer packed into the column `text`.

    `template` writes the prompt from all columns except `answer`.

    Raises:
        ConfigError: the template does not exist.
        DataError: the template fails on a record, or a record has no answer.
    """
    made = PromptTemplate(template)
    for place, record in records:
        where = f"{place} of {source}"
        if answer not in record:
            lacks = name_incomplete_part(place, source)
            raise DataError(
                f"FP3019 {lacks} has no column {answer!r} for the answer; it has: {', '.join(map(str, record))}"
            )
        said = record[answer]
        if not isinstance(said, str) or not said.strip():
            raise DataError(
                f"FP3020 {where}: the column {answer!r} must hold an answer, a text, got {shorten_value(said)}"
            )
        prompt = made.format_prompt({name: value for name, value in record.items() if name != answer}, where)
        if template == CHAT:
            row = pack_conversation(
                [{"role": "user", "content": prompt}, {"role": "assistant", "content": said}], where
            )
        else:
            row = encode_row({"prompt": prompt, "answer": said}, where)
        yield place, {**record, text: row}


def tokenize_row(tokenizer: Any, row: str) -> tuple[list[int], list[bool]]:
    """Return the token ids of a packed row, and a flag for each token that belongs to an answer.

    Raises:
        ModelError: the tokenizer has no chat template, or its template rewrites earlier messages.
        DataError: the template rejects the conversation, or its file has changed.
    """
    packed_row = json.loads(row)
    if isinstance(packed_row, list):
        if not getattr(tokenizer, "chat_template", None):
            raise ModelError(
                "FP4001 the model's tokenizer has no chat template; choose an instruction-tuned model such as smollm2, "
                "or give the dataset a template of your own: template='FILE.jinja'"
            )
        return _tokenize_conversation(tokenizer, packed_row, None, "the model's chat template")
    if packed_row.get("whole"):
        return _tokenize_text(tokenizer, packed_row["prompt"], packed_row["answer"], bool(packed_row.get("end")))
    if "prompt" in packed_row:
        return _tokenize_apart(tokenizer, packed_row["prompt"], packed_row["answer"])
    file = packed_row["template"]
    if compute_fingerprint(file) != packed_row["sha256"]:
        raise DataError(f"FP3021 the prompt template {file} changed while its rows were read; start the command again")
    return _tokenize_conversation(tokenizer, packed_row["messages"], read_template(file), f"the prompt template {file}")


def _tokenize_apart(tokenizer: Any, prompt: str, answer: str) -> tuple[list[int], list[bool]]:
    """Tokenize prompt and answer separately, so that the boundary is exact, and append the end-of-text token."""
    end = [] if tokenizer.eos_token_id is None else [int(tokenizer.eos_token_id)]
    asked = list(tokenizer(prompt)["input_ids"])
    if end and asked[-1:] == end:
        asked.pop()
    said = [*tokenizer(answer, add_special_tokens=False)["input_ids"], *end]
    return asked + said, [False] * len(asked) + [True] * len(said)


def _tokenize_text(tokenizer: Any, prompt: str, answer: str, ends: bool) -> tuple[list[int], list[bool]]:
    """Tokenize prompt and answer as one text; a token belongs to the answer if it begins after the prompt.

    If `ends` is true, an end-of-text token is appended and learned.

    Raises:
        ModelError: the tokenizer does not report the offsets of its tokens.
    """
    if not getattr(tokenizer, "is_fast", False):
        raise ModelError(
            "FP4002 the model's tokenizer does not report the offsets of its tokens (it has no tokenizer.json), so "
            "answers can't be separated from prompts; choose another model, or template='alpaca'"
        )
    encoded = tokenizer(prompt + answer, return_offsets_mapping=True)
    ids, learned = list(encoded["input_ids"]), [b > a >= len(prompt) for a, b in encoded["offset_mapping"]]
    if ends and tokenizer.eos_token_id is not None and ids[-1:] != [tokenizer.eos_token_id]:
        ids, learned = [*ids, int(tokenizer.eos_token_id)], [*learned, True]
    return ids, learned


def _tokenize_conversation(
    tokenizer: Any, messages: list[dict[str, str]], template: str | None, called: str
) -> tuple[list[int], list[bool]]:
    """Tokenize a conversation and flag the answers' tokens.

    An answer is what the template adds to the conversation so far, opened for an answer: its text and the token that
    ends it. If the tokens of the shorter conversation do not begin those of the longer one, the template's generation
    marks decide. Without marks, the offsets of the tokens in the text decide.
    """
    spoken = [i for i, message in enumerate(messages) if message["role"] == "assistant"]
    steps = [step for i in spoken for step in ((messages[:i], True), (messages[: i + 1], False))]
    ids: list[int] = []
    answers: list[bool] = []
    for so_far, opened in steps:
        now = list(_apply_template(tokenizer, so_far, template, called, add_generation_prompt=opened)["input_ids"])
        if now[: len(ids)] != ids:
            if MARK.search(template or str(tokenizer.chat_template)):
                marked = _apply_template(tokenizer, steps[-1][0], template, called, return_assistant_tokens_mask=True)
                ids, answers = list(marked["input_ids"]), [bool(mark) for mark in marked["assistant_masks"]]
            else:
                ids, answers = _tokenize_by_places(tokenizer, steps, template, called)
            break
        answers += [not opened] * (len(now) - len(ids))
        ids = now
    if not any(answers):
        raise DataError(
            f"FP3022 {called} drops the assistant's answers in {json.dumps(messages):.80}; choose another "
            "template or model"
        )
    return ids, answers


MARK = re.compile(r"\{%-?\s*generation\s*-?%\}")
"""How a template marks what a model learns, for transformers' `return_assistant_tokens_mask`."""


def _apply_template(
    tokenizer: Any, messages: list[dict[str, str]], template: str | None, called: str, **asked: bool
) -> Any:
    """Apply the chat template to messages; return the tokens, or with `tokenize=False` the text.

    Raises:
        DataError: the template rejects the messages.
    """
    asked = {"tokenize": True, "return_dict": True} | asked
    try:
        opened = asked.get("add_generation_prompt", False)
        with memory.limit_memory(ROOM):  # a tokenizer that runs out of memory would end the process
            text = tokenizer.apply_chat_template(
                messages, chat_template=template, tokenize=False, add_generation_prompt=opened
            )
        if len(text) > LONGEST:
            raise OverflowError(f"it writes more than {LONGEST:,} characters")
        return tokenizer.apply_chat_template(messages, chat_template=template, **asked)
    except (TemplateError, ValueError, TypeError, ArithmeticError, MemoryError, RecursionError) as error:
        raise DataError(
            f"FP3023 {called} refuses the conversation {json.dumps(messages):.80}: {describe_error(error)}"
        ) from error


def _tokenize_by_places(
    tokenizer: Any, steps: list[tuple[list[dict[str, str]], bool]], template: str | None, called: str
) -> tuple[list[int], list[bool]]:
    """Tokenize the whole text; a token belongs to an answer if it overlaps one.

    If a template opens an answer with a space, that space and the first word are one token.

    Raises:
        ModelError: the shorter conversation's text does not begin the longer one's, or tokens have no offsets.
    """
    text, answers = "", []
    for so_far, opened in steps:
        now = _apply_template(
            tokenizer, so_far, template, called, add_generation_prompt=opened, tokenize=False, return_dict=False
        )
        if not now.startswith(text) or not getattr(tokenizer, "is_fast", False):
            raise ModelError(
                f"FP4003 {called} rewrites earlier messages when another one follows, or changes how it opens an "
                "answer, so answers can't be separated from the rest; use conversations with one answer each, "
                "another model, or a template='FILE.jinja' that marks answers with {% generation %}"
            )
        answers += [] if opened else [(len(text), len(now))]
        text = now
    encoded = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)
    learned = [any(a < end and b > start for start, end in answers) for a, b in encoded["offset_mapping"]]
    return list(encoded["input_ids"]), learned


def format_question(tokenizer: Any, text: str, template: str | None) -> tuple[str, bool]:
    """Return the prompt for a model tuned with `template`, and whether it already contains special tokens.

    Raises:
        DataError: the template does not exist, rejects the question, or needs more columns than an instruction.
    """
    written, called = None, "the model's chat template"
    if template not in (None, CHAT):
        own = PromptTemplate(str(template))
        if own.name in OF_COLUMNS or "messages" not in own.text:
            return own.format_question(text, "the question"), False
        written, called = own.text, f"the chat template {template}"
    asked = {"tokenize": False, "return_dict": False, "add_generation_prompt": True}
    return _apply_template(tokenizer, [{"role": "user", "content": text}], written, called, **asked), True

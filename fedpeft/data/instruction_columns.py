"""Instruction data, recognized by the names of its columns.

    messages                       a list of {"role": ..., "content": ...}, as chat templates take it
    conversations                  a list of {"from": "human" or "gpt", "value": ...}: ShareGPT, or as messages
    instruction, (input,) output   Stanford Alpaca (Taori et al., 2023), in its own prompt template
    prompt, completion             two texts, or two lists of messages, as the trl library takes them
    prompt, chosen, rejected       preferences, as the trl library takes them; conversations may bring their prompt
    input, target                  two texts, for an encoder with a decoder (`fedpeft.data.text_to_text`)

A setting that names a column takes precedence.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from fedpeft.data.conversations import encode_row, pack_conversation, pack_messages, pack_prompts
from fedpeft.data.label_columns import AND
from fedpeft.data.preferences import PROMPT, SIDES, pack_preferences
from fedpeft.data.prompt_templates import BARE, CHAT
from fedpeft.data.text_to_text import INPUT, TARGET, pack_targets
from fedpeft.errors import ConfigError, DataError

Records = Iterable[tuple[str, Mapping[str, Any]]]

MESSAGES, CONVERSATIONS = "messages", "conversations"
SPEAKERS = {
    "human": "user",
    "user": "user",
    "gpt": "assistant",
    "chatgpt": "assistant",
    "assistant": "assistant",
    "system": "system",
}
"""Role of each speaker in ShareGPT's files."""

ASKING = ("instruction", "question", "query", "prompt", "problem", "input", "source", "src", "article", "document")
"""Usual names of columns with questions."""
ANSWERING = ("output", "answer", "response", "completion", "solution", "target", "tgt", "summary")
"""Usual names of columns with answers; they are suggested, and never used automatically."""


@dataclass(frozen=True)
class ColumnReading:
    """How instruction data are read.

    Attributes:
        said: one line about the chosen reading.
        packed: maps records and the name of their source to records with the packed row in the text column.
        needs: the columns that must have a value in each row, see `fedpeft.data.incomplete_rows.CompleteRecords`.
        task: the task, see `Dataset`.
        template: the prompt template of questions, see `Dataset`.
    """

    said: str
    packed: Callable[[Records, str], Any]
    needs: Mapping[str, str]
    task: str = "instruction"
    template: str | None = None


@dataclass(frozen=True)
class ColumnSettings:
    """A user's settings that decide how instruction data are read; `choose_reading` describes them."""

    text: str
    messages: str | None
    template: str | None
    answer: str
    beta: float


def choose_reading(
    first: Mapping[str, Any],
    text: str,
    messages: str | None,
    template: str | None,
    answer: str,
    beta: float = 0.1,
    target: str | None = None,
) -> ColumnReading | None:
    """Return how to read data that start with the record `first`, or None if they are not instruction data.

    Args:
        first: a record.
        text: the column for packed rows. Data that already have it are plain texts, unless another argument overrides
            it.
        messages: the user's column of conversations, or None.
        template: the user's prompt template, or None.
        answer: the column of answers if a template writes the prompts.
        beta: strength of the preference loss (DPO).
        target: the user's column of target texts, or None.

    Raises:
        ConfigError: settings contradict each other.
    """
    if target is not None:
        if messages is not None:
            raise ConfigError(
                "FP1105 messages is for conversations, but target is for pairs of texts; leave one of them out"
            )
        return read_pairs(text, target, text, template)
    if messages is None and template is None and text in first:
        return None
    given = ColumnSettings(text, messages, template, answer, beta)
    return next(filter(None, (recognize(first, given) for recognize in FORMATS)), None)


def recognize_pairs(first: Mapping[str, Any], given: ColumnSettings) -> ColumnReading | None:
    """Return the reading of pairs whose columns have the usual names, or None."""
    if given.messages is None and given.template is None and {INPUT, TARGET} <= first.keys():
        return read_pairs(INPUT, TARGET, given.text)
    return None


def recognize_preferences(first: Mapping[str, Any], given: ColumnSettings) -> ColumnReading | None:
    """Return the reading of preferences, or None."""
    if given.text in first or not set(SIDES) <= first.keys():
        return None
    return ColumnReading(
        f"preferences of the columns {f'{PROMPT!r}, ' if PROMPT in first else ''}'chosen' and 'rejected' in "
        f"{_describe_template(given.template)}",
        lambda records, source: pack_preferences(records, given.text, source, given.template),
        {"answer": AND.join(SIDES)} | ({"text": PROMPT} if isinstance(first.get(PROMPT), str) else {}),
        f"dpo(beta={given.beta})",
        given.template,
    )


def recognize_conversations(first: Mapping[str, Any], given: ColumnSettings) -> ColumnReading | None:
    """Return the reading of conversations in the user's column, or in one with a usual name, or None."""
    names = () if given.text in first else (MESSAGES, CONVERSATIONS)
    column = given.messages or next((name for name in names if name in first), None)
    if column is None:
        return None
    return ColumnReading(
        f"conversations of the column {column!r} in {_describe_template(given.template)}",
        lambda records, source: pack_messages(
            _convert_turns(records, column, source), column, given.text, source, given.template
        ),
        {"text": column},
        template=given.template,
    )


def recognize_completions(first: Mapping[str, Any], given: ColumnSettings) -> ColumnReading | None:
    """Return the reading of prompts with their completions, or None."""
    if given.template not in (None, CHAT) or not {"prompt", "completion"} <= first.keys():
        return None
    bare = given.template is None and isinstance(first["prompt"], str)
    return ColumnReading(
        "instruction data of the columns 'prompt' and 'completion', "
        + ("as they stand" if bare else f"in {_describe_template(None)}"),
        lambda records, source: _pack_completions(records, given.text, source, given.template),
        {"text": "prompt", "answer": "completion"},
        template=BARE if bare else CHAT,
    )


def recognize_instructions(first: Mapping[str, Any], given: ColumnSettings) -> ColumnReading | None:
    """Return the reading of columns that the user's template, or Alpaca's, writes as prompts, or None."""
    if given.template is None and not {"instruction", given.answer} <= first.keys():
        return None
    taken = given.template or "alpaca"
    return ColumnReading(
        f"instruction data of columns, the answers those of {given.answer!r}, in the prompt template {taken}"
        + ("" if given.template else f" (template='{CHAT}' takes the model's own)"),
        lambda records, source: pack_prompts(records, taken, given.answer, given.text, source),
        {"answer": given.answer},
        template=taken,
    )


FORMATS = (
    recognize_pairs,
    recognize_preferences,
    recognize_conversations,
    recognize_completions,
    recognize_instructions,
)
"""Formats of instruction data in the order in which they are tried."""


def read_pairs(read: str, target: str, text: str, template: str | None = None) -> ColumnReading:
    """Return the reading of pairs: a column `read`, or a template's prompt, with the column `target`."""
    asked = f"columns in the prompt template {template}" if template else f"the column {read!r}"
    return ColumnReading(
        f"pairs of texts for an encoder with a decoder: {asked}, answered by the column {target!r}",
        lambda records, source: pack_targets(records, (read, target), text, source, template),
        {"answer": target} if template else {"text": read, "answer": target},
        "seq2seq",
        template,
    )


def suggest_answer_columns(columns: Iterable[str]) -> str:
    """Return the settings that learn one of `columns` from another, as a clause; empty if no names suggest this."""
    called = {column.lower(): column for column in columns}
    read, answer = (next((called[name] for name in names if name in called), "") for names in (ASKING, ANSWERING))
    if not (read and answer):
        return ""
    by = "template=alpaca, " if read == ASKING[0] else "template='ASK.jinja', "
    there = "" if read == ASKING[0] else f", a file that contains {{{{ {read} }}}}"
    return (
        f"; if {answer!r} answers {read!r}, a language model learns it by {by}answer={answer}{there}; T5 or BART by "
        f"text={read}, target={answer}"
    )


def _describe_template(template: str | None) -> str:
    return "the model's chat template" if template in (None, CHAT) else f"the chat template {template}"


def _convert_turns(records: Records, column: str, source: str) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """Yield the records with ShareGPT's turns as messages."""
    for place, record in records:
        turns = record.get(column)
        if isinstance(turns, list) and any(isinstance(turn, dict) and "from" in turn for turn in turns):
            record = {**record, column: [_convert_turn(turn, f"{place} of {source}") for turn in turns]}
        yield place, record


def _convert_turn(turn: Any, where: str) -> dict[str, Any]:
    role = SPEAKERS.get(str(turn.get("from"))) if isinstance(turn, dict) else None
    if role is None:
        raise DataError(
            f'FP3064 {where}: a turn is {{"from": ..., "value": ...}} of {", ".join(SPEAKERS)}, got {turn!r:.60}'
        )
    return {"role": role, "content": turn.get("value")}


def _pack_completions(
    records: Records, text: str, source: str, template: str | None
) -> Iterator[tuple[str, Mapping[str, Any]]]:
    for place, record in records:
        where = f"{place} of {source}"
        prompt, completion = record.get("prompt"), record.get("completion")
        if isinstance(prompt, list) and isinstance(completion, list):
            row = pack_conversation([*prompt, *completion], where)
        elif not (isinstance(prompt, str) and prompt.strip() and isinstance(completion, str) and completion.strip()):
            raise DataError(f"FP3065 {where}: prompt and completion must be two texts, or two lists of messages")
        elif template == CHAT:
            row = pack_conversation(
                [{"role": "user", "content": prompt}, {"role": "assistant", "content": completion}], where
            )
        else:
            row = encode_row({"prompt": prompt, "answer": completion}, where)
        yield place, {**record, text: row}

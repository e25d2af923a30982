"""Prompt templates: the prompt for a row's columns, or for a conversation.

    alpaca      from the columns instruction and input, as in Stanford Alpaca (Taori et al., 2023)
    chat        the same columns as a user's message, in the model's own chat template
    bare        the column instruction as it stands
    flowertune  from the column instruction alone, as in Flower's FlowerTune templates
    FILE.jinja  a template of your own: from the row's columns; for conversations, it gets `messages`,
                `add_generation_prompt`, `bos_token` and `eos_token`, as transformers' chat templates do

A template of columns writes the prompt up to the start of the answer; the answer is a column of its own. A question to
a finished model is the instruction, the one column that the template reads, or a JSON object of several columns.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping, Set
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

from jinja2 import StrictUndefined, Template, TemplateError, meta
from jinja2.runtime import Context
from jinja2.sandbox import ImmutableSandboxedEnvironment

from fedpeft.errors import ConfigError, DataError
from fedpeft.machine import memory
from fedpeft.machine.files import parse_json

CHAT = "chat"
"""Name of the model's own chat template."""

BARE = "bare"
"""Name of the template for prompts that are used as they stand."""

SUFFIX = ".jinja"

ASKED = ("instruction", "input")
"""Columns that the named templates read."""

OF_COLUMNS = {
    "alpaca": (
        "{% if input is defined and input %}Below is an instruction that describes a task, paired with an input that "
        "provides further context. Write a response that appropriately completes the request.\n\n"
        "### Instruction:\n{{ instruction }}\n\n### Input:\n{{ input }}\n\n### Response:"
        "{% else %}Below is an instruction that describes a task. Write a response that appropriately completes the "
        "request.\n\n### Instruction:\n{{ instruction }}\n\n### Response:{% endif %}"
    ),
    "flowertune": (
        "Below is an instruction that describes a task. Write a response that appropriately completes the request.\n"
        "### Instruction:\n{{ instruction }}\n### Response:"
    ),
    BARE: "{{ instruction }}",
    CHAT: "{{ instruction }}{% if input is defined and input %}\n\n{{ input }}{% endif %}",
}
"""Templates of columns by name; the one of `chat` is the user's message."""


def check_template(name: str) -> None:
    """Reject a name that can't be a prompt template.

    Raises:
        ConfigError: lists the legal names.
    """
    if name not in OF_COLUMNS and not name.endswith(SUFFIX):
        raise ConfigError(
            f"FP1107 there is no prompt template {name!r}; legal are {', '.join(OF_COLUMNS)}, or a file of your own "
            f"that ends in {SUFFIX}"
        )


def check_readable(name: str) -> None:
    """Reject a name that can't be a prompt template, and a file that can't be read.

    Raises:
        ConfigError: see `check_template`.
        DataError: see `read_template`.
    """
    check_template(name)
    if name.endswith(SUFFIX):
        read_template(name)


@dataclass(frozen=True)
class PromptTemplate:
    """A template by name, or in a file.

    Attributes:
        name: `alpaca`, `chat` or a path that ends in .jinja.
    """

    name: str

    def __post_init__(self) -> None:
        """Check the name."""
        check_template(self.name)

    @property
    def text(self) -> str:
        """Source of the template, in Jinja.

        Raises:
            DataError: the file can't be read.
        """
        return OF_COLUMNS[self.name] if self.name in OF_COLUMNS else read_template(self.name)

    def format_prompt(self, columns: Mapping[str, Any], where: str) -> str:
        """Return the prompt for a row; messages call the row `where`.

        Raises:
            DataError: the template is not valid, rejects the row, lacks a column, or writes nothing.
        """
        try:
            made = _render(self.text, {str(name): value for name, value in columns.items()})
        except (TemplateError, TypeError, ValueError, ArithmeticError, MemoryError, RecursionError) as error:
            raise DataError(
                f"FP3102 {where}: the prompt template {self.name} fails: {describe_error(error)}"
            ) from error
        if not made.strip():
            raise DataError(f"FP3103 {where}: the prompt template {self.name} writes nothing")
        if self.name in OF_COLUMNS and not any(str(columns.get(name) or "").strip() for name in ASKED):
            raise DataError(f"FP3104 {where} contains no question: {' and '.join(ASKED)} are empty; fill one in")
        return made

    def format_question(self, text: str, where: str) -> str:
        """Return the prompt for a question without a row.

        The question is the instruction, the one column that the template reads, or a JSON object of several columns.

        Raises:
            DataError: as for `format_prompt`; or the template reads other columns, or more than are given.
        """
        try:
            read = meta.find_undeclared_variables(ENVIRONMENT.parse(self.text)) - ENVIRONMENT.globals.keys()
        except TemplateError:  # `format_prompt` reports it
            read = set()
        if len(read) < 2:
            return self.format_prompt({"instruction": text, "input": "", **dict.fromkeys(read, text)}, where)
        given = _parse_columns(text, read)
        if unread := sorted(given.keys() - read):
            known = ", ".join(sorted(read))
            raise DataError(f"FP3105 {where}: the template does not read {unread[0]!r:.80}; give some of {known}")
        try:
            return self.format_prompt(given or {"instruction": text, "input": ""}, where)
        except DataError as error:
            whole = json.dumps(dict.fromkeys(sorted(read), "..."))
            raise DataError(
                f"FP3106 {error}; it reads several columns, which a question gives as JSON: {whole}"
            ) from None


def _parse_columns(text: str, read: Set[str]) -> dict[str, Any]:
    """Return the columns of a question that is a JSON object with any of the columns `read`; empty for plain text."""
    try:
        given = parse_json(text.encode())
    except ValueError:
        return {}
    return given if isinstance(given, dict) and given.keys() & read else {}


def describe_error(error: Exception) -> str:
    """Return the message of a Jinja exception in one line, with its line in the template if known."""
    line = getattr(error, "lineno", None)
    if isinstance(error, MemoryError):
        return f"it takes more than {ROOM >> 20} MiB of memory"
    said = " ".join(str(error).split()) or type(error).__name__
    return f"{said} (line {line})" if line else said


def read_template(path: str) -> str:
    """Return the text of a template file.

    Raises:
        DataError: it can't be read.
    """
    try:
        return Path(path).expanduser().read_text(encoding="utf-8")
    except FileNotFoundError:
        raise DataError(f"FP3107 there is no file {path}, which the prompt template is read from") from None
    except UnicodeDecodeError as error:
        raise DataError(
            f"FP3108 the prompt template {path} is not UTF-8 text (byte {error.start}); save it as UTF-8"
        ) from None
    except OSError as error:
        raise DataError(f"FP3109 the prompt template {path} can't be read: {error.strerror}") from None


def compute_fingerprint(path: str) -> str:
    """Return the SHA-256 of a template file."""
    return hashlib.sha256(read_template(path).encode()).hexdigest()


def _check_value(value: Any) -> Any:
    """Return a value for Jinja to write.

    Raises:
        TypeError: it is missing, a list or an object, which Jinja would write in Python syntax.
    """
    if value is None or isinstance(value, list | dict) or (isinstance(value, float) and math.isnan(value)):
        raise TypeError(
            f"it would write {value!r:.40}, which is not a text; test for it in the template, or leave it out"
        )
    return value


LONGEST = 10_000_000
"""Most characters that a template may write, and most entries of a product."""

ROOM = 1 << 30
"""Most bytes that one rendering may take."""


class BoundedEnvironment(ImmutableSandboxedEnvironment):
    """Jinja's sandbox, in which no product or power is too large to compute."""

    intercepted_binops = frozenset(("*", "**"))

    def call_binop(self, context: Context, operator: str, left: Any, right: Any) -> Any:
        """Compute `left` times `right`, or to the power of it.

        Raises:
            OverflowError: the result has more than `LONGEST` characters, entries or bits.
        """
        sizes = [value.bit_length() if isinstance(value, int) else _get_length(value) for value in (left, right)]
        whole = all(isinstance(value, int) for value in (left, right))
        if operator == "**":
            size = sizes[0] * abs(right) if whole else 0
        elif whole:
            size = sum(sizes)
        else:
            size = max(_get_length(left) * _count(right), _get_length(right) * _count(left))
        if size > LONGEST:
            raise OverflowError(f"{operator} makes something of more than {LONGEST:,} characters, entries or bits")
        return super().call_binop(context, operator, left, right)


def _get_length(value: Any) -> int:
    return len(value) if isinstance(value, str | list | tuple) else 0


def _count(value: Any) -> int:
    return value if isinstance(value, int) else 0


ENVIRONMENT = BoundedEnvironment(
    trim_blocks=True,
    lstrip_blocks=True,
    undefined=StrictUndefined,
    keep_trailing_newline=False,
    finalize=_check_value,
)
"""Jinja environment of all templates of columns."""
del ENVIRONMENT.globals["lipsum"]  # it draws random words, without a limit


def _render(text: str, columns: Mapping[str, Any]) -> str:
    """Return what a template writes of a row's columns.

    Raises:
        OverflowError: it has more than `LONGEST` characters.
        MemoryError: making it takes more than `ROOM`.
    """
    pieces, length = [], 0
    with memory.limit_memory(ROOM):
        for piece in _compile(text).generate(**columns):
            length += len(piece)
            if length > LONGEST:
                raise OverflowError(f"it writes more than {LONGEST:,} characters")
            pieces.append(piece)
        return "".join(pieces)


@lru_cache(maxsize=16)
def _compile(text: str) -> Template:
    return ENVIRONMENT.from_string(text)

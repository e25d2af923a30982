"""The parts of a run's lines: numbers with nouns, and phrases that a terminal does not break."""

from __future__ import annotations

import re

from rich.text import Text

_END = re.compile(r"(?<=[,;:]) |  +")
"""Behind a phrase: a space after a punctuation mark, or several spaces."""


def count_of(number: int, noun: str) -> str:
    """Return a number with its noun: 1 client, 2 clients."""
    return f"{number:,} {noun}" if number == 1 else f"{number:,} {noun}s"


def break_between_phrases(text: Text, width: int) -> Text:
    """Return a text with line ends between phrases, so that a value and its unit stay together.

    Args:
        text: one or several lines.
        width: columns of the terminal. A phrase that is longer stays whole here, and the terminal breaks it.
    """
    lines: list[Text] = []
    for line in text.split("\n"):
        lines.append(Text())
        for phrase in line.divide([end.end() for end in _END.finditer(line.plain)]):
            whole = lines[-1].cell_len + len(phrase.plain.rstrip())
            if lines[-1].plain and whole > width:
                lines[-1].rstrip()
                lines.append(Text())
            lines[-1].append_text(phrase)
    return Text("\n").join(lines)

"""The text of a part, `name(key=value, ...)`: how it is read and written."""

from __future__ import annotations

import ast
import re
from collections.abc import Mapping
from dataclasses import dataclass
from keyword import iskeyword
from typing import Any

from fedpeft.errors import ConfigError


@dataclass(frozen=True)
class Spec:
    """A parsed text `name(key=value, ...)`.

    Attributes:
        argument: the tail of the `name:argument` form.
        values: those given without a key, as in `steps(10)` or `tasks(a, b)`.
    """

    name: str
    settings: Mapping[str, Any]
    argument: str | None = None
    values: tuple[Any, ...] = ()

    def __str__(self) -> str:
        """Return the text, which `parse_spec` reads."""
        head = self.name if self.argument is None else f"{self.name}:{self.argument}"
        given = [*map(format_value, self.values), *(f"{k}={v!r}" for k, v in self.settings.items())]
        return f"{head}({', '.join(given)})" if given else head


def parse_spec(text: str) -> Spec:
    """Parse `name`, `name(key=value, ...)` or `name:argument`.

    Values are Python literals, bare words, or the text of another part: `user_dp(noise=banded(bands=4))`. A part that
    declares which setting is its `argument` also takes it without a key: `steps(10)`.

    Raises:
        ConfigError: the text has another form.
    """
    text = text.strip()
    name, colon, argument = text.partition(":")
    if colon and name.isidentifier():
        return Spec(name, {}, argument)
    try:
        tree = ast.parse(_quote_keywords(make_importable(text)), mode="eval").body
    except (SyntaxError, ValueError, MemoryError, RecursionError):  # the others: a NUL, or nested too deep
        raise ConfigError(_describe_mistake(text)) from None
    if isinstance(tree, ast.Name):
        return Spec(restore_name(tree.id), {})
    if not (isinstance(tree, ast.Call) and isinstance(tree.func, ast.Name)):
        raise ConfigError(_describe_mistake(text))
    settings: dict[str, Any] = {}
    for keyword in tree.keywords:
        if keyword.arg is None or keyword.arg in settings:
            raise ConfigError(f"FP1419 {text!r} names a setting twice or unpacks one; write each as key=value, once")
        settings[keyword.arg] = _parse_value(keyword.value, text)
    return Spec(restore_name(tree.func.id), settings, values=tuple(_parse_value(node, text) for node in tree.args))


def _describe_mistake(text: str) -> str:
    """Return what is wrong with a text of another form, and the form that the user likely meant."""
    said = f"FP1420 {text[:200]!r} is not of the form name(key=value, ...)"
    if not _is_balanced(text):
        return f"{said}; its parentheses don't balance"
    if text.endswith(")") and _is_balanced(text.partition("(")[2].rpartition(")")[0]):
        return f"{said}; a value with a space, or signs other than letters, digits and _, needs quotes"
    return said


_QUOTED = r"""'(?:\\.|[^'\\])*'|"(?:\\.|[^"\\])*"|"""
_QUOTED_OR_PARENTHESIS = re.compile(_QUOTED + r"[()]")
_QUOTED_OR_VALUE = re.compile(_QUOTED + r"(?<==)(\s*)([a-z]+)(?=\s*[,)])")


def _is_balanced(text: str) -> bool:
    """Return whether the parentheses outside quotes are balanced."""
    depth = 0
    for found in _QUOTED_OR_PARENTHESIS.findall(text):
        depth += {"(": 1, ")": -1}.get(found, 0)
        if depth < 0:
            return False
    return depth == 0


def _quote_keywords(text: str) -> str:
    """Return the text with quotes around values that are Python keywords: a column may be called class or from."""

    def quote_value(found: re.Match[str]) -> str:
        space, word = found.groups()
        return f"{space}'{word}'" if word and iskeyword(word) else found[0]

    return _QUOTED_OR_VALUE.sub(quote_value, text)


def _parse_value(node: ast.expr, text: str) -> Any:
    """Return a value: as `_parse_literal`, or the text of a part."""
    if isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
        return ast.unparse(node)
    return _parse_literal(node, text)


_PREFIX = "part_"


def make_importable(text: str) -> str:
    """Return a text as a Python name: a leading digit gets a prefix, since a part may be called 20newsgroups."""
    return _PREFIX + text if text[:1].isdigit() else text


def restore_name(name: str) -> str:
    """Return the name from which `make_importable` made this one."""
    return name.removeprefix(_PREFIX)


def _parse_literal(node: ast.expr, text: str) -> Any:
    if isinstance(node, ast.Name):
        return node.id
    try:
        return ast.literal_eval(node)
    except (ValueError, TypeError, SyntaxError, MemoryError, RecursionError):
        raise ConfigError(
            f"FP1421 {ast.unparse(node)} in {text!r} is not a plain value (number, word, tuple); put a text with "
            "characters other than letters, digits and _ in quotes, such as 'attention.output'"
        ) from None


def format_value(value: Any) -> str:
    """Return a setting's value for a part's text: words unchanged, other values as Python writes them."""
    word = isinstance(value, str) and value.isidentifier() and not iskeyword(value)
    return str(value) if word else repr(value)


def split_outside_parentheses(text: str, separator: str) -> list[str]:
    """Split `a(x=1) | b` at `separator`, but never inside parentheses or quotes."""
    pieces, depth, quote, start = [], 0, "", 0
    for i, c in enumerate(text):
        if quote:
            quote = "" if c == quote else quote
        elif c in "\"'":
            quote = c
        elif c in "([{":
            depth += 1
        elif c in ")]}":
            depth -= 1
        elif c == separator and depth == 0:
            pieces.append(text[start:i])
            start = i + 1
    pieces.append(text[start:])
    return [p.strip() for p in pieces]


def add_settings(part: str, **more: Any) -> str:
    """Return the text of a part, `name` or `name(key=value)`, with more settings."""
    added = ", ".join(f"{name}={format_value(value)}" for name, value in more.items())
    if not added:
        return part
    if not part.rstrip().endswith(")"):
        return f"{part}({added})"
    inside = part.rstrip()[:-1].rstrip()
    return f"{inside}{added})" if inside.endswith("(") else f"{inside}, {added})"

"""Tables generated from the code: flags of the commands, and records of a run."""

from __future__ import annotations

import dataclasses
import importlib
import inspect
import re
import typing
from collections.abc import Iterable, Mapping
from typing import Any

import tyro

from fedpeft.__main__ import COMMANDS, find_module
from fedpeft.audit.canary_audit import CanaryAudit
from fedpeft.commands.describe import format_range
from fedpeft.deployment.options import EdgeOptions, JoinOptions, ServeOptions
from fedpeft.reporting.observer import RoundResult
from fedpeft.reporting.summary import Costs, Quality, Summary
from fedpeft.rounds.acceptance import ClientResult
from fedpeft.wiring.config import GROUPS, RunConfig

OPTIONS_OF: Mapping[str, tuple[type, ...]] = {
    "serve": (ServeOptions,),
    "join": (JoinOptions, EdgeOptions),
    "audit": (CanaryAudit,),
}
"""Classes with further options, by command."""

RECORDS: Mapping[str, tuple[type, ...]] = {
    "rounds.jsonl": (RoundResult,),
    "clients.jsonl": (ClientResult,),
    "summary.json": (Quality, Costs, Summary),
}
"""Classes whose fields the lines of a run's records contain, by file."""

GROUPS_OF_FIELDS = ("quality", "costs")
"""Fields of `Summary` whose own fields summary.json contains instead."""


def format_rows(headings: Iterable[str], lines: Iterable[Iterable[str]]) -> str:
    """Return a Markdown table."""
    cells = [list(headings)]
    cells += [["---"] * len(cells[0]), *map(list, lines)]
    return "\n".join("| " + " | ".join(cell.replace("|", r"\|") for cell in row) + " |" for row in cells) + "\n"


def format_commands() -> str:
    """Return every command with its options, and the settings of a run once."""
    parts = []
    for name, about in COMMANDS.items():
        lines = _list_options(name)
        parts.append(f"## {name}\n\n{_format_sentence(about)}\n")
        parts += [format_rows(("option", "default", "meaning"), lines)] if lines else []
        if name in OPTIONS_OF:
            settings = [_build_setting(field) for kind in OPTIONS_OF[name] for field in dataclasses.fields(kind)]
            parts.append(format_rows(("option", "default", "meaning"), settings))
    parts.append(
        "## Settings of a run\n\n`simulate`, `serve`, a run's TOML (`_` for `-`) and studies take these settings.\n"
    )
    fields = {field.name: field for field in dataclasses.fields(RunConfig)}
    for group, members in GROUPS.items():
        parts.append(f"### {group.capitalize()}\n")
        parts.append(
            format_rows(("flag", "default", "meaning"), [_build_setting(fields[member]) for member in members])
        )
    return "\n".join(parts)


def format_records() -> str:
    """Return the fields of each line or file of a run's records."""
    parts = []
    for file, kinds in RECORDS.items():
        parts.append(f"### {file}\n")
        said = {name: text for kind in kinds for name, text in _parse_attributes(inspect.getdoc(kind) or "").items()}
        if not said:
            parts.append(_get_prose(inspect.getdoc(kinds[0]) or "") + "\n")
        fields = [field for kind in kinds for field in dataclasses.fields(kind) if field.name not in GROUPS_OF_FIELDS]
        lines = [(f"`{f.name}`", f"`{f.type}`", said.get(f.name, "")) for f in fields]
        parts.append(format_rows(("key", "type", "meaning"), lines))
    return "\n".join(parts)


def _format_sentence(text: str) -> str:
    return f"{text[0].upper()}{text[1:]}."


def _list_options(command: str) -> list[tuple[str, str, str]]:
    """Return flag, default and meaning of each option of a command."""
    module = importlib.import_module(find_module(command))
    if hasattr(module, "OPTIONS"):
        return [(f"`{flag}`", "", meaning) for flag, meaning in module.OPTIONS.items()]
    hints, kinds = typing.get_type_hints(module.Command, include_extras=True), OPTIONS_OF.get(command, ())
    fields = [f for f in dataclasses.fields(module.Command) if f.default_factory is dataclasses.MISSING]
    return [_build_option(f, hints[f.name]) for f in fields if getattr(hints[f.name], "__origin__", None) not in kinds]


def _build_option(field: dataclasses.Field[Any], hint: Any) -> tuple[str, str, str]:
    said: dict[str, Any] = {"help": "", "metavar": None}
    positional = repeatable = False
    for mark in getattr(hint, "__metadata__", ()):
        said |= {key: value for key in said if (value := getattr(mark, key, None)) is not None}
        positional |= getattr(mark, "name", "") == "POSITIONAL" or "Positional" in repr(mark)
        repeatable |= mark is tyro.conf.UseAppendAction
    flag = f"--{field.name.replace('_', '-')}"
    shown = said["metavar"] or field.name.upper() if positional else f"{flag} {said['metavar'] or ''}".strip()
    return f"`{shown}`", _format_default(field.default), said["help"] + " (repeatable)" * repeatable


def _build_setting(field: dataclasses.Field[Any]) -> tuple[str, str, str]:
    legally = format_range(field.metadata["bounds"])
    meaning = field.metadata["help"] + (f" ({legally})" if legally else "")
    return f"`--{field.name.replace('_', '-')}`", _format_default(field.default), meaning


def _format_default(value: Any) -> str:
    return "" if value in (None, "", (), False, dataclasses.MISSING) else f"`{value}`"


def _get_prose(text: str) -> str:
    """Return the paragraphs of a docstring without its sections."""
    return re.sub(r"\n +", "\n", text.partition("\nAttributes:")[0]).strip()


def _parse_attributes(text: str) -> dict[str, str]:
    """Return the meanings in the section *Attributes* of a docstring, by name."""
    found: dict[str, str] = {}
    for entry in re.split(r"\n    (?=\S)", text.partition("Attributes:\n")[2]):
        names, colon, meaning = " ".join(entry.split()).partition(": ")
        if colon:
            found |= dict.fromkeys(re.findall(r"\w+", names), meaning)
    return found

"""python -m experiments.rewrite_settings [FOLDER]: study.toml and results.jsonl with today's names of settings.

Values stay: of a result only its `config` is written anew, by the table that reads run folders of before
(`fedpeft.former_settings`), so a study's report says the same before and after. A file that has none of the former
settings stays as it is, byte for byte. PEFT methods were in two blocks where nothing was said: results say so then, and
a study that goes on from them has to be given `layers=2` by hand.
"""

from __future__ import annotations

import json
import re
import sys
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from fedpeft import former_settings
from fedpeft.studies.results import as_today

OLD = former_settings.FORMER
NUMBER_OR_TEXT = r"(?:\"[^\"]*\"|'[^']*'|[^,}\s\n]+)"


def rewritten_results(text: str) -> str:
    """The lines of a results.jsonl; those that hold no run's settings stay."""
    lines = []
    for line in text.splitlines(keepends=True):
        try:
            found = json.loads(line)
        except ValueError:  # cut short
            lines.append(line)
            continue
        config = found.get("config") if isinstance(found, dict) else None
        if isinstance(config, dict) and OLD.keys() & config.keys():
            line = json.dumps({**found, "config": as_today(config)}) + "\n"
        lines.append(line)
    return "".join(lines)


def rewritten_study(text: str) -> str:
    """A study's file: each place that sets a former setting sets today's, with what the places around it say."""
    content = tomllib.loads(text)
    base = content.get("base", {})
    shared = [merge for merge in former_settings.MERGES if _moves(merge, base, content)]
    moved = {name for merge in shared for name in (*merge.old, merge.new)}
    preset, made = "", []
    for line in text.splitlines(keepends=True):
        if header := re.match(r"\[(?:presets\.(\w+)(?:\.axes)?|(\w+))\]", line):
            preset = header[1] or ""
        around = base | (content["presets"][preset].get("base", {}) if preset else {})
        if table := re.match(r"(\s*(?:base = )?)\{(.*)\}(,?\s*)$", line):
            settings = tomllib.loads(f"x = {{{table[2]}}}")["x"]
            own = {} if table[1].strip() else {k: v for k, v in around.items() if k in moved}
            line = f"{table[1]}{{{_inline(table[2], settings, around, own)}}}{table[3]}"
        made.append(line)
    return _base("".join(made), base, moved)


def _moves(merge: former_settings.Merge, base: Mapping[str, Any], content: Mapping[str, Any]) -> bool:
    """Whether values of an axis say what a setting of [base] was merged with, so that it stands with them instead."""
    presets = content.get("presets", {}).values()
    axes = [content.get("axes", {}), *(preset.get("axes", {}) for preset in presets)]
    values = [value for found in axes for axis in found.values() for value in axis if isinstance(value, dict)]
    names = {merge.new, *merge.old}
    return bool(merge.old.keys() & base.keys()) and any(names & value.keys() for value in values)


def _inline(text: str, settings: Mapping[str, Any], around: Mapping[str, Any], own: Mapping[str, Any]) -> str:
    """The inside of an inline table, `around` which other settings stand; those of `own` must be said in it."""
    for merge in former_settings.MERGES:
        names = (merge.new, *merge.old)
        former = [name for name in names if name in settings and name in merge.old]
        inherited = [name for name in merge.old if name in own]
        if not former and not inherited:
            continue
        value = former_settings.translated({**_of(names, around), **_of(names, settings)})[merge.new]
        said, written = f"{merge.new} = {json.dumps(value)}", False
        for name in [name for name in names if name in settings]:
            put = "" if written else said
            pattern = rf"(^|, )({name} = {NUMBER_OR_TEXT})"
            found = re.search(pattern, text)
            assert found is not None
            text = text[: found.start()] + (found[1] + put if put else "") + text[found.end() :]
            written = True
        if not written:
            text = f"{text}, {said}"
    return text.removeprefix(", ")


def _of(names: tuple[str, ...], settings: Mapping[str, Any]) -> dict[str, Any]:
    return {name: settings[name] for name in names if name in settings}


def _base(text: str, base: Mapping[str, Any], moved: set[str]) -> str:
    """The file with its [base] rewritten; what is `moved` has gone to the axes."""
    head, header, rest = text.partition("[base]\n")
    section = re.match(r"(?:(?!\[).*\n)*", rest)
    assert section is not None
    lines, after = section[0], rest[section.end() :]
    for merge in former_settings.MERGES:
        names = (merge.new, *merge.old)
        if not merge.old.keys() & base.keys():
            continue
        said = f"{merge.new} = {json.dumps(former_settings.translated(_of(names, base))[merge.new])}\n"
        for name in [name for name in names if name in base]:
            put = "" if name in moved else said
            found = re.search(rf"^{name} = .*\n", lines, re.MULTILINE)
            assert found is not None
            lines = lines[: found.start()] + put + lines[found.end() :]
            said = ""
    return head + header + lines + after


def main(folder: Path) -> None:
    """Rewrite all files below a folder."""
    for file, rewritten in (
        *((file, rewritten_study) for file in sorted(folder.rglob("study.toml"))),
        *((file, rewritten_results) for file in sorted(folder.rglob("results.jsonl"))),
    ):
        before = file.read_text(encoding="utf-8")
        after = rewritten(before)
        if after != before:
            file.write_text(after, encoding="utf-8")
            print(file)


if __name__ == "__main__":
    main(Path(sys.argv[1] if len(sys.argv) > 1 else "experiments"))

"""The commands that a user can run next, with this run's folder in them, to be pasted."""

from __future__ import annotations

import json
import re
import shlex
from contextlib import suppress
from pathlib import Path

from fedpeft.data.abilities import HeldByClients
from fedpeft.errors import FedpeftError
from fedpeft.machine.terminal import Console
from fedpeft.models.abilities import ComparesExamples
from fedpeft.reporting.finished_run import FinishedRun

CODE = re.compile("`([^`]*)`")
"""Code in backticks, in a sentence of a model card."""

CLASSES = re.compile(r"(?<![.\w])(?:AutoModel\w*|BitsAndBytesConfig)")
"""Classes of transformers that a line of Python uses without the module's name."""


def say_next(folder: Path, console: Console) -> None:
    """Print the next commands for a finished run; nothing if its folder can't be read."""
    with suppress(FedpeftError):
        lines = list_next_commands(FinishedRun.read(folder))
        say_lines("next:", lines, console)


def say_lines(title: str, lines: list[str], console: Console) -> None:
    """Print lines below a title as they are, so that they can be pasted."""
    for line in (title, *lines):
        console.print(line, highlight=False, markup=False, soft_wrap=True)


def list_next_commands(run: FinishedRun, evaluated: bool = False) -> list[str]:
    """Return the commands that a finished run allows.

    Args:
        run: the finished run.
        evaluated: whether `evaluate` has just run.

    Raises:
        FedpeftError: its files can't be read.
    """
    folder = shlex.quote(str(run.folder))
    commands = []
    if not isinstance(run.task, ComparesExamples):
        asked = "IMAGE.png" if run.can_take_pictures else '"a text of yours"'
        asked = "FOLDER_OF_FRAMES" if run.frames else asked
        commands.append(f"fedpeft predict {folder} {asked}")
    with suppress(FedpeftError):
        run.check_answers()
        run.check_reads_texts("evaluate")
        has_examples = not isinstance(run.dataset, HeldByClients)
        commands += [f"fedpeft evaluate {folder}"] if has_examples and not evaluated else []
    commands.append(export_command(run))
    return commands


def export_command(run: FinishedRun) -> str:
    """Return the command that exports a run: merged into its base, if its method allows it and it reads texts."""
    merged = run.method.merges and not run.can_take_pictures and not isinstance(run.task, ComparesExamples)
    return f"fedpeft export {shlex.quote(str(run.folder))}" + (" --merge" if merged else "")


def format_loading_lines(told: str, run: FinishedRun, output: Path) -> tuple[str, list[str]]:
    """Return how an export is loaded: a clause about it, and the lines to paste.

    Args:
        told: the text of a model card, with placeholders for paths
            (`fedpeft.reporting.exports.model_card.describe_loading`).
        run: the finished run.
        output: the folder of the export.
    """
    base = output / "base.gguf"
    places = {
        "FOLDER": json.dumps(str(output)),
        '"adapter"': json.dumps(str(output / "adapter")),
        "(BASE,": f"({json.dumps(str(run.base_directory))},",
        "(RUN)": f"({json.dumps(str(run.folder))})",
        "predict RUN": f"predict {shlex.quote(str(run.folder))}",
        "-m model.gguf": f"-m {shlex.quote(str(output / 'model.gguf'))}",
        "--lora adapter.gguf": f"--lora {shlex.quote(str(output / 'adapter.gguf'))}",
        "-m BASE.gguf": f"-m {shlex.quote(str(base))}" if base.is_file() else "-m BASE.gguf",
    }
    lines = CODE.search(told)
    assert lines is not None, "a card contains the code that loads a model"
    rest = CODE.sub(lambda found: found[0] if found.start() != lines.start() else "", told).strip(" ;,")
    code = lines[1]
    for word, place in places.items():
        code = code.replace(word, place)
    return rest, [*_find_imports(code), code]


def _find_imports(code: str) -> list[str]:
    """Return the imports that a line of Python needs; none for a command."""
    if code.startswith(("python ", "llama-cli ")):
        return []
    modules = [name for name in ("fedpeft", "peft", "torch", "transformers") if re.search(rf"(?<!\w){name}\.", code)]
    classes = list(dict.fromkeys(CLASSES.findall(code)))
    return [
        *([f"import {', '.join(modules)}"] if modules else []),
        *([f"from transformers import {', '.join(classes)}"] if classes else []),
    ]

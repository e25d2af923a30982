"""python -m fedpeft.predict RUN [RUN ...] "text": what finished runs answer.

A classifier answers with its likeliest class and how sure it is, a language model goes on with the text (after
instruction tuning: answers it). Runs on the same base share one loaded copy of its weights; each has its own adapter.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import torch
import tyro
from rich.console import Console
from torch import nn

from fedpeft.data.conversations import question
from fedpeft.data.rows import DATASETS
from fedpeft.data.tokens import load_tokenizer
from fedpeft.errors import ConfigError
from fedpeft.evaluation.generation import answers
from fedpeft.models.base_model import readable_tokens
from fedpeft.run.command import exit_code
from fedpeft.run.finished import FinishedRun

UNBOUNDED = 1 << 30
"""Tokens that a model reads which says nothing of a limit."""


@dataclass(frozen=True)
class Command:
    """Ask finished runs: python -m fedpeft.predict RUN [RUN ...] "text"."""

    words: Annotated[
        tuple[str, ...],
        tyro.conf.Positional,
        tyro.conf.arg(metavar="RUN [RUN ...] TEXT", help="run folders, then a text"),
    ]
    new_tokens: Annotated[int, tyro.conf.arg(help="most tokens that a language model adds")] = 40


def answer(run: FinishedRun, base: nn.Module, text: str, new_tokens: int) -> str:
    """What the run's model, on `base`, says to `text`.

    Raises:
        FedpeftError: the run reads images, or its files are missing.
    """
    model = run.model(base)
    if run.reads_images:
        raise ConfigError(f"{run.folder} classifies images, and predict takes a text")
    tokenizer = load_tokenizer(run.model_directory)
    if run.labels is not None:
        encoded = tokenizer(text, truncation=True, max_length=run.tokens, return_tensors="pt")
        batch = {name: encoded[name] for name in ("input_ids", "attention_mask")}
        with torch.inference_mode():
            chances = model(batch)[0].softmax(-1)
        best = int(chances.argmax())
        return f"{run.labels[best]} ({float(chances[best]):.3f})"
    asked = run.task.asks
    complete = False
    if asked:
        text, complete = question(tokenizer, text, getattr(DATASETS.build(run.config.dataset), "template", None))
    readable = readable_tokens(run.model_directory, run.method.extra_tokens, UNBOUNDED)
    asking = list(tokenizer(text, add_special_tokens=not complete)["input_ids"])
    if len(asking) + new_tokens > readable:
        raise ConfigError(
            f"the text has {len(asking)} tokens, and the model reads {readable}, the {new_tokens} new ones included; "
            "give a shorter text, or fewer --new-tokens"
        )
    return answers(model, tokenizer, [asking], new_tokens)[0]


def predict(folders: list[Path], text: str, new_tokens: int, console: Console) -> None:
    """Print each run's answer.

    Raises:
        FedpeftError: a folder holds no finished run.
    """
    runs = [FinishedRun.read(folder) for folder in folders]
    bases: dict[Any, nn.Module] = {}
    for run in runs:
        if run.base_key not in bases:
            bases[run.base_key] = run.base()
        said = answer(run, bases[run.base_key], text, new_tokens)
        console.print(
            said if len(runs) == 1 else f"{run.folder}: {said}", highlight=False, markup=False, soft_wrap=True
        )


def main(arguments: list[str] | None = None) -> int:
    """The command; returns its exit code."""
    return exit_code(lambda: _predicted(tyro.cli(Command, args=arguments, prog="python -m fedpeft.predict")))


def _predicted(command: Command) -> None:
    from fedpeft.run.console import quiet_libraries

    quiet_libraries()
    if len(command.words) < 2 or not command.words[-1].strip():
        raise ConfigError('predict needs a run\'s folder and a text: python -m fedpeft.predict runs/NAME "text"')
    if command.new_tokens < 1:
        raise ConfigError(f"--new-tokens must be at least 1, got {command.new_tokens}")
    *folders, text = command.words
    predict([Path(folder) for folder in folders], text, command.new_tokens, Console())


if __name__ == "__main__":
    sys.exit(main())

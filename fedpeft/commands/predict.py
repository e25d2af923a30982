"""fedpeft predict RUN [RUN ...] "text": what finished runs answer.

fedpeft predict RUN [RUN ...] IMAGE [IMAGE ...]: the answers of runs on images to image files.

fedpeft predict RUN --data FILE --output ANSWERS.csv: the answers of a run with classes, labels or numbers to
each row of a file, or to each picture of a folder or a table.

A classifier answers with its likeliest class and the probability of it, by the temperature of its run. With several
labels, it lists all with their probabilities, and marks its answers by `+`. Regression answers with a number in the
unit of the labels. A run of token labels answers each word with its label. A language model continues the text (after
instruction tuning: answers it), or describes a picture (captions).

Runs on the same base share one loaded copy of its weights; each has its own adapter. `--ensemble` combines them into
one answer: the mean of their calibrated probabilities (Lakshminarayanan et al., NeurIPS 2017). With `--abstain 0.7`
there is no answer if the likeliest class has a lower probability.
"""

from __future__ import annotations

import json
import os
from collections import Counter
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import tyro
from rich.progress import Progress

from fedpeft.data.table_format import AUTO, TableFormat
from fedpeft.errors import ConfigError
from fedpeft.machine.terminal import Console
from fedpeft.reporting.command import (
    name_program,
    parse_flags,
    run_tool,
    start_command,
    tell_notes,
)
from fedpeft.reporting.console import silence_libraries
from fedpeft.reporting.phases import SILENCE, Heartbeat

if TYPE_CHECKING:
    from torch import nn


@dataclass(frozen=True)
class Command:
    """Ask finished runs: fedpeft predict RUN [RUN ...] "text", or IMAGE [IMAGE ...] for images.

    For a file of rows, or a folder of pictures: fedpeft predict RUN --data FILE --output ANSWERS.csv.
    """

    words: Annotated[
        tuple[str, ...],
        tyro.conf.Positional,
        tyro.conf.arg(metavar="RUN [RUN ...] TEXT", help="run folders, then a text, or image files for runs on images"),
    ]
    data: Annotated[
        Path | None,
        tyro.conf.arg(
            metavar="FILE",
            help="instead of a text: a file of rows, as --dataset file: reads it, or a folder or table of images",
        ),
    ] = None
    output: Annotated[
        Path | None, tyro.conf.arg(metavar="FILE.csv", help="new file for the rows of --data with their answers")
    ] = None
    text: Annotated[
        str | None, tyro.conf.arg(metavar="COLUMN", help="column of texts in --data (default: that of the run's data)")
    ] = None
    sep: Annotated[str, tyro.conf.arg(help="separator of columns in --data; auto: detected and reported")] = AUTO
    encoding: Annotated[str, tyro.conf.arg(help="encoding of --data, such as latin-1; auto: detected and reported")] = (
        AUTO
    )
    new_tokens: Annotated[int, tyro.conf.arg(help="most tokens that a language model adds")] = 40
    abstain: Annotated[float, tyro.conf.arg(help="probability below which a classifier gives no answer, 0 to 1")] = 0.0
    ensemble: Annotated[
        bool, tyro.conf.FlagCreatePairsOff, tyro.conf.arg(help="one answer of several classifiers, from their mean")
    ] = False
    plugin: Annotated[
        tuple[str, ...],
        tyro.conf.UseAppendAction,
        tyro.conf.arg(metavar="FILE", help="plugin of the run, at its present place"),
    ] = ()


def predict(
    folders: list[Path],
    asked: list[str],
    new_tokens: int,
    console: Console,
    abstain: float = 0.0,
    ensemble: bool = False,
) -> None:
    """Print each run's answer, or that of their `ensemble`, to a text, or to each of several pictures by their files.

    Raises:
        FedpeftError: a folder holds no finished run, what is asked is nothing that it reads, or the runs have no mean.
    """
    from fedpeft.evaluate.prediction import answer, check_asked, predict_together
    from fedpeft.reporting.finished_run import FinishedRun

    runs = [FinishedRun.read(folder) for folder in folders]
    tell_notes()
    for run in runs:
        run.check_answers()
        for one in asked:
            check_asked(run, one)
    bases: dict[Any, nn.Module] = {}
    for run in runs:
        if run.base_key not in bases:
            bases[run.base_key] = run.base()

    def say(who: str, one: str, said: str) -> None:
        named = [*([who] if len(runs) > 1 else []), *([one] if len(asked) > 1 else []), said]
        console.print(": ".join(named), highlight=False, markup=False, soft_wrap=True)

    if ensemble:
        for one in asked:
            say(f"{len(runs)} runs together", one, predict_together(runs, bases, one, abstain))
        return
    for run in runs:
        for one in asked:
            say(str(run.folder), one, answer(run, bases[run.base_key], one, new_tokens, abstain))


def main(arguments: list[str] | None = None) -> int:
    """Run the command; return its exit code."""
    return run_tool(Command, _run_predict, arguments, parse=_parse_command, silent=False)


def _parse_command(arguments: list[str]) -> Command:
    """Return the flags; runs and the text may also follow flags, and tyro reports these as unknown words."""
    command, behind = tyro.cli(Command, args=arguments, prog=name_program(Command), return_unknown_args=True)
    if any(word.startswith("-") for word in behind):
        return parse_flags(Command, arguments)  # names the flag that is wrong
    return replace(command, words=(*command.words, *behind))


def _run_predict(command: Command, console: Console) -> None:
    if not 0 <= command.abstain <= 1:
        raise ConfigError(f"FP1279 --abstain must be a probability, 0 to 1, got {command.abstain:g}")
    if command.data is not None:
        _predict_rows(command, console)
        return
    if command.output is not None or command.text is not None:
        raise ConfigError("FP1280 --output and --text need a file of rows; give it with --data FILE, or leave them out")
    if len(command.words) < 2 or not command.words[-1].strip():
        raise ConfigError(
            'FP1281 predict needs a run\'s folder and a text, or an image file: fedpeft predict runs/NAME "text"'
        )
    if command.new_tokens < 1:
        raise ConfigError(f"FP1282 --new-tokens must be at least 1, got {command.new_tokens}")
    silence_libraries()
    folders, asked = _split_words(command.words)
    predict(folders, asked, command.new_tokens, console, command.abstain, command.ensemble)


def _split_words(words: tuple[str, ...]) -> tuple[list[Path], list[str]]:
    """Return the runs and the inputs: the last word, or all picture files if the first run is on images.

    Raises:
        ConfigError: a word between the first run and the text is not a run.
        RunError: the first word is not a run.
    """
    from fedpeft.reporting.finished_run import FinishedRun

    count = len(words) - 1
    if count > 1:
        reads_pictures = FinishedRun.read(Path(words[0])).can_take_pictures
        runs = next((i for i, word in enumerate(words) if not os.path.isfile(os.path.join(word, "config.toml"))), count)
        if runs < count and not reads_pictures:
            raise ConfigError(
                f"FP1528 {words[runs][:60]!r} is not a run's folder, and predict takes one text; put the text in "
                "quotes, or give several texts as a file: fedpeft predict RUN --data FILE --output "
                "ANSWERS.csv"
            )
        count = runs if reads_pictures else count
    return [Path(word) for word in words[:count]], list(words[count:])


def create_heartbeat(console: Console, said: Counter[str]) -> Callable[[], None]:
    """Return what is printed after a silence: how many rows are answered, and before the first one a single line."""
    told = [-1]

    def beat() -> None:
        answered = sum(said.values())
        if answered == told[0]:
            return
        told[0] = answered
        console.print(
            f"...     {answered:,} rows answered" if answered else "...     reading the examples and the model"
        )

    return beat


def _predict_rows(command: Command, console: Console) -> None:
    """Write a run's answers to the rows of a file, and print how often each answer occurs."""
    if len(command.words) != 1 or command.output is None or command.data is None or command.ensemble:
        raise ConfigError("FP1283 one run answers a file of rows: fedpeft predict RUN --data FILE --output ANSWERS.csv")
    if command.output.suffix != ".csv":
        raise ConfigError(f"FP1284 --output must end in .csv, since it is a table; got {command.output}")
    if command.output.exists():
        raise ConfigError(f"FP1285 {command.output} exists already; give --output a new name")
    from fedpeft.data.record_folders import format_notes
    from fedpeft.evaluate.answered_rows import PREDICTED, answer_rows, write
    from fedpeft.reporting.finished_run import FinishedRun

    silence_libraries()
    run = FinishedRun.read(Path(command.words[0]))
    tell_notes()
    run.check_answers()
    given = TableFormat(command.sep, command.encoding, setting="--NAME VALUE")
    for note in format_notes(command.data, given):
        console.print(note, highlight=False, markup=False, soft_wrap=True)
    said: Counter[str] = Counter()
    rows: Counter[str] = Counter()
    with ExitStack() as held:
        if not console.is_terminal:
            held.enter_context(Heartbeat(create_heartbeat(console, rows), SILENCE))
        progress = held.enter_context(Progress(console=console, transient=True))
        task = progress.add_task(f"rows of {command.data}", total=None)
        for answer in write(answer_rows(run, command.data, command.text, command.abstain, given), command.output):
            said.update(json.loads(answer[PREDICTED]) if run.has_part_labels else [answer[PREDICTED]])
            rows["answered"] += 1
            progress.advance(task)
    told = f"{rows.total():,} rows -> {command.output}"
    if run.task.targets != "numbers":
        told += ": " + ", ".join(f"{name or 'none'} {count:,}" for name, count in said.most_common(10))
    console.print(told, highlight=False, markup=False, soft_wrap=True)


if __name__ == "__main__":
    start_command("commands.predict")

"""python -m fedpeft.predict RUN [RUN ...] "text": what finished runs answer.

python -m fedpeft.predict RUN [RUN ...] PICTURE [PICTURE ...]: the answers of runs on images to files of pictures.

python -m fedpeft.predict RUN --data FILE --output ANSWERS.csv: the answers of a run with classes, labels or numbers to
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
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any

import torch
import tyro
from rich.progress import Progress
from torch import Tensor, nn

from fedpeft.answers.captioning import caption_images
from fedpeft.answers.generation import answer_prompts
from fedpeft.answers.questions import Question, QuestionForm
from fedpeft.data.conversations import format_question
from fedpeft.data.image_folders import PICTURES, read_pixels
from fedpeft.data.record_folders import format_notes
from fedpeft.data.table_format import AUTO, TableFormat
from fedpeft.data.tokens import load_tokenizer
from fedpeft.errors import ConfigError
from fedpeft.evaluation.word_labels import label_words
from fedpeft.machine.terminal import Console
from fedpeft.models import scoring
from fedpeft.models.abilities import DescribesImages
from fedpeft.models.base_model import UNBOUNDED, count_readable_tokens
from fedpeft.models.patch_features import compute_patch_features
from fedpeft.models.task import FederatedModel
from fedpeft.models.two_towers import find_tower_folders
from fedpeft.reporting.command import (
    name_program,
    parse_flags,
    run_tool,
    start_command,
    tell_notes,
)
from fedpeft.reporting.finished_run import FinishedRun
from fedpeft.reporting.phases import SILENCE, Heartbeat


@dataclass(frozen=True)
class Command:
    """Ask finished runs: python -m fedpeft.predict RUN [RUN ...] "text", or PICTURE [PICTURE ...] for images.

    For a file of rows, or a folder of pictures: python -m fedpeft.predict RUN --data FILE --output ANSWERS.csv.
    """

    words: Annotated[
        tuple[str, ...],
        tyro.conf.Positional,
        tyro.conf.arg(
            metavar="RUN [RUN ...] TEXT", help="run folders, then a text, or files of pictures for runs on images"
        ),
    ]
    data: Annotated[
        Path | None,
        tyro.conf.arg(
            metavar="FILE",
            help="instead of a text: a file of rows, as --dataset file: reads it, or a folder or table of pictures",
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


def compute_outputs(run: FinishedRun, base: nn.Module, asked: str) -> Tensor:
    """Return the logits of a classifier for a text or for a picture's file, (outputs,) in fp64.

    Raises:
        FedpeftError: the file is not a picture, or the run's files are missing.
    """
    model = run.model(base)
    if run.is_image_model:
        return scoring.compute_logits(model, {"pixel_values": run.load_pictures([asked]).batch([0])["pixel_values"]})[0]
    tokenizer = load_tokenizer(run.model_directory)
    encoded = tokenizer(asked, truncation=True, max_length=run.tokens, return_tensors="pt")
    return scoring.compute_logits(model, {name: encoded[name] for name in ("input_ids", "attention_mask")})[0]


def compute_probabilities(run: FinishedRun, base: nn.Module, asked: str) -> Tensor:
    """Return the calibrated probabilities of a classifier's classes, (classes,) in fp64.

    Raises:
        FedpeftError: as `compute_outputs`.
    """
    return (compute_outputs(run, base, asked) / run.temperature).softmax(-1)


def check_asked(run: FinishedRun, asked: str) -> None:
    """Refuse a text where a run reads pictures, and a picture where it reads texts.

    Raises:
        ConfigError: it is the other.
        DataError: the picture's file can't be read.
    """
    there = os.path.isfile(asked)  # a text may be longer than the name of a file, which a Path would fail at
    if not run.can_take_pictures:
        if there and asked.lower().endswith(PICTURES):
            raise ConfigError(
                f"FP1270 {run.folder} reads texts, and {asked} is a picture; give a text, or a run on images"
            )
        return
    if os.path.isdir(asked):
        describes = isinstance(run.task, DescribesImages)
        table = "" if describes else ", or a folder of them by --data FOLDER --output ANSWERS.csv"
        raise ConfigError(
            f"FP1271 {asked} is a folder, and neither a finished run nor a picture; give a picture's file{table}"
        )
    if not there:
        raise ConfigError(
            f"FP1272 {run.folder} reads pictures, and there is no file {asked[:60]!r}; give a picture's file: "
            "python -m fedpeft.predict RUN PICTURE"
        )
    read_pixels([asked], 8)  # before a model is loaded, or another picture is answered


def format_verdict(labels: list[str], found: Tensor, abstain: float) -> str:
    """Return the likeliest class and its probability; no class if the probability is below `abstain`."""
    best = int(found.argmax())
    likeliest = f"{labels[best]} ({float(found[best]):.3f})"
    return f"no answer: {likeliest} is less likely than {abstain:g}" if float(found[best]) < abstain else likeliest


def answer(run: FinishedRun, base: nn.Module, text: str, new_tokens: int, abstain: float = 0.0) -> str:
    """Return the answer of the run's model, on `base`, to a text or to a picture's file.

    Raises:
        FedpeftError: the file is not a picture, the run's files are missing, or a language model shall abstain.
    """
    if run.task.targets in ("numbers", "labels"):
        if abstain:
            raise ConfigError(f"FP1157 {run.folder} has no classes of which one is likeliest; leave --abstain out")
        found = run.task.values(compute_outputs(run, base, text)).tolist()
        if run.task.targets == "numbers":
            return f"{found[0]:.6g}"
        return "  ".join(
            f"{'+' if p >= 0.5 else '-'}{name} ({p:.3f})" for name, p in zip(run.labels or [], found, strict=True)
        )
    if run.has_word_labels:
        if abstain:
            raise ConfigError(f"FP1505 {run.folder} labels each word of a text; leave --abstain out")
        words = text.split()
        (labels,) = label_words(run, run.model(base), [words])
        return " ".join(f"{word}/{label or 'cut off'}" for word, label in zip(words, labels, strict=True))
    if run.labels is not None:
        return format_verdict(run.labels, compute_probabilities(run, base, text), abstain)
    if abstain:
        raise ConfigError(f"FP1273 {run.folder} is a language model, which has no classes; leave --abstain out")
    model = run.model(base)
    if isinstance(run.task, DescribesImages):
        return write_caption(run, model, text, new_tokens)
    tokenizer = load_tokenizer(run.model_directory)
    asked = run.task.asks
    complete = False
    if run.task.translates:
        return write_text(run, model, tokenizer, text, new_tokens)
    if asked:
        text, complete = format_question(tokenizer, text, run.template)
    readable = count_readable_tokens(run.model_directory, run.method.extra_tokens, UNBOUNDED)
    asking = list(tokenizer(text, add_special_tokens=not complete)["input_ids"])
    if len(asking) + new_tokens > readable:
        raise ConfigError(
            f"FP1274 the text has {len(asking)} tokens, and the model reads at most {readable}, including "
            f"{new_tokens} new ones; give a shorter text, or fewer --new-tokens"
        )
    return answer_prompts(model, tokenizer, [asking], new_tokens)[0]


def write_text(run: FinishedRun, model: FederatedModel, tokenizer: Any, text: str, new_tokens: int) -> str:
    """Return the text that the run's decoder writes for a text that its encoder reads.

    Raises:
        ConfigError: one of both is longer than the model takes.
    """
    question = Question(QuestionForm(True, run.template, is_paired=True).pack_row(text, "", "the text"), text, ("",))
    asking = question.tokenize_prompt(tokenizer)
    readable = count_readable_tokens(run.model_directory, 0, UNBOUNDED)
    if max(len(asking), new_tokens) > readable:
        raise ConfigError(
            f"FP1275 the text has {len(asking)} tokens and --new-tokens asks for {new_tokens} more, but the model "
            f"reads and writes at most {readable}; give a shorter text, or fewer --new-tokens"
        )
    return answer_prompts(model, tokenizer, [asking], new_tokens)[0]


def write_caption(run: FinishedRun, model: FederatedModel, picture: str, new_tokens: int) -> str:
    """Return the caption of the run's model for a picture's file.

    Raises:
        ConfigError: the caption would be longer than the model reads.
        DataError: the file is not a picture.
    """
    task: Any = run.task
    readable = count_readable_tokens(run.model_directory, task.extra_tokens + 1, UNBOUNDED)
    if new_tokens > readable:
        raise ConfigError(f"FP1276 the model writes at most {readable} tokens after an image; give fewer --new-tokens")
    pixels = read_pixels([picture], run.picture_side)
    features = compute_patch_features(pixels, find_tower_folders(run.model_directory)["image"], task.side)
    return caption_images(model, load_tokenizer(run.model_directory), torch.from_numpy(features), new_tokens)[0]


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
            say(f"{len(runs)} runs together", one, _predict_together(runs, bases, one, abstain))
        return
    for run in runs:
        for one in asked:
            say(str(run.folder), one, answer(run, bases[run.base_key], one, new_tokens, abstain))


def predict_answers(run: FinishedRun, inputs: Sequence[str], new_tokens: int) -> list[str]:
    """Return the run's answer to each input, a text or the file of an image.

    Raises:
        FedpeftError: an input is nothing that the run reads, or files of the run are missing.
    """
    if new_tokens < 1:
        raise ConfigError(f"FP1516 new_tokens={new_tokens} must be at least 1")
    run.check_answers()
    for one in inputs:
        check_asked(run, one)
    base = run.base()
    return [answer(run, base, one, new_tokens) for one in inputs]


def _predict_together(runs: list[FinishedRun], bases: dict[Any, nn.Module], text: str, abstain: float) -> str:
    """Return the answer of the mean of the runs."""
    names = runs[0].labels
    if len(runs) < 2 or names is None or any(run.task.targets != "classes" for run in runs):
        raise ConfigError("FP1277 --ensemble takes two or more classifiers: RUN RUN ... TEXT")
    for run in runs:
        if run.labels != names:
            raise ConfigError(
                f"FP1278 {run.folder} has other classes than {runs[0].folder}; --ensemble needs the same ones"
            )
    return format_verdict(
        names, torch.stack([compute_probabilities(run, bases[run.base_key], text) for run in runs]).mean(0), abstain
    )


def main(arguments: list[str] | None = None) -> int:
    """Run the command; return its exit code."""
    return run_tool(Command, _run_predict, arguments, parse=_parse_command)


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
            "FP1281 predict needs a run's folder and a text, or a picture's file: python -m fedpeft.predict runs/NAME "
            '"text"'
        )
    if command.new_tokens < 1:
        raise ConfigError(f"FP1282 --new-tokens must be at least 1, got {command.new_tokens}")
    folders, asked = _split_words(command.words)
    predict(folders, asked, command.new_tokens, console, command.abstain, command.ensemble)


def _split_words(words: tuple[str, ...]) -> tuple[list[Path], list[str]]:
    """Return the runs and the inputs: the last word, or all picture files if the first run is on images.

    Raises:
        ConfigError: a word between the first run and the text is not a run.
        RunError: the first word is not a run.
    """
    count = len(words) - 1
    if count > 1:
        reads_pictures = FinishedRun.read(Path(words[0])).can_take_pictures
        runs = next((i for i, word in enumerate(words) if not os.path.isfile(os.path.join(word, "config.toml"))), count)
        if runs < count and not reads_pictures:
            raise ConfigError(
                f"FP1528 {words[runs][:60]!r} is not a run's folder, and predict takes one text; put the text in "
                "quotes, or give several texts as a file: python -m fedpeft.predict RUN --data FILE --output "
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
        console.print(f"...     {answered:,} rows answered" if answered else "...     reading the rows and the model")

    return beat


def _predict_rows(command: Command, console: Console) -> None:
    """Write a run's answers to the rows of a file, and print how often each answer occurs."""
    from fedpeft.evaluation.answered_rows import PREDICTED, answer_rows, write

    if len(command.words) != 1 or command.output is None or command.data is None or command.ensemble:
        raise ConfigError(
            "FP1283 one run answers a file of rows: python -m fedpeft.predict RUN --data FILE --output ANSWERS.csv"
        )
    if command.output.suffix != ".csv":
        raise ConfigError(f"FP1284 --output must end in .csv, since it is a table; got {command.output}")
    if command.output.exists():
        raise ConfigError(f"FP1285 {command.output} exists already; give --output a new name")
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
            said.update(json.loads(answer[PREDICTED]) if run.has_word_labels else [answer[PREDICTED]])
            rows["answered"] += 1
            progress.advance(task)
    told = f"{rows.total():,} rows -> {command.output}"
    if run.task.targets != "numbers":
        told += ": " + ", ".join(f"{name or 'none'} {count:,}" for name, count in said.most_common(10))
    console.print(told, highlight=False, markup=False, soft_wrap=True)


if __name__ == "__main__":
    start_command("predict")

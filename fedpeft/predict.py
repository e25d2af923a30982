"""python -m fedpeft.predict RUN [RUN ...] "text": what finished runs answer.

python -m fedpeft.predict RUN [RUN ...] PICTURE [PICTURE ...]: what runs on images say of pictures, by their files.

python -m fedpeft.predict RUN --data FILE --output ANSWERS.csv: what a run of classes, labels or numbers says of each
row of a file, or of each picture of a folder or a table.

A classifier answers with its likeliest class and how sure it is, by the temperature that its run has found. Where a row
may have several labels, all are told with their probabilities, `+` before those that are said; regression tells the
number, in the unit of the labels. A run of token labels answers each word with its label. A language model goes on with
the text (after instruction tuning: answers it), or says what a picture shows (captions). Runs on the same base share
one loaded copy of its weights; each has its own adapter. `--ensemble` makes one answer of them: the mean of their
calibrated probabilities (Lakshminarayanan et al., NeurIPS 2017). `--abstain 0.7` says nothing where the likeliest class
is less likely.
"""

from __future__ import annotations

import json
import os
import sys
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
from fedpeft.reporting.command import run_command, tell_notes
from fedpeft.reporting.finished_run import FinishedRun
from fedpeft.reporting.phases import SILENCE, Heartbeat


@dataclass(frozen=True)
class Command:
    """Ask finished runs: python -m fedpeft.predict RUN [RUN ...] "text", or of images PICTURE [PICTURE ...].

    Of a file of rows, or a folder of pictures: python -m fedpeft.predict RUN --data FILE --output ANSWERS.csv.
    """

    words: Annotated[
        tuple[str, ...],
        tyro.conf.Positional,
        tyro.conf.arg(
            metavar="RUN [RUN ...] TEXT", help="run folders, then a text, or of runs on images the files of pictures"
        ),
    ]
    data: Annotated[
        Path | None,
        tyro.conf.arg(
            metavar="FILE",
            help="instead of a text: rows, in a file as --dataset file: reads it; of pictures a folder or table",
        ),
    ] = None
    output: Annotated[
        Path | None, tyro.conf.arg(metavar="FILE.csv", help="the rows of --data with an answer each; a new file")
    ] = None
    text: Annotated[
        str | None, tyro.conf.arg(metavar="COLUMN", help="of --data, with the texts; without: as in the run's data")
    ] = None
    sep: Annotated[str, tyro.conf.arg(help="of --data: what separates its columns; auto: detected, reported")] = AUTO
    encoding: Annotated[str, tyro.conf.arg(help="of --data, such as latin-1; auto: detected, and reported")] = AUTO
    new_tokens: Annotated[int, tyro.conf.arg(help="most tokens that a language model adds")] = 40
    abstain: Annotated[float, tyro.conf.arg(help="probability below which a classifier gives no answer, 0 to 1")] = 0.0
    ensemble: Annotated[
        bool, tyro.conf.FlagCreatePairsOff, tyro.conf.arg(help="one answer of several classifiers, by their mean")
    ] = False
    plugin: Annotated[
        tuple[str, ...],
        tyro.conf.UseAppendAction,
        tyro.conf.arg(metavar="FILE", help="the run's parts of its user's own, where they lie now"),
    ] = ()


def compute_outputs(run: FinishedRun, base: nn.Module, asked: str) -> Tensor:
    """What a classifier's head says of a text, or of a picture by its file, (outputs,) in fp64.

    Raises:
        FedpeftError: the file is no picture, or the run's files are missing.
    """
    model = run.model(base)
    if run.is_image_model:
        return scoring.compute_logits(model, {"pixel_values": run.load_pictures([asked]).batch([0])["pixel_values"]})[0]
    tokenizer = load_tokenizer(run.model_directory)
    encoded = tokenizer(asked, truncation=True, max_length=run.tokens, return_tensors="pt")
    return scoring.compute_logits(model, {name: encoded[name] for name in ("input_ids", "attention_mask")})[0]


def compute_probabilities(run: FinishedRun, base: nn.Module, asked: str) -> Tensor:
    """The calibrated probabilities of a classifier's classes, (classes,) in fp64.

    Raises:
        FedpeftError: as `compute_outputs`.
    """
    return (compute_outputs(run, base, asked) / run.temperature).softmax(-1)


def check_asked(run: FinishedRun, asked: str) -> None:
    """Refuse a text where a run reads pictures, and a picture where it reads texts.

    Raises:
        ConfigError: it is the other.
        DataError: the file is no picture that can be read.
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
    """The likeliest class and its probability; no class where that is below `abstain`."""
    best = int(found.argmax())
    likeliest = f"{labels[best]} ({float(found[best]):.3f})"
    return f"no answer: {likeliest} is less likely than {abstain:g}" if float(found[best]) < abstain else likeliest


def answer(run: FinishedRun, base: nn.Module, text: str, new_tokens: int, abstain: float = 0.0) -> str:
    """What the run's model, on `base`, says to `text`, or to the picture whose file that is.

    Raises:
        FedpeftError: the file is no picture, or the run's files are missing; or a language model shall abstain.
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
            f"FP1274 the text has {len(asking)} tokens, and the model reads {readable}, the {new_tokens} new ones "
            "included; give a shorter text, or fewer --new-tokens"
        )
    return answer_prompts(model, tokenizer, [asking], new_tokens)[0]


def write_text(run: FinishedRun, model: FederatedModel, tokenizer: Any, text: str, new_tokens: int) -> str:
    """What the run's decoder writes of a text that its encoder reads.

    Raises:
        ConfigError: one of both is longer than the model takes.
    """
    question = Question(QuestionForm(True, run.template, is_paired=True).pack_row(text, "", "the text"), text, ("",))
    asking = question.tokenize_prompt(tokenizer)
    readable = count_readable_tokens(run.model_directory, 0, UNBOUNDED)
    if max(len(asking), new_tokens) > readable:
        raise ConfigError(
            f"FP1275 the text has {len(asking)} tokens, and with it {new_tokens} new ones are asked for; the model "
            f"reads, and writes, at most {readable}: give a shorter text, or fewer --new-tokens"
        )
    return answer_prompts(model, tokenizer, [asking], new_tokens)[0]


def write_caption(run: FinishedRun, model: FederatedModel, picture: str, new_tokens: int) -> str:
    """What the run's model says of a picture, by its file.

    Raises:
        ConfigError: the caption would be longer than the model reads.
        DataError: the file is no picture.
    """
    task: Any = run.task
    readable = count_readable_tokens(run.model_directory, task.extra_tokens + 1, UNBOUNDED)
    if new_tokens > readable:
        raise ConfigError(f"FP1276 behind an image the model says at most {readable} tokens; give fewer --new-tokens")
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
    """The answer of the runs' mean."""
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
    """The command; returns its exit code."""
    return run_command(lambda: _run_predict(_parse_command(sys.argv[1:] if arguments is None else arguments)))


def _parse_command(arguments: list[str]) -> Command:
    """What the command line says; runs and the text may also stand behind flags, which tyro takes as unknown words."""
    program = "python -m fedpeft.predict"
    command, behind = tyro.cli(Command, args=arguments, prog=program, return_unknown_args=True)
    if any(word.startswith("-") for word in behind):
        return tyro.cli(Command, args=arguments, prog=program)  # says which flag is wrong
    return replace(command, words=(*command.words, *behind))


def _run_predict(command: Command) -> None:
    from fedpeft.reporting.console import silence_libraries
    from fedpeft.wiring import catalogue

    silence_libraries()
    catalogue.use(command.plugin)
    if not 0 <= command.abstain <= 1:
        raise ConfigError(f"FP1279 --abstain must be a probability, 0 to 1, got {command.abstain:g}")
    if command.data is not None:
        _predict_rows(command, Console())
        return
    if command.output is not None or command.text is not None:
        raise ConfigError(
            "FP1280 --output and --text are of a file of rows: give it with --data FILE, or leave them out"
        )
    if len(command.words) < 2 or not command.words[-1].strip():
        raise ConfigError(
            "FP1281 predict needs a run's folder and a text, or a picture's file: python -m fedpeft.predict runs/NAME "
            '"text"'
        )
    if command.new_tokens < 1:
        raise ConfigError(f"FP1282 --new-tokens must be at least 1, got {command.new_tokens}")
    folders, asked = _split_words(command.words)
    predict(folders, asked, command.new_tokens, Console(), command.abstain, command.ensemble)


def _split_words(words: tuple[str, ...]) -> tuple[list[Path], list[str]]:
    """Runs, and behind them what they are asked: the last word, or where the first run is on images all pictures."""
    count = len(words) - 1
    if count > 1 and FinishedRun.read(Path(words[0])).can_take_pictures:
        count = next(
            (i for i, word in enumerate(words) if not os.path.isfile(os.path.join(word, "config.toml"))), count
        )
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
    """Write what a run says of the rows of a file, and tell how often it says what."""
    from fedpeft.evaluation.answered_rows import PREDICTED, answer_rows, write

    if len(command.words) != 1 or command.output is None or command.data is None or command.ensemble:
        raise ConfigError(
            "FP1283 a file of rows has the answers of one run: python -m fedpeft.predict RUN --data FILE --output "
            "ANSWERS.csv"
        )
    if command.output.suffix != ".csv":
        raise ConfigError(f"FP1284 --output is a table; {command.output} must end in .csv")
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
    sys.exit(main())

"""fedpeft check DATA: what a dataset holds, how it would lie on clients, and what is wrong with it."""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import numpy as np
import tyro
from rich.markup import escape
from rich.table import Table

from fedpeft.errors import AssetError, ConfigError, DataError
from fedpeft.machine.files import raise_write_errors
from fedpeft.machine.terminal import Console
from fedpeft.parts.families import DATASETS, PARTITIONS
from fedpeft.parts.spec import Spec
from fedpeft.reporting.command import (
    quote_argument,
    run_tool,
    start_command,
)
from fedpeft.wiring import early_checks
from fedpeft.wiring.config import RunConfig, build_config
from fedpeft.wiring.sampling import compute_cohort_size

if TYPE_CHECKING:
    from fedpeft.data.partition import Shards
    from fedpeft.data.rows import Dataset, Rows

MEASURED = 10_000
"""Rows whose length is taken at most: the first ones of an order by chance."""

DEFAULT = RunConfig()


@dataclass(frozen=True)
class Command:
    """Look at a dataset before a run: rows, classes, lengths, duplicates, and how a partition would look.

    fedpeft check rows.csv --clients 20
    """

    data: Annotated[
        str,
        tyro.conf.Positional,
        tyro.conf.arg(metavar="DATA", help="your own file or folder, or a value of --dataset"),
    ]
    partition: Annotated[
        str,
        tyro.conf.arg(help="split over clients; auto: the dataset's own, natural if examples have owners, or a run's"),
    ] = "auto"
    clients: Annotated[int, tyro.conf.arg(help="number of clients (default, 0: all owners, or 100)")] = 0
    model: Annotated[str, tyro.conf.arg(help="model whose tokens are counted; auto: the dataset's own")] = "auto"
    tokens: Annotated[int, tyro.conf.arg(help="tokens at which a run would cut texts")] = DEFAULT.tokens
    seed: Annotated[int, tyro.conf.arg(help="seed of the partition")] = DEFAULT.seed
    picture: Annotated[
        Path | None, tyro.conf.arg(metavar="FILE", help="also draw clients, classes and lengths: .svg, .png or .pdf")
    ] = None
    plugin: Annotated[
        tuple[str, ...],
        tyro.conf.UseAppendAction,
        tyro.conf.arg(metavar="FILE", help="parts of your own: a file, folder or installed package"),
    ] = ()


PICTURES = (".svg", ".png", ".pdf")


def find_dataset_text(data: str) -> str:
    """Return the text of --dataset for `data`.

    Raises:
        DataError: it looks like a path, and nothing is there.
    """
    if Path(data).expanduser().exists() and data not in DATASETS.names:
        return str(Spec("file", {"path": data}))
    if ":" not in data and "(" not in data and ("/" in data or Path(data).suffix):
        raise DataError(f"FP3012 there is no file or folder {data}; give one, or a dataset as for --dataset")
    return data


def partition_rows(command: Command, rows: Rows) -> tuple[str, Shards]:
    """Return the partition's text, and the partition of `rows`.

    Raises:
        FedpeftError: rows can't be split so.
    """
    from fedpeft.data.partition import USUAL, split
    from fedpeft.data.rows import get_default_partition

    text = command.partition
    if text == "auto":
        usual = "iid" if rows.classes is None else USUAL
        if rows.owners is not None:
            usual = "natural"
        text = get_default_partition(find_dataset_text(command.data)) or usual
    clients = command.clients or (0 if text.startswith("natural") else min(int(DEFAULT.clients), len(rows)))
    return text, split(PARTITIONS.build(text), rows, clients, command.seed)


def compute_lengths(command: Command, dataset: Dataset) -> tuple[np.ndarray, str, str]:
    """Return the lengths of the training examples, their unit, and a reason: for words, or for a run's refusal.

    Raises:
        FedpeftError: the model that was named has no tokenizer, or the rows don't go with it.
    """
    from fedpeft.data.examples import AnsweredRows
    from fedpeft.models.base_model import resolve_model
    from fedpeft.parts.families import TASKS

    rows, why = dataset.train, ""
    if len(rows) > MEASURED:
        rows = rows.take(np.sort(np.random.default_rng(0).permutation(len(rows))[:MEASURED]))
    try:
        folder = resolve_model(dataset.default_model if command.model == "auto" else command.model)
    except (AssetError, ConfigError) as error:
        if command.model != "auto":
            raise
        why = f"lengths are in words: {error}"
        return np.array([len(str(text).split()) for text in rows.inputs]), "words", why
    task = TASKS.build(dataset.task)
    found = task.tokenise(rows, folder, 1 << 30)
    if task.asks:
        try:
            task.tokenise(rows, folder, command.tokens)
        except DataError as error:  # an answer begins behind them
            why = str(error)
    return found.longer_lengths if isinstance(found, AnsweredRows) else found.lengths, "tokens", why


def check_flags(command: Command) -> str:
    """Return what a run's --dataset calls the data, and refuse flags that a run would refuse, before torch is imported.

    Raises:
        FedpeftError: a flag can't be used, or nothing is at the path.
    """
    if command.picture is not None and command.picture.suffix not in PICTURES:
        raise ConfigError(f"FP1044 --picture {command.picture} must end in {', '.join(PICTURES)}")
    text = find_dataset_text(command.data)
    settings = {name: getattr(command, name) for name in ("partition", "clients", "model", "tokens", "seed")}
    early_checks.check(build_config({**settings, "dataset": text}, "the command line"))
    return text


def check(command: Command, console: Console) -> list[str]:
    """Look at the data and say what is there; returns what is wrong.

    Raises:
        FedpeftError: the data can't be used at all, or not with this model.
    """

    def say(name: str, text: str) -> None:
        console.print(f"[bold]{name:<10}[/] ", end="", highlight=False)
        console.print(text, markup=False, highlight=False, soft_wrap=True)

    text = check_flags(command)
    from fedpeft.data.inspection import check_lengths, check_partition, check_rows
    from fedpeft.data.rows import load_dataset, split_off_validation
    from fedpeft.reporting.console import silence_libraries

    silence_libraries()
    dataset = load_dataset(text)
    say("data", f"{dataset.name}: {dataset.kind}, {dataset.task.partition('(')[0].replace('_', ' ')}")
    for note in dataset.notes:
        say("note", note)
    train, held = split_off_validation(dataset)
    _show_classes(dataset, train, held, console)
    lengths: np.ndarray | None = None
    wrong, unit = check_rows(dataset), "tokens"
    if dataset.kind == "text":
        lengths, unit, why = compute_lengths(command, dataset)
        low, median, high = np.percentile(lengths, (5, 50, 95))
        say("lengths", f"{low:.0f} / {median:.0f} / {high:.0f} {unit} (5 % / median / 95 %), longest {lengths.max()}")
        wrong += [why] if why else check_lengths(lengths, command.tokens)
    called, partition = partition_rows(command, train)
    say("partition", f"{called}: {partition.statistics(train.classes, len(train))}")
    wrong_clients = check_partition(partition, train)
    wrong += wrong_clients
    if command.picture is not None:
        from fedpeft.reporting.partition_plot import draw

        with raise_write_errors(command.picture):
            draw(command.picture, partition, train, dataset.label_names, lengths, command.tokens, unit)
        say("picture", str(command.picture))
    for sentence in wrong:
        say("wrong", sentence)
    if not wrong:
        say("wrong", "nothing was found")
    if wrong_clients and (better := _find_better_partition(command, called, train)):
        called, partition = better
        say("instead", f"{called}: nothing is wrong with its {len(partition)} clients, so the run below takes it")
    clients = 0 if called.startswith("natural") and not command.clients else len(partition)
    size = compute_cohort_size(DEFAULT.cohort, len(partition))
    cohort = "all" if size == len(partition) else str(size)
    say("a run", run_of(command, {"dataset": text, "partition": called, "clients": str(clients), "cohort": cohort}))
    return wrong


def _find_better_partition(command: Command, called: str, rows: Rows) -> tuple[str, Shards] | None:
    """Return the partition of equal clients, if it has nothing wrong that the one looked at has; else None.

    It is None if rows have owners or the user has named a partition: these clients can't be changed.
    """
    from fedpeft.data.inspection import check_partition
    from fedpeft.data.partition import USUAL, split

    if command.partition != "auto" or called != USUAL:
        return None
    equal = split(PARTITIONS.build("iid"), rows, command.clients or min(int(DEFAULT.clients), len(rows)), command.seed)
    return None if check_partition(equal, rows) else ("iid", equal)


def run_of(command: Command, settings: Mapping[str, str]) -> str:
    """Return the command line of a run with these settings and the command's own, as a shell reads it."""
    flags = {name: quote_argument(v) if name in ("dataset", "partition") else v for name, v in settings.items()}
    for name in ("model", "tokens", "seed"):
        if (given := getattr(command, name)) != getattr(DEFAULT, name):
            flags[name] = shlex.quote(str(given))
    words = [f"--{name} {value}" for name, value in flags.items()]
    words += [f"--plugin {shlex.quote(file)}" for file in command.plugin]
    return " ".join(["fedpeft simulate", *words])


def count_classes(dataset: Dataset, rows: Rows) -> np.ndarray | None:
    """Return how many pixels, words or examples have each class, (classes,); None: these examples have no labels."""
    classes = len(dataset.label_names or ())
    if rows.masks is not None:
        return count_pixels(rows, classes)
    if dataset.task == "token_labels":
        return count_tags(rows, classes)
    return None if rows.labels is None else count_labels(rows, classes)


def count_labels(rows: Rows, classes: int) -> np.ndarray:
    """Rows with each class or label, (classes,)."""
    labels = np.asarray(rows.labels)
    return labels.sum(0, dtype=np.int64) if labels.ndim == 2 else np.bincount(labels, minlength=classes)


def count_tags(rows: Rows, classes: int) -> np.ndarray:
    """Return how many words have each label, (classes,)."""
    from fedpeft.data.tagged_words import IGNORED, parse_row

    tags = [tag for row in rows.inputs for tag in parse_row(row)[1] if tag != IGNORED]
    return np.bincount(np.array(tags, np.int64), minlength=classes)


def count_pixels(rows: Rows, classes: int) -> np.ndarray:
    """Return how many pixels have each label, (classes,)."""
    assert rows.masks is not None
    return np.bincount(rows.masks.ravel(), minlength=classes)[:classes]


def _build_number_table(dataset: Dataset, splits: Mapping[str, Rows]) -> Table:
    """Rows of each split, and how their numbers lie."""
    of = escape((dataset.label_names or ("",))[0])
    table = Table("split", "rows", f"{of}: mean", "deviation", "least", "median", "most")
    for name, rows in splits.items():
        numbers = np.asarray(rows.labels, np.float64)
        told = (numbers.mean(), numbers.std(), numbers.min(), np.median(numbers), numbers.max())
        table.add_row(name, f"{len(rows):,}", *(f"{value:.5g}" for value in told))
    return table


def _show_classes(dataset: Dataset, train: Rows, held: Rows, console: Console) -> None:
    """Rows of each split, and of the most frequent classes, or words or pixels of the most frequent labels."""
    names, shown = dataset.label_names or (), 8
    splits = {"training": train, "validation": held, "test": dataset.test}
    if train.targets == "numbers":
        console.print(_build_number_table(dataset, splits))
        return
    counted = {name: count_classes(dataset, rows) for name, rows in splits.items()}
    counts = {name: count for name, count in counted.items() if count is not None}
    order: list[int] = np.argsort(-counts["training"], kind="stable").tolist() if names else []
    shown_names = [escape(names[i]) for i in order[:shown]]
    table = Table("split", "rows", *shown_names, *(["others"] if len(names) > shown else []))
    for name, rows in splits.items():
        cells = [f"{counts[name][i]:,}" for i in order[:shown]] if name in counts else []
        rest = [f"{sum(int(counts[name][i]) for i in order[shown:]):,}"] if len(names) > shown else []
        table.add_row(name, f"{len(rows):,}", *cells, *rest)
    console.print(table)


def main(arguments: list[str] | None = None) -> int:
    """Run the command; return its exit code: 0, 1 if the data have a fault, or 2 if they can't be used."""
    return run_tool(Command, lambda command, console: 1 if check(command, console) else 0, arguments, silent=False)


if __name__ == "__main__":
    start_command("commands.check")

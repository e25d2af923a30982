"""python -m experiments.ladder [--dataset X ...]: the accuracy of each way to use a task's examples.

Every rung is scored on the same test examples:

- majority: the most frequent class
- words, or pixels: a linear classifier on TF-IDF of the whole texts, or on pixels
- probe: a linear classifier on frozen features, of the last block or of all
- alone: an adapter that one client trains on its own examples; a sample of clients, mean and range
- federated: one adapter for all, and no examples leave their client
- federated head: without an adapter, a linear head that reads all blocks
- pooled adapter, pooled full fine-tuning: all examples in one place

Every number is a line of experiments/ladder/results.jsonl, and is measured only once. The table goes into README.md
beside it.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

from rich.markup import escape

from experiments import exit_on_error
from experiments.ladder.rungs import create_cells
from experiments.ladder.settings import TASKS
from fedpeft.errors import ConfigError
from fedpeft.machine.terminal import Console
from fedpeft.reporting.console import ConsoleObserver, silence_libraries
from fedpeft.reporting.phases import SILENCE

FOLDER = Path(__file__).parent
ORDER = (
    *("majority", "words", "pixels", "probe", "probe of all blocks", "alone"),
    *("federated head", "federated", "pooled adapter", "pooled full fine-tuning"),
)
BEGIN, END = "<!-- table -->", "<!-- end of table -->"
Line = dict[str, Any]


def main() -> None:
    """Measure what is missing, and write the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dataset", nargs="+", default=list(TASKS), help=f"tasks: {', '.join(TASKS)}")
    parser.add_argument("--rung", nargs="+", choices=ORDER, default=list(ORDER), help="only these rungs")
    parser.add_argument("--label", help="only cells with this label, such as '2 blocks, 1e-3'")
    parser.add_argument("--seeds", type=int, default=1, help="seeds of federated and pooled runs; a claim needs 5")
    parser.add_argument("--clients", type=int, default=8, help="number of clients that are trained alone")
    parser.add_argument("--full", action="store_true", help="also run full fine-tuning on the pooled examples (slow)")
    parser.add_argument("--workers", type=int, default=0, help="processes; 0: one per core")
    parser.add_argument("--output", type=Path, default=FOLDER, help="folder of results.jsonl and README.md")
    arguments = parser.parse_args()
    unknown = [name for name in arguments.dataset if name not in TASKS]
    if unknown:
        raise ConfigError(f"there is no ladder for {unknown[0]!r}; take {', '.join(TASKS)}, or add it to settings.py")
    silence_libraries()
    arguments.output.mkdir(parents=True, exist_ok=True)
    with ConsoleObserver(Console(), silence=SILENCE) as observer:
        for name in arguments.dataset:
            climb(name, arguments, observer)
    write_table(arguments.output)


def climb(name: str, arguments: argparse.Namespace, observer: ConsoleObserver) -> None:
    """Measure the missing numbers of a task's ladder, and print what is being measured and since when."""
    file = arguments.output / "results.jsonl"
    done = {get_key(line) for line in read(file)}
    observer.phase(f"{name}: reading the rows", 1)
    for cell in create_cells(TASKS[name], arguments.seeds, arguments.clients, arguments.full, arguments.workers):
        here = (name, cell.rung, cell.label, cell.seed)
        if here in done or cell.rung not in arguments.rung or arguments.label not in (None, cell.label):
            continue
        called = " ".join(filter(None, (f"{name}: {cell.rung}", cell.label, f"seed {cell.seed}")))
        observer.phase(called, 1)
        line = {"task": name, "rung": cell.rung, "label": cell.label, "seed": cell.seed} | cell.make()
        with file.open("a", encoding="utf-8") as sink:
            sink.write(json.dumps(line) + "\n")
        observer.say(escape(f"{called}: {line['accuracy']:.4f}"))
        write_table(arguments.output)


def get_key(line: Line) -> tuple[str, str, str, int]:
    """Return the key of a line: task, rung, label and seed."""
    return line["task"], line["rung"], line["label"], line["seed"]


def read(file: Path) -> list[Line]:
    """Read the lines of the results; the last line of each key counts."""
    lines = file.read_text(encoding="utf-8").splitlines() if file.is_file() else []
    return list({get_key(line): line for line in map(json.loads, lines)}.values())


def write_table(folder: Path) -> None:
    """Put the table of the folder's results into its README.md."""
    table = "\n".join(format_table(read(folder / "results.jsonl")))
    file = folder / "README.md"
    text = file.read_text(encoding="utf-8") if file.is_file() else f"{BEGIN}\n{END}\n"
    before, _, rest = text.partition(BEGIN)
    _, _, after = rest.partition(END)
    file.write_text(f"{before}{BEGIN}\n{table}\n{END}{after}", encoding="utf-8")


def format_table(lines: list[Line]) -> list[str]:
    """Return the lines of a Markdown table with one row per rung and settings."""
    table = [
        "| task | rung | settings | test accuracy (%) | validation (%) | runs | s a run |",
        "|---|---|---|---|---|---|---|",
    ]
    for task in dict.fromkeys(line["task"] for line in lines):
        for rung in ORDER:
            own = [line for line in lines if line["task"] == task and line["rung"] == rung]
            labels = [""] if rung == "alone" and own else list(dict.fromkeys(line["label"] for line in own))
            for label in labels:
                group = own if rung == "alone" else [line for line in own if line["label"] == label]
                table.append(_format_row(task, rung, label, group))
    return table


def _format_row(task: str, rung: str, label: str, group: list[Line]) -> str:
    scores = [100 * line["accuracy"] for line in group]
    shown = f"{fmean(scores):.1f}"
    if rung == "alone":
        shown += f" ({min(scores):.1f} to {max(scores):.1f})"
        label = f"{len(group)} clients of {min(g['rows'] for g in group)} to {max(g['rows'] for g in group)} rows"
    elif len(scores) > 1:
        shown += f" ± {stdev(scores):.1f}"
    seen = [100 * line["validation"] for line in group if "validation" in line] if rung != "alone" else []
    seconds = [line["seconds"] for line in group if "seconds" in line]
    cells = (
        *(task, rung, label, shown, f"{fmean(seen):.1f}" if seen else "", str(len(group))),
        f"{fmean(seconds):.0f}" if seconds else "",
    )
    return f"| {' | '.join(cells)} |"


if __name__ == "__main__":
    with exit_on_error():
        main()

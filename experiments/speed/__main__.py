"""`python -m experiments.speed`: seconds of a training round, fedpeft and peers, interleaved on the same batches."""

from __future__ import annotations

import importlib.util
import os
import shlex
import sys
import tempfile
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import tyro
from rich.console import Console

from experiments import write_between

if TYPE_CHECKING:
    from experiments.speed import study

README = Path(__file__).with_name("README.md")


@dataclass(frozen=True)
class Settings:
    """The measurements to run."""

    clients: int = 100
    """clients of a round (the default run's case has that run's cohort)"""
    rows: int = 16
    """rows that each of them trains on, once: rows / batch size steps"""
    default_rows: int = 0
    """rows per client in the default run's case; 0: all it has, one local epoch"""
    repeats: int = 5
    """timed rounds of each variant, interleaved"""
    workers: int = 0
    """processes of each side, one thread each; 0: one per core"""
    only: str = ""
    """only the cases whose name contains this text"""
    levers: bool = True
    """also time the batched executor with some of its levers off"""
    flower: bool = True
    """Flower takes part (needs ray)"""
    whole_rounds: int = 0
    """also run each side alone, from start to end, for this many rounds: seconds and peak memory; 0: no"""
    small: bool = False
    """a few minutes: 20 clients, 8 rows each (16 in the default run's case), two repeats"""
    output: Path | None = None
    """a .jsonl file that a line per case and variant is added to"""
    write_readme: bool = False
    """put the tables into the README of this experiment"""


def main(settings: Settings) -> int:
    """Measure and print; 2: something that the user has to mend."""
    console = Console()
    if settings.flower and importlib.util.find_spec("ray") is None:
        print("Flower's simulation needs ray: pip install 'fedpeft[ray]', or give --no-flower", file=sys.stderr)
        return 2
    os.environ.update({"TOKENIZERS_PARALLELISM": "false", "HF_HUB_OFFLINE": "1"})
    if settings.small:
        settings = replace(settings, clients=20, rows=8, default_rows=16, repeats=2)

    from fedpeft.reporting.console import silence_libraries

    silence_libraries()

    from experiments.speed import report, study

    cases = [
        c for c in study.create_cases(settings.clients, settings.rows, settings.default_rows) if settings.only in c.name
    ]
    if not cases:
        names = ", ".join(
            case.name for case in study.create_cases(settings.clients, settings.rows, settings.default_rows)
        )
        print(f"error: no case is called {settings.only!r}; there are: {names}", file=sys.stderr)
        return 2
    if settings.write_readme and settings.only:
        print("error: the README's tables hold all cases: leave --only or --write-readme out", file=sys.stderr)
        return 2
    environment = report.Environment.probe()
    console.print(str(environment), highlight=False)
    results = []
    with tempfile.TemporaryDirectory() as folder:
        measure = study.Study(
            repeats=settings.repeats,
            workers=settings.workers or os.cpu_count() or 1,
            levers=settings.levers,
            frameworks=("plain", "flower", "fedpeft") if settings.flower else ("plain", "fedpeft"),
            whole_rounds=settings.whole_rounds,
            folder=Path(folder),
            say=lambda text: console.print(text, highlight=False),
        )
        exactness = measure.measure_exactness()
        console.print(f"fp64: the batched update differs from the plain loop's by {exactness:.0e} (relative norm)")
        for case in cases:
            result = measure.run(case)
            results.append(result)
            show(result, console)
    if settings.output is not None:
        settings.output.parent.mkdir(parents=True, exist_ok=True)
        with open(settings.output, "a", encoding="utf-8") as file:
            file.writelines(line + "\n" for line in report.format_lines(results, environment))
    if settings.write_readme:
        command = "python -m experiments.speed " + shlex.join(a for a in sys.argv[1:] if a != "--write-readme")
        text = report.format_markdown(results, environment, command.strip(), exactness)
        write_between(README, report.BEGIN, report.END, text)
    return 0


def show(result: study.Result, console: Console) -> None:
    """Print one case in the terminal."""
    from experiments.speed import report

    console.print(report.build_table(result))
    for note in report.explain_result(result):
        console.print("  " + note, highlight=False)
    for text, seconds, memory in report.list_whole_rows(result):
        console.print(f"  whole run, {text}: {seconds} s, peak memory {memory} GB", highlight=False)


if __name__ == "__main__":
    sys.exit(main(tyro.cli(Settings, description=__doc__)))

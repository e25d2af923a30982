"""Where does the time of a run go? `python -m experiments.budget RUN...`; without RUN, it makes a default run.

The times come from the run's own records: `phases` in summary.json, and `training_seconds`, `aggregation_seconds` and
`seconds` in rounds.jsonl. Prints a table and draws bars, one per run and phase.

    python -m experiments.budget runs/a runs/b --chart budget.svg
    python -m experiments.budget --quick
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import tyro
from rich.console import Console
from rich.table import Table

from experiments import exit_on_error
from fedpeft.commands.check import PICTURES
from fedpeft.errors import ConfigError, RunError
from fedpeft.machine.files import raise_write_errors
from fedpeft.reporting.console import format_duration
from fedpeft.reporting.finished_run import FinishedRun
from fedpeft.reporting.records import Records

ROUNDS = "rounds"
"""The phase that rounds.jsonl divides further."""


@dataclass(frozen=True)
class Settings:
    """The runs to show."""

    runs: Annotated[tuple[Path, ...], tyro.conf.Positional] = ()
    """folders of finished runs; none: the default run is made, and forgotten"""
    quick: bool = False
    """make a quick run if no RUN is given"""
    chart: Path = Path("budget.svg")
    """where the bars are drawn"""


@dataclass(frozen=True)
class Budget:
    """The seconds of one run: `parts` by phase in their order, and `seconds` in total."""

    name: str
    parts: Mapping[str, float]
    seconds: float

    @classmethod
    def read(cls, folder: Path) -> Budget:
        """Read the times of a finished run.

        Raises:
            RunError: the folder has no finished run, or the run recorded no phases.
        """
        summary = FinishedRun.read(folder).summary
        phases = summary.get("phases")
        if not phases:
            raise RunError(f"{folder} has recorded no phases: it is a server's, or older than they are; run it again")
        parts: dict[str, float] = {}
        for name, seconds in phases.items():
            inner = (
                split_round_seconds(Records(folder).read("rounds.jsonl"), seconds)
                if name == ROUNDS
                else {name: seconds}
            )
            parts |= {part: parts.get(part, 0.0) + spent for part, spent in inner.items()}
        rest = summary["seconds"] - sum(parts.values())
        return cls(folder.name, parts | {"all else": max(0.0, rest)}, summary["seconds"])


def split_round_seconds(rounds: Sequence[Mapping[str, Any]], seconds: float) -> dict[str, float]:
    """Split the `seconds` of all rounds into parts.

    Returns a single part if rounds record no times (secret cohorts) or if some ran in an earlier process.
    """
    known = [line for line in rounds if line["round"] > 0]
    if not known or any(line["seconds"] is None for line in known) or sum(line["seconds"] for line in known) > seconds:
        return {ROUNDS: seconds}
    trained, aggregated, all_of = (
        sum(line[name] for line in known) for name in ("training_seconds", "aggregation_seconds", "seconds")
    )
    return {
        "rounds: training": trained - aggregated,
        "rounds: aggregation": aggregated,
        "rounds: validation": all_of - trained,
        "rounds: records and checkpoints": seconds - all_of,
    }


def build_table(budgets: Sequence[Budget]) -> Table:
    """Build a table with one row per phase: seconds, and the share of the run."""
    shown = Table("phase", *(text for b in budgets for text in (f"{b.name} (s)", "%")))
    for phase in dict.fromkeys(phase for budget in budgets for phase in budget.parts):
        cells = []
        for budget in budgets:
            seconds = budget.parts.get(phase)
            cells += ["", ""] if seconds is None else [f"{seconds:.1f}", f"{100 * seconds / budget.seconds:.1f}"]
        shown.add_row(phase, *cells)
    shown.add_section()
    shown.add_row("in all", *(text for b in budgets for text in (f"{b.seconds:.1f}", "100.0")))
    return shown


def draw(budgets: Sequence[Budget], path: Path) -> None:
    """Draw horizontal bars, with phases from top to bottom.

    Raises:
        RunError: the file can't be written.
    """
    from matplotlib.figure import Figure

    phases = list(dict.fromkeys(phase for budget in budgets for phase in budget.parts))
    height = 0.8 / len(budgets)
    figure = Figure(figsize=(8, 1 + 0.3 * len(phases) * max(1, len(budgets) / 2)), layout="constrained")
    axes = figure.add_subplot()
    for i, budget in enumerate(budgets):
        places = [row + i * height for row in range(len(phases))]
        bars = axes.barh(places, [budget.parts.get(phase, 0.0) for phase in phases], height, label=budget.name)
        axes.bar_label(bars, fmt="%.1f", padding=2, fontsize=8)
    middle = (len(budgets) - 1) * height / 2
    axes.set_yticks([row + middle for row in range(len(phases))], phases)
    axes.invert_yaxis()
    axes.set_xlabel("seconds")
    axes.spines[["top", "right"]].set_visible(False)
    if len(budgets) > 1:
        axes.legend(frameon=False)
    with raise_write_errors(path):
        figure.savefig(path)


def make_run(folder: Path, quick: bool) -> Path:
    """Make the default run in `folder`.

    Raises:
        RunError: the run has failed.
    """
    words = ["-m", "fedpeft.simulate", "--clients", "100", "--output", str(folder), *(["--quick"] if quick else [])]
    if subprocess.run([sys.executable, *words], check=False).returncode:
        raise RunError("the default run has failed, see above")
    return folder


def main(settings: Settings) -> None:
    """Read (or run), print and draw.

    Raises:
        ConfigError: the bars can't be drawn there.
        RunError: a run that can't be read, or has failed.
    """
    if settings.chart.suffix not in PICTURES or not settings.chart.parent.is_dir():
        raise ConfigError(f"--chart {settings.chart} must end in {', '.join(PICTURES)}, in a folder that is there")
    with tempfile.TemporaryDirectory() as temporary:
        folders = settings.runs or (
            make_run(Path(temporary) / ("quick" if settings.quick else "default"), settings.quick),
        )
        budgets = [Budget.read(folder) for folder in folders]
    console = Console(width=120)
    console.print(build_table(budgets))
    draw(budgets, settings.chart)
    for budget in budgets:
        phase, most = max(budget.parts.items(), key=lambda part: part[1])
        share = 100 * most / budget.seconds
        console.print(
            f"{budget.name}: {format_duration(budget.seconds)}, most of it {phase} ({share:.0f} %)", highlight=False
        )
    console.print(f"bars: {settings.chart}; load average {os.getloadavg()[0]:.1f} now", highlight=False)


if __name__ == "__main__":
    with exit_on_error():
        main(tyro.cli(Settings, description=__doc__))

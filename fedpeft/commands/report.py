"""fedpeft report PATH...: runs and studies on one page that opens from disk, and the same numbers as CSV.

A PATH is a run's folder, a study's folder or results.jsonl, or a folder of those, and must be there. What is broken is
named and skipped.
"""

from __future__ import annotations

import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import tyro
from rich.markup import escape

from fedpeft.errors import ConfigError, RunError
from fedpeft.machine.terminal import Console
from fedpeft.parts import suggest_legal
from fedpeft.parts.spec import split_outside_parentheses
from fedpeft.reporting.command import run_tool, start_command
from fedpeft.reporting.run_folder import SEARCHS_JOURNAL

if TYPE_CHECKING:
    from fedpeft.study.result_folders import ResultFolders
    from fedpeft.study.results import Result
    from fedpeft.study.sections import Section


@dataclass(frozen=True)
class Command:
    """Compare runs and studies: one self-contained HTML page, and CSV files beside it."""

    paths: Annotated[
        tuple[Path, ...],
        tyro.conf.Positional,
        tyro.conf.arg(metavar="PATH...", help="runs, studies, or folders of them"),
    ]
    output: Annotated[Path, tyro.conf.arg(help="the page; CSV files go to a folder named like it")] = Path(
        "report.html"
    )
    baseline: Annotated[str, tyro.conf.arg(help='what to compare with: "axis=value, axis=value"')] = ""
    margin: Annotated[
        float | None, tyro.conf.arg(help="largest loss of accuracy, in points, that counts as no worse")
    ] = None
    targets: Annotated[str, tyro.conf.arg(help='accuracies in percent for the cost tables: "60, 65"')] = ""


def create_sections(found: ResultFolders, command: Command) -> list[Section]:
    """Return one section per study, preset and dataset, and one per dataset of the single runs.

    Raises:
        ConfigError: the baseline names no axis or value that is there.
    """
    from fedpeft.study.results import select_latest
    from fedpeft.study.sections import (
        Section,
        create_runs_section,
        create_study_section,
        get_runs_baseline,
        group_by_data,
        name_data,
        split_by_data,
    )

    baseline = parse_baseline(command.baseline)
    targets = parse_targets(command.targets)
    sections = []
    for (name, preset), results in found.results.items():
        study = found.studies.get((name, preset))
        title = f"{name} ({preset})" if preset else name
        if study is not None:
            parts = split_by_data(create_study_section(study, results))
        elif name:
            parts = split_by_data(Section(title, "", results, get_runs_baseline(results)))
        else:
            groups = group_by_data(select_latest(results))
            names = name_data(groups) if len(groups) > 1 else [""]
            parts = [create_runs_section(group, data) for group, data in zip(groups, names, strict=True)]
        if baseline:
            _check_baseline(
                title or "the section of single runs", [r for part in parts for r in part.results], baseline
            )
            parts = [replace(part, baseline=baseline) if _has_labels(part, baseline) else part for part in parts]
        for part in parts:
            margin = part.margin if command.margin is None else command.margin
            sections.append(replace(part, margin=margin, targets=targets))
    return sections


def parse_baseline(text: str) -> dict[str, str]:
    """`axis=value, axis=value`.

    Raises:
        ConfigError: another form.
    """
    found: dict[str, str] = {}
    for piece in split_outside_parentheses(text, ",") if text.strip() else []:
        axis, equals, label = piece.partition("=")
        if not equals or not axis.strip() or not label.strip():
            raise ConfigError(f"FP1286 --baseline must be axis=value, axis=value; got {piece!r}")
        found[axis.strip()] = label.strip()
    return found


def parse_targets(text: str) -> tuple[float, ...]:
    """Percentages, separated by commas.

    Raises:
        ConfigError: not numbers above 0 and at most 100.
    """
    try:
        targets = tuple(float(piece) for piece in text.split(",") if piece.strip())
    except ValueError:
        targets = (-1.0,)
    if not all(0 < target <= 100 for target in targets):
        raise ConfigError(f'FP1287 --targets must be percentages above 0 and at most 100, e.g. "60, 65"; got {text!r}')
    return targets


def _check_baseline(title: str, results: Sequence[Result], baseline: Mapping[str, str]) -> None:
    for axis, label in baseline.items():
        labels = {r.point[axis] for r in results if axis in r.point}
        if not labels:
            axes = {a for r in results for a in r.point}
            raise ConfigError(
                f"FP1288 {title} has no axis {axis!r} for the baseline; "
                f"{suggest_legal(axis, axes) if axes else 'its runs differ in nothing but the seed'}"
            )
        if label not in labels:
            raise ConfigError(f"FP1289 {title} has no {axis}={label} for the baseline; {suggest_legal(label, labels)}")


def _has_labels(section: Section, baseline: Mapping[str, str]) -> bool:
    return all(any(r.point.get(axis) == label for r in section.results) for axis, label in baseline.items())


def _check_output(page: Path) -> None:
    """Refuse to overwrite the page of a study or a search, which lies beside its results.

    Raises:
        ConfigError: it is none, or a study's or search's.
    """
    from fedpeft.study.page import STUDYS_PAGE

    if page.suffix != ".html":
        raise ConfigError(f"FP1290 --output must be a page, NAME.html, got {page}")
    if page.name == STUDYS_PAGE and page.with_name("results.jsonl").is_file():
        raise ConfigError(
            f"FP1291 {page} is the page of the study whose results.jsonl lies beside it; give another --output"
        )
    if page.name == STUDYS_PAGE and page.with_name(SEARCHS_JOURNAL).is_file():
        raise ConfigError(
            f"FP1292 {page} is the page of the search whose {SEARCHS_JOURNAL} lies beside it; give another --output"
        )


def report(command: Command, console: Console) -> None:
    """Read, make and write everything.

    Raises:
        FedpeftError: nothing usable was given, or a setting is wrong; nothing is written then.
    """
    from fedpeft.study.page import PageSection, write_report
    from fedpeft.study.result_folders import ResultFolders

    _check_output(command.output)
    if command.margin is not None and not 0 < command.margin < math.inf:
        raise ConfigError(f"FP1293 --margin must be a finite number of points above 0, got {command.margin:g}")
    for path in command.paths:
        if not os.path.exists(path):
            raise RunError(f"FP5163 {path} does not exist; give the folders of runs or studies that are there")
    found = ResultFolders()
    for path in command.paths:
        found.look(path)
    for line in found.skipped:
        console.print(f"[bold yellow]skipped:[/] {escape(line)}", highlight=False, soft_wrap=True)
    if not found.results:
        raise RunError("FP5164 there is nothing to report: none of the paths holds a finished run or a study's results")
    made = [PageSection.from_section(section) for section in create_sections(found, command)]
    title = made[0].section.title if len(made) == 1 else "fedpeft: runs compared"
    write_report(command.output, title, made, found.skipped)
    count = sum(len(m.section.results) for m in made)
    said = f"{count} run{'' if count == 1 else 's'} -> {command.output}"
    console.print(said, markup=False, highlight=False, soft_wrap=True)


def main(arguments: list[str] | None = None) -> int:
    """Run the command; return its exit code: 0, or 2 for a user's mistake."""
    return run_tool(Command, report, arguments, silent=False)


if __name__ == "__main__":
    start_command("commands.report")

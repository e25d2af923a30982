"""python -m fedpeft.report PATH...: runs and studies on one page that opens from disk, and the same numbers as CSV.

A PATH is a run's folder, a study's folder or results.jsonl, or a folder of those. What is broken is named and skipped.
"""

from __future__ import annotations

import dataclasses
import importlib.resources
import os
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated

import tyro
from rich.console import Console
from rich.markup import escape

from fedpeft.errors import ConfigError, FedpeftError, RunError
from fedpeft.parts import nearest, split_outside_parentheses
from fedpeft.studies.figures import Figure, figures
from fedpeft.studies.results import Result, ResultsFile, latest, read_run
from fedpeft.studies.study_file import Study, read_study
from fedpeft.studies.tables import Section, Table, describe, tables, time_in_words, with_points_by_difference

TABLE_BEGINS, TABLE_ENDS = "<!-- table: made by fedpeft.study -->", "<!-- end of table -->"
"""Between these lines of a study's README its tables are put."""


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
    margin: Annotated[float | None, tyro.conf.arg(help="points of accuracy: no worse by more than")] = None
    targets: Annotated[str, tyro.conf.arg(help='accuracies in percent for the cost tables: "60, 65"')] = ""


@dataclass
class Found:
    """What the paths hold: results by study and preset (empty names: runs on their own), and what was left out."""

    results: dict[tuple[str, str], list[Result]] = field(default_factory=dict)
    studies: dict[tuple[str, str], Study] = field(default_factory=dict)
    skipped: list[str] = field(default_factory=list)

    def look(self, path: Path, named: bool = True) -> None:
        """Take in a path; one that a user `named` must hold something."""
        try:
            if path.is_file():
                self._study(path)
            elif (path / "results.jsonl").is_file():
                self._study(path / "results.jsonl")
            elif (path / "config.toml").is_file():
                run = read_run(path)
                self.results.setdefault(("", ""), []).append(run)
            elif path.is_dir() and any(_holds_something(p) for p in path.iterdir()):
                for inside in sorted(p for p in path.iterdir() if _holds_something(p)):
                    self.look(inside, named=False)
            elif path.is_dir() and (path / "runs").is_dir():
                self.look(path / "runs")
            elif named:
                what = "holds neither a run nor a study" if path.exists() else "does not exist"
                raise RunError(f"{path} {what}")
        except FedpeftError as error:
            self.skipped.append(str(error))

    def _study(self, path: Path) -> None:
        file = ResultsFile(path)
        results = file.read()
        if not results:
            raise RunError(f"{path} holds no result")
        if file.cut_short:
            self.skipped.append(f"the last line of {path} was cut short and is left out")
        for result in latest(results):
            self.results.setdefault((result.study, result.preset), []).append(result)
        for name, preset in {(r.study, r.preset) for r in results}:
            study = _described(path.parent, name, preset)
            if study is not None:
                self.studies[name, preset] = study


def _holds_something(path: Path) -> bool:
    return (path / "config.toml").is_file() or (path / "results.jsonl").is_file()


def _described(folder: Path, name: str, preset: str) -> Study | None:
    """The study's own file, beside its results or above them."""
    for file in (folder / "study.toml", folder.parent / "study.toml"):
        if file.is_file():
            try:
                study = read_study(file, preset)
            except FedpeftError:
                continue
            if study.name == name:
                return study
    return None


def section_of_study(study: Study, results: Sequence[Result]) -> Section:
    """With the study's own question, baseline and margin; results in the order of its grid."""
    order = {tuple(run.point.items()): i for i, run in enumerate(study.runs())}
    ordered = sorted(results, key=lambda r: (order.get(tuple(r.point.items()), len(order)), r.seed))
    title = f"{study.name} ({study.preset})" if study.preset else study.name
    return Section(title, study.question, ordered, study.baseline, study.margin)


def sections(found: Found, command: Command) -> list[Section]:
    """One per study and preset, one for all runs on their own.

    Raises:
        ConfigError: the baseline names no axis or value that is there.
    """
    baseline = parse_baseline(command.baseline)
    targets = parse_targets(command.targets)
    made = []
    for (name, preset), results in found.results.items():
        study = found.studies.get((name, preset))
        if study is not None:
            section = section_of_study(study, results)
        else:
            results = results if name else with_points_by_difference(latest(results))
            title = f"{name} ({preset})" if preset else name or "runs"
            section = Section(title, "", results, dict(results[0].point))
        if baseline:
            _check_baseline(section, baseline)
            section = dataclasses.replace(section, baseline=baseline)
        margin = section.margin if command.margin is None else command.margin
        made.append(dataclasses.replace(section, margin=margin, targets=targets))
    return made


def parse_baseline(text: str) -> dict[str, str]:
    """`axis=value, axis=value`.

    Raises:
        ConfigError: another form.
    """
    found: dict[str, str] = {}
    for piece in split_outside_parentheses(text, ",") if text.strip() else []:
        axis, equals, label = piece.partition("=")
        if not equals or not axis.strip() or not label.strip():
            raise ConfigError(f"--baseline must be axis=value, axis=value; got {piece!r}")
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
        raise ConfigError(f'--targets must be percentages above 0 and at most 100, e.g. "60, 65"; got {text!r}')
    return targets


def _check_baseline(section: Section, baseline: Mapping[str, str]) -> None:
    for axis, label in baseline.items():
        labels = {r.point[axis] for r in section.results if axis in r.point}
        if not labels:
            axes = {a for r in section.results for a in r.point}
            raise ConfigError(
                f"{section.title} has no axis {axis!r} for the baseline; "
                f"{nearest(axis, axes) if axes else 'its runs differ in nothing but the seed'}"
            )
        if label not in labels:
            raise ConfigError(f"{section.title} has no {axis}={label} for the baseline; {nearest(label, labels)}")


# -------------------------------------------------------------------------------------------------------------- writing


@dataclass(frozen=True)
class Made:
    """A section with its tables and figures."""

    section: Section
    tables: list[Table]
    figures: list[Figure]

    @classmethod
    def of(cls, section: Section) -> Made:
        """Make them."""
        shown = bool(section.shown)
        return cls(section, tables(section), figures(section) if shown else [])

    def for_page(self) -> dict[str, object]:
        """What the page's template needs."""
        section = self.section
        return {
            "title": section.title,
            "question": section.question,
            "finished": sum(r.finished for r in section.results),
            "failed": [f"{describe(r.point) or 'run'}, seed {r.seed}: {r.reason}" for r in section.failed],
            "methods": len(section.methods),
            "time": time_in_words(section),
            "hardware": section.hardware,
            "common": section.common,
            "tables": [t for t in self.tables if t.headings],
            "figures": self.figures,
        }


def page(title: str, made: Sequence[Made], skipped: Sequence[str], csv_folder: str) -> str:
    """The HTML text."""
    from jinja2 import Environment

    template = importlib.resources.files("fedpeft.studies").joinpath("page.html").read_text(encoding="utf-8")
    environment = Environment(autoescape=True, trim_blocks=True, lstrip_blocks=True, keep_trailing_newline=True)
    runs = sum(len(m.section.results) for m in made)
    return environment.from_string(template).render(
        title=title, sections=[m.for_page() for m in made], skipped=skipped, runs=runs, csv_folder=csv_folder
    )


def write_report(path: Path, title: str, made: Sequence[Made], skipped: Sequence[str]) -> None:
    """The page, and its CSV files in a folder named like it.

    Raises:
        RunError: a file can't be written.
    """
    folder = path.with_suffix("")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for number, one in enumerate(made, 1):
            prefix = f"{number}-" if len(made) > 1 else ""
            for table in one.tables:
                _replace(folder / f"{prefix}{table.name}.csv", table.csv())
        _replace(path, page(title, made, skipped, folder.name))
    except OSError as error:
        raise RunError(f"the report can't be written to {path}: {error.strerror}") from error


def _replace(path: Path, text: str) -> None:
    partial = path.with_name(path.name + ".partial")
    partial.write_text(text, encoding="utf-8")
    os.replace(partial, path)


def write_study_report(study: Study, results: Sequence[Result], folder: Path) -> Path:
    """report.html, CSV files and accuracy_bytes.svg of a study; the tables in its README, where that has a place.

    Raises:
        RunError: a file can't be written.
    """
    made = Made.of(section_of_study(study, results))
    path = folder / "report.html"
    write_report(path, made.section.title, [made], [])
    try:
        for figure in made.figures:
            if figure.name in ("accuracy_bytes", "accuracy_epsilon"):
                _replace(folder / f"{figure.name}.svg", f"{figure.svg.rstrip()}\n")
        readme = folder / "README.md"
        if readme.is_file():
            _replace(readme, with_tables(readme.read_text(encoding="utf-8"), made.tables))
    except OSError as error:
        raise RunError(f"the report can't be written to {folder}: {error.strerror}") from error
    return path


def with_tables(readme: str, made: Sequence[Table]) -> str:
    """`readme` with the tables between its two marker lines; unchanged if it has none."""
    before, begins, rest = readme.partition(TABLE_BEGINS)
    _, ends, after = rest.partition(TABLE_ENDS)
    if not begins or not ends:
        return readme
    text = "\n\n".join(f"**{t.title}.** {t.note}\n\n{t.markdown()}" for t in made if t.headings)
    return f"{before}{begins}\n\n{text}\n\n{ends}{after}"


def report(command: Command, console: Console) -> None:
    """Read, make and write everything.

    Raises:
        FedpeftError: nothing usable was given, or a setting is wrong; nothing is written then.
    """
    if command.output.suffix != ".html":
        raise ConfigError(f"--output must be a page, NAME.html, got {command.output}")
    if command.margin is not None and command.margin <= 0:
        raise ConfigError(f"--margin must be above 0 points, got {command.margin:g}")
    found = Found()
    for path in command.paths:
        found.look(path)
    for line in found.skipped:
        console.print(f"[bold yellow]skipped:[/] {line}", highlight=False, soft_wrap=True)
    if not found.results:
        raise RunError("there is nothing to report: none of the paths holds a finished run or a study's results")
    made = [Made.of(section) for section in sections(found, command)]
    title = made[0].section.title if len(made) == 1 else "fedpeft: runs compared"
    write_report(command.output, title, made, found.skipped)
    count = sum(len(m.section.results) for m in made)
    console.print(f"{count} runs -> {command.output}", highlight=False, soft_wrap=True)


def main(arguments: list[str] | None = None) -> int:
    """The command; returns its exit code: 0, or 2 for a user's mistake."""
    command = tyro.cli(Command, args=arguments, prog="python -m fedpeft.report")
    try:
        report(command, Console())
    except FedpeftError as error:
        Console(stderr=True).print(f"[bold red]error:[/] {escape(str(error))}", highlight=False, soft_wrap=True)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())

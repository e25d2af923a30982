"""The report: its sections as one HTML page, as CSV files, and as tables in a study's README."""

from __future__ import annotations

import dataclasses
import importlib.resources
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from fedpeft.errors import RunError
from fedpeft.machine import files
from fedpeft.study.drawing import BLUE, INK, PAPER
from fedpeft.study.figures import Figure, draw_figures
from fedpeft.study.outcomes import describe_section_outcome
from fedpeft.study.results import Result
from fedpeft.study.sections import (
    Section,
    create_study_section,
    describe,
    describe_run,
    format_total_time,
    split_by_data,
)
from fedpeft.study.study_file import Study
from fedpeft.study.tables import Table, build_tables

TABLE_BEGINS, TABLE_ENDS = "<!-- table: made by fedpeft.study -->", "<!-- end of table -->"
"""Lines of a study's README between which its tables are inserted."""

STUDYS_PAGE = "report.html"
"""The page of a study, in its results folder. The CSV files are in the folder `report`."""


@dataclass(frozen=True)
class PageSection:
    """A section with its tables and figures."""

    section: Section
    tables: list[Table]
    figures: list[Figure]

    @classmethod
    def from_section(cls, section: Section) -> PageSection:
        """Build the tables and draw the figures of a section."""
        shown = bool(section.shown)
        return cls(section, build_tables(section), draw_figures(section) if shown else [])

    def build_page_fields(self, number: int) -> dict[str, object]:
        """Return the values that the page's template needs for this section."""
        section = self.section
        return {
            "id": f"section{number}",
            "title": section.title,
            "question": section.question,
            "outcome": describe_section_outcome(section),
            "is_preview": section.is_preview,
            "early_ends": section.early_ends,
            "extent": describe_extent(section),
            "failed": [f"{describe(r.point) or 'run'}, seed {r.seed}: {r.reason}" for r in section.failed_runs],
            "hardware": section.hardware,
            "settings": "settings" if section.single_run else "settings that all runs share",
            "common": section.common,
            "tables": [t for t in self.tables if t.headings],
            "figures": [dataclasses.replace(f, svg=use_page_colors(f.svg)) for f in self.figures],
        }


def describe_extent(section: Section) -> str:
    """Return a sentence on how much was run."""
    time = f"{format_total_time(section)} of computation"
    if section.single_run is not None:
        config, summary = section.single_run.config, section.single_run.summary or {}
        clients = summary.get("clients", config.get("clients"))
        what = describe_run(section.single_run)
        return f"{what}: {config.get('rounds')} rounds, {clients} clients, seed {section.single_run.seed}; {time}."
    finished, methods = sum(r.is_finished for r in section.results), len(section.methods)
    runs = f"{finished} finished {'run' if finished == 1 else 'runs'}, {len(section.failed_runs)} failed"
    return f"{runs}; {methods} {'method' if methods == 1 else 'methods'}; {time}."


def use_page_colors(svg: str) -> str:
    """Replace colors that are invisible in dark mode by the page's color variables."""
    for color, name in ((PAPER, "paper"), (INK, "ink"), ("#000000", "ink"), (BLUE, "blue")):
        svg = svg.replace(color, f"var(--{name})")
    return svg


class PageContent(Protocol):
    """Anything that can be a section of a page."""

    def build_page_fields(self, number: int) -> dict[str, object]:
        """Return the values that the page's template needs for section `number`."""


def render_page(
    title: str,
    page_sections: Sequence[PageContent],
    skipped: Sequence[str],
    csv_folder: str,
    made_by: str = "fedpeft report",
) -> str:
    """Return the page as HTML; `made_by` is the command that the footer names."""
    from jinja2 import Environment

    template = importlib.resources.files("fedpeft.study").joinpath("page.html").read_text(encoding="utf-8")
    environment = Environment(autoescape=True, trim_blocks=True, lstrip_blocks=True, keep_trailing_newline=True)
    sections = [m.build_page_fields(number) for number, m in enumerate(page_sections, 1)]
    return environment.from_string(template).render(
        title=title, sections=sections, skipped=skipped, csv_folder=csv_folder, made_by=made_by
    )


def write_report(path: Path, title: str, page_sections: Sequence[PageSection], skipped: Sequence[str]) -> None:
    """Write the page, and its CSV files in a folder named after it.

    Raises:
        RunError: a file can't be written.
    """
    folder = path.with_suffix("")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for number, one in enumerate(page_sections, 1):
            prefix = f"{number}-" if len(page_sections) > 1 else ""
            for table in one.tables:
                files.replace(folder / f"{prefix}{table.name}.csv", table.to_csv().encode())
        files.replace(path, render_page(title, page_sections, skipped, folder.name).encode())
    except OSError as error:
        raise RunError(f"FP5212 the report can't be written to {path}: {error.strerror}") from error


def write_study_report(study: Study, results: Sequence[Result], folder: Path) -> Path:
    """Write a study's `STUDYS_PAGE`, CSV files and SVG figures, and update the tables in its README.

    A README without the two marker lines stays unchanged. Returns the path of the page.

    Raises:
        RunError: a file can't be written.
    """
    section = create_study_section(study, results)
    parts = [PageSection.from_section(part) for part in split_by_data(section)]
    path = folder / STUDYS_PAGE
    write_report(path, section.title, parts, [])
    try:
        for figure in parts[0].figures:
            if figure.name in ("accuracy_bytes", "accuracy_epsilon"):
                files.replace(folder / f"{figure.name}.svg", f"{figure.svg.rstrip()}\n".encode())
        readme = folder / "README.md"
        if readme.is_file():
            tables = [t if len(parts) == 1 else t.prefix_title(p.section.title) for p in parts for t in p.tables]
            files.replace(readme, insert_tables(readme.read_text(encoding="utf-8"), tables).encode())
    except OSError as error:
        raise RunError(f"FP5212 the report can't be written to {folder}: {error.strerror}") from error
    return path


def insert_tables(readme: str, tables: Sequence[Table]) -> str:
    """Return `readme` with the tables between its two marker lines; unchanged if it has none."""
    before, begins, rest = readme.partition(TABLE_BEGINS)
    _, ends, after = rest.partition(TABLE_ENDS)
    if not begins or not ends:
        return readme
    text = "\n\n".join(f"**{t.title}.** {t.note}\n\n{t.to_markdown()}" for t in tables if t.headings)
    return f"{before}{begins}\n\n{text}\n\n{ends}{after}"

"""The papers that the production code cites, and what is known of each: `papers.toml`, and results of studies."""

from __future__ import annotations

import re
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from statistics import mean
from typing import Any

from experiments.claims.records import STUDIES, Claim, read_claims
from fedpeft.errors import RunError
from fedpeft.study.results import Result, ResultsFile, select_latest
from fedpeft.study.statistics import POINTS

HERE = Path(__file__).parent
ROOT = HERE.parent.parent
PROTOCOLS = HERE / "protocols"

PRODUCTION = ("strategies", "clients", "fedpeft")
"""Folders of the production code."""

NUMBER = re.compile(r"(?<![\d.])(?:0[7-9]|[12]\d)(?:0[1-9]|1[0-2])\.\d{5}(?!\d)")
"""The number of a paper at arXiv: year, month and five digits."""

LEVELS = {
    "cells": "cells read",
    "code": "read in code or README",
    "quoted": "quoted elsewhere",
    "abstract": "abstract only",
    "searched": "looked for, not found",
    "none": "not looked up",
}
"""How a paper's reported setting and number are known, and the words for it."""


@dataclass(frozen=True)
class Ours:
    """A committed result that belongs to a paper.

    Attributes:
        study: folder under experiments/, followed by a slash and a preset if the results are those of a preset.
        method, baseline: labels of the study's grid.
        where: labels that both share.
    """

    study: str
    method: Mapping[str, str]
    baseline: Mapping[str, str]
    where: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Measured:
    """The committed runs with the settings of a protocol.

    Attributes:
        study: as in `Ours`.
        point: labels of the study's grid.
    """

    study: str
    point: Mapping[str, str]


@dataclass(frozen=True)
class Paper:
    """A paper.

    Attributes:
        number: at arXiv.
        name: short name of what it proposes, with authors.
        title: its title, if it was looked up.
        level: a key of `LEVELS`.
        reported: the paper's setting and number, as far as `level` says that they are known.
        read: where they were read; level "searched": where they were looked for.
        protocol: file in `protocols`; empty: there is none.
        measured: committed runs with the protocol's settings; None: it has not been run, or is no protocol.
        differs: how the protocol here differs from the paper's.
        ours: committed results beside those of claims.toml.
    """

    number: str
    name: str
    title: str = ""
    level: str = "none"
    reported: str = ""
    read: str = ""
    protocol: str = ""
    measured: Measured | None = None
    differs: str = ""
    ours: tuple[Ours, ...] = ()


def read_papers(path: Path = HERE / "papers.toml") -> dict[str, Paper]:
    """Return all papers by number.

    Raises:
        RunError: an entry has an unknown key or level, or details without a name.
    """
    content = tomllib.loads(path.read_text(encoding="utf-8"))
    details: dict[str, dict[str, Any]] = content["details"]
    if wrong := sorted(details.keys() - content["names"].keys()):
        raise RunError(f"{path} has details of {wrong[0]}, which [names] does not list")
    papers = {}
    for number, name in content["names"].items():
        entry = details.get(number, {})
        try:
            made = {"ours": tuple(Ours(**one) for one in entry.get("ours", ()))}
            runs = {"measured": Measured(**entry["measured"])} if "measured" in entry else {}
            papers[number] = Paper(number, name, **{**entry, **made, **runs})
        except TypeError as error:
            raise RunError(f"{path} has a wrong key at {number}: {error}") from None
        if papers[number].level not in LEVELS:
            raise RunError(f"{path} has the level {papers[number].level!r} at {number}; legal are {', '.join(LEVELS)}")
    return papers


@cache
def find_citations() -> Mapping[str, tuple[Path, ...]]:
    """Return the production modules that cite each paper, relative to the repository, by number."""
    found: dict[str, list[Path]] = {}
    for folder in PRODUCTION:
        for module in sorted((ROOT / folder).rglob("*.py")):
            for number in dict.fromkeys(NUMBER.findall(module.read_text(encoding="utf-8"))):
                found.setdefault(number, []).append(module.relative_to(ROOT))
    return {number: tuple(modules) for number, modules in found.items()}


def list_results(paper: Paper) -> list[Ours]:
    """Return the committed results of a paper: those of claims.toml that name it, and its own."""
    claims = [claim for claim in read_claims() if paper.number in claim.source and not claim.beside]
    return [*map(_convert_claim, claims), *paper.ours]


def _convert_claim(claim: Claim) -> Ours:
    return Ours(claim.study, claim.method, claim.baseline, claim.where)


@cache
def load_results(study: str) -> tuple[Result, ...]:
    """Return the latest finished runs of a study's folder.

    Raises:
        RunError: there are none.
    """
    path = STUDIES / study / "results.jsonl"
    if not (results := tuple(result for result in select_latest(ResultsFile(path).read()) if result.is_finished)):
        raise RunError(f"{path} holds no finished runs")
    return results


def find_runs(study: str, point: Mapping[str, str]) -> tuple[Result, ...]:
    """Return the runs of one point of a study, one per seed.

    Raises:
        RunError: no point, or several, have these labels.
    """
    found = tuple(result for result in load_results(study) if point.items() <= result.point.items())
    points = {tuple(sorted(result.point.items())) for result in found}
    if len(points) != 1 or len({result.seed for result in found}) != len(found):
        raise RunError(f"{study} has {len(points)} points with {dict(point)}; exactly one must match")
    return found


def compute_accuracy(study: str, point: Mapping[str, str]) -> tuple[float, int]:
    """Return the mean accuracy in percent of a study's point, and the number of its seeds.

    Raises:
        RunError: the study has no such runs, or they have no accuracy.
    """
    runs = find_runs(study, point)
    values = [(run.summary or {}).get("accuracy") for run in runs]
    if None in values:
        raise RunError(f"a run of {study} with {dict(point)} has no accuracy")
    return POINTS * mean(map(float, values)), len(runs)  # type: ignore[arg-type]


def format_result(ours: Ours, bold: bool = False) -> str:
    """Return a committed result as text: the means over the seeds of the method and of its baseline, in percent.

    Args:
        ours: the result.
        bold: whether the method's number is printed bold.

    Raises:
        RunError: the study has no such runs, or they have no accuracy.
    """
    method, seeds = compute_accuracy(ours.study, {**ours.where, **ours.method})
    baseline, _ = compute_accuracy(ours.study, {**ours.where, **ours.baseline})
    names = [", ".join(point.values()) for point in (ours.method, ours.baseline)]
    where = "".join(f", {value}" for value in ours.where.values())
    number = f"**{method:.1f}**" if bold else f"{method:.1f}"
    return f"{number} `{names[0]}`, {baseline:.1f} `{names[1]}` ({link_study(ours.study)}{where}, {seeds} seeds)"


def format_results(paper: Paper) -> str:
    """Return all committed results of a paper as text; bold and first: that of its protocol."""
    results, measured = list_results(paper), paper.measured
    if measured is None:
        return "; ".join(["not run"] * bool(paper.protocol) + list(map(format_result, results)))
    same = [ours for ours in results if (ours.study, {**ours.where, **ours.method}) == (measured.study, measured.point)]
    texts = [format_result(same[0], bold=True)] if same else [format_measured(measured)]
    return "; ".join([*texts, *(format_result(ours) for ours in results if ours not in same[:1])])


def format_measured(measured: Measured) -> str:
    """Return the mean accuracy of a protocol's committed runs as text."""
    accuracy, seeds = compute_accuracy(measured.study, measured.point)
    return f"**{accuracy:.1f}** ({link_study(measured.study)}, {seeds} seeds)"


def link_study(study: str) -> str:
    """Return a link from a page in docs/ to a study's README."""
    return f"[{study}](../experiments/{study.split('/')[0]}/README.md)"

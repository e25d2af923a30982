"""The claims of `claims.toml` and the committed runs that test them."""

from __future__ import annotations

import itertools
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

from experiments.claims.verdicts import Evidence
from fedpeft.errors import RunError
from fedpeft.study.result_folders import match_to_study
from fedpeft.study.results import Result, ResultsFile, select_latest
from fedpeft.study.sections import Method, Section, create_study_section
from fedpeft.study.statistics import POINTS, pair_runs
from fedpeft.study.study_file import read_study

HERE = Path(__file__).parent
STUDIES = HERE.parent

Point = Mapping[str, str]


@dataclass(frozen=True)
class Claim:
    """A claim of a paper, as one study can test it.

    Attributes:
        says: the claim in a sentence.
        source: the paper.
        study: its folder under experiments/, followed by a slash and a preset if the results are those of a preset.
        method, baseline: points of the study's grid. If `beside` is set, `baseline` is {}.
        where: the labels that both share and the table shows.
        margin: points that the method may lose; None if the claim is that the method is better.
        beside: a key of summary.json, such as `private_probe_accuracy`, with which the same run is compared.
    """

    says: str
    source: str
    study: str
    method: Point
    baseline: Point
    where: Point
    margin: float | None = None
    beside: str = ""


def read_claims(path: Path = HERE / "claims.toml") -> list[Claim]:
    """Read all claims of the file; one claim per value if `where` lists several values of an axis."""
    claims = []
    for written in tomllib.loads(path.read_text(encoding="utf-8"))["claim"]:
        shared: dict[str, Any] = written.get("where", {})
        values = [given if isinstance(given, list) else [given] for given in shared.values()]
        for chosen in itertools.product(*values):
            claims.append(
                Claim(
                    says=written["says"],
                    source=written["source"],
                    study=written["study"],
                    method=written.get("method", {}),
                    baseline=written.get("baseline", {}),
                    where=dict(zip(shared, chosen, strict=True)),
                    margin=written.get("margin"),
                    beside=written.get("beside", ""),
                )
            )
    return claims


@cache
def load_section(study: str, within: Path = STUDIES) -> Section:
    """Load the runs of a study's folder.

    Args:
        study: the folder, followed by a slash and a preset if the results are those of a preset.
        within: the folder of all studies.

    Raises:
        RunError: there is no such study, or it has no runs.
    """
    folder = within / study
    results = select_latest(ResultsFile(folder / "results.jsonl").read())
    if not results:
        raise RunError(f"{folder} holds no results")
    file = next((f for f in (folder / "study.toml", folder.parent / "study.toml") if f.is_file()), None)
    if file is None:
        raise RunError(f"{folder} holds no study.toml, nor does the folder above it")
    described = read_study(file, results[0].preset)
    return create_study_section(described, match_to_study(described, results))


def find_method(section: Section, point: Point) -> Method:
    """Return the only method of a study whose point contains these labels.

    Raises:
        RunError: none or several match.
    """
    found = [m for m in section.shown if point.items() <= m.point.items()]
    if len(found) != 1:
        raise RunError(f"{section.title} has {len(found)} methods with {dict(point)}; exactly one must match")
    return found[0]


def collect_evidence(claim: Claim) -> tuple[Evidence, float]:
    """Return a claim's paired differences, and the baseline's bytes divided by the method's, both ways.

    Raises:
        RunError: the runs share no seed, or a number is missing.
    """
    section = load_section(claim.study)
    method = find_method(section, {**claim.where, **claim.method})
    if claim.beside:
        by_seed = [_compute_margin_over(run, claim.beside) for _, run in sorted(method.runs.items())]
        return Evidence(np.array(by_seed)), 1.0
    baseline = find_method(section, {**claim.where, **claim.baseline})
    found = pair_runs(method.test_counts, baseline.test_counts)
    if found is None:
        raise RunError(f"{method.label} and {baseline.label} of {section.title} share no seed")
    thinner = (baseline.compute_mean("total_bytes") or 0.0) / (method.compute_mean("total_bytes") or 1.0)
    return Evidence(found.by_seed, found.by_row, found.rest), thinner


def _compute_margin_over(run: Result, key: str) -> float:
    summary = run.summary or {}
    if summary.get("accuracy") is None or summary.get(key) is None:
        raise RunError(f"a run of seed {run.seed} has no accuracy, or no {key}")
    return POINTS * (float(summary["accuracy"]) - float(summary[key]))

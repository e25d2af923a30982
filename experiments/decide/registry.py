"""The registered claims and tasks of claims.toml, and the committed runs that their power and hours come from."""

from __future__ import annotations

import json
import math
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from statistics import fmean
from typing import Any

import numpy as np

from experiments.claims.records import STUDIES, Point, find_method, load_section
from experiments.claims.verdicts import Evidence
from fedpeft.errors import RunError
from fedpeft.study.sections import Method
from fedpeft.study.statistics import pair_runs
from fedpeft.study.study_file import Study, read_study

HERE = Path(__file__).parent

NATS = "nats per token"

RUNS, TUNING = "final", "tuning"
"""Presets of a task's study file."""


@dataclass(frozen=True)
class Pilot:
    """A committed pair of methods whose scatter stands for a claim's.

    Attributes:
        study: its folder under experiments/.
        method, baseline: points of its grid.
        nearness: how near the pair is to the claim, in words.
    """

    study: str
    method: Point
    baseline: Point
    nearness: str


@dataclass(frozen=True)
class RegisteredClaim:
    """A claim of a paper, and how the study decides it.

    Attributes:
        number: its number on the page, from 1.
        topic: its topic.
        says: the claim in a sentence.
        paper: title of the paper.
        arxiv: id of the paper.
        study: name of the task.
        method, baseline: labels of two arms of the task's study file.
        direction: what the paper states: "better" or "no worse".
        pilot: the source of its variances.
        flag, part: the part that the claim is about, and the flag that takes it.
        means: what each verdict means for users, by verdict.
    """

    number: int
    topic: str
    says: str
    paper: str
    arxiv: str
    study: str
    method: str
    baseline: str
    direction: str
    pilot: Pilot
    flag: str
    part: str
    means: Mapping[str, str]


@dataclass(frozen=True)
class Task:
    """A task of the study.

    Attributes:
        name: folder of its study file.
        measure: "accuracy", "own accuracy" (of clients' own held-out examples) or `NATS`.
        judged_on: the examples, in words.
        margin: equivalence margin in points; None: its test set cannot resolve one.
        ladder: task of experiments/ladder with its probe and pooled adapter; empty: none.
        seconds: the location of committed runs of its baseline.
    """

    name: str
    measure: str
    judged_on: str
    margin: float | None
    ladder: str
    seconds: Mapping[str, Any]

    @property
    def study(self) -> Study:
        """The study whose runs decide the claims."""
        return self._read_study(RUNS)

    @property
    def tuning(self) -> Study:
        """The study whose runs choose the learning rates."""
        return self._read_study(TUNING)

    def _read_study(self, preset: str) -> Study:
        return read_study(HERE / self.name / "study.toml", preset)


@cache
def read_registry(path: Path = HERE / "claims.toml") -> tuple[tuple[RegisteredClaim, ...], dict[str, Task]]:
    """Return all claims in the order of the file, and the tasks by name."""
    content = tomllib.loads(path.read_text(encoding="utf-8"))
    claims = []
    for number, written in enumerate(content["claim"], 1):
        pilot = dict(written.pop("pilot"))
        pilot["nearness"] = pilot.pop("is")
        part = written.pop("part")
        claims.append(
            RegisteredClaim(number=number, pilot=Pilot(**pilot), flag=part["flag"], part=part["name"], **written)
        )
    tasks = {}
    for name, written in content["tasks"].items():
        tasks[name] = Task(name=name, **({"margin": None, "ladder": ""} | written))
    return tuple(claims), tasks


@cache
def read_ladder() -> tuple[Mapping[str, Any], ...]:
    """Return the committed lines of experiments/ladder."""
    lines = (STUDIES / "ladder" / "results.jsonl").read_text(encoding="utf-8").splitlines()
    return tuple(json.loads(line) for line in lines)


def compute_rung(task: str, rung: str, value: str = "accuracy") -> float:
    """Return the mean of a value over the runs of a rung's best label by validation accuracy.

    Raises:
        RunError: no run of the rung is committed.
    """
    labels: dict[str, list[Mapping[str, Any]]] = {}
    for line in read_ladder():
        if (line["task"], line["rung"]) == (task, rung):
            labels.setdefault(line["label"], []).append(line)
    if not labels:
        raise RunError(f"experiments/ladder has no run of {rung} on {task}")
    runs = max(labels.values(), key=lambda own: fmean(line.get("validation") or 0.0 for line in own))
    return fmean(float(line[value]) for line in runs)


def compute_evidence(pilot: Pilot, measure: str) -> Evidence:
    """Return the paired differences of a pilot in points, or in nats, positive where the method is better.

    Committed language-model runs keep correct tokens per example, but no losses. Their differences per example are
    converted with the pair's nats per point of next-token accuracy.

    Raises:
        RunError: the pair shares no seed.
    """
    section = load_section(pilot.study)
    method, baseline = find_method(section, pilot.method), find_method(section, pilot.baseline)
    paired = pair_runs(method.test_counts, baseline.test_counts)
    if paired is None:
        raise RunError(f"{method.label} and {baseline.label} of {section.title} share no seed")
    if measure != NATS:
        return Evidence(paired.by_seed, paired.by_row, paired.rest)
    by_seed = np.array([_get_loss(baseline, seed) - _get_loss(method, seed) for seed in paired.seeds])
    nats = abs(float(by_seed.mean() / paired.by_seed.mean()))
    return Evidence(by_seed, nats * paired.by_row, nats**2 * paired.rest)


def _get_loss(method: Method, seed: int) -> float:
    return float((method.runs[seed].summary or {})["loss"])


def compute_mean_seconds(study: str, point: Point) -> float:
    """Return the mean seconds of a method's committed runs."""
    method = next(m for m in load_section(study).shown if point.items() <= m.point.items())
    return fmean(float((run.summary or {})["seconds"]) for run in method.runs.values())


@cache
def read_costs(path: Path = HERE / "claims.toml") -> dict[str, float]:
    """Return the seconds of an arm over those of its task's baseline, by label."""
    costs: dict[str, float] = {}
    for written in tomllib.loads(path.read_text(encoding="utf-8"))["costs"]:
        study = written["study"]
        ratio = compute_mean_seconds(study, {"method": written["method"]})
        ratio /= compute_mean_seconds(study, {"method": written["baseline"]})
        costs |= dict.fromkeys(written["arms"], ratio)
    return costs


def compute_baseline_seconds(task: Task) -> float:
    """Return the seconds of one run of a task's baseline with one worker."""
    given = task.seconds
    if "ladder" in given:
        return float(given["share"]) * compute_rung(given["ladder"], "federated", "seconds")
    return float(given["share"]) * compute_mean_seconds(given["study"], {"method": given["method"]})


def compute_hours(task: Task, cores: int = 2) -> tuple[float, float]:
    """Return the hours of the runs that decide and of those that tune, `cores` runs at a time."""
    hours = []
    for study in (task.study, task.tuning):
        seconds = compute_baseline_seconds(task)
        runs = study.plan_runs()
        share = runs[0].config.rounds / task.study.plan_runs()[0].config.rounds
        total = math.fsum(seconds * share * read_costs().get(run.point["method"], 1.0) for run in runs)
        hours.append(total / cores / 3600)
    return hours[0], hours[1]

"""Print the verdict of each registered claim whose task is finished.

python -m experiments.decide.verdicts

A task with a missing run gives no verdict, so each hypothesis is tested once. In the one correction over the page, the
hypotheses of unfinished tasks count with p = 1.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean

import numpy as np

from experiments import exit_on_error
from experiments.claims.decisions import UNDECIDED, PValues, compute_tests, correct, decide
from experiments.claims.records import STUDIES, find_method, load_section
from experiments.claims.verdicts import Evidence
from experiments.decide.registry import NATS, RegisteredClaim, Task, read_registry
from fedpeft.errors import RunError
from fedpeft.study.results import Result, unpack
from fedpeft.study.sections import Method, Section
from fedpeft.study.statistics import LEVEL, POINTS, TestCounts, pair_runs

NOT_RUN = "not run yet"
"""Printed in place of verdicts for the claims of an unfinished task."""


@dataclass(frozen=True)
class Decision:
    """A claim with what its task's runs decide.

    Attributes:
        claim: the claim.
        task: its task.
        evidence: the paired differences; None while the task is unfinished.
        tests: p-values without the correction; 1 while the task is unfinished.
        corrected: p-values after the correction over the page.
    """

    claim: RegisteredClaim
    task: Task
    evidence: Evidence | None
    tests: PValues
    corrected: PValues

    @property
    def verdicts(self) -> tuple[str, ...]:
        """One or two verdicts, or `NOT_RUN`."""
        return (NOT_RUN,) if self.evidence is None else decide(self.evidence.difference, self.corrected)

    @property
    def is_decided(self) -> bool:
        """Whether the verdict is better, worse or equivalent."""
        return not {NOT_RUN, UNDECIDED} & set(self.verdicts)

    @property
    def interval(self) -> tuple[float, float] | None:
        """The 95 % interval of the difference, without the correction; None while the task is unfinished."""
        if self.evidence is None:
            return None
        width = self.evidence.uncertainty.compute_half_width(LEVEL, 2)
        return self.evidence.difference - width, self.evidence.difference + width


def find_missing(task: Task, section: Section | None) -> list[str]:
    """Return the runs that a task lacks, as "arm, seed"; failed runs count as missing.

    Args:
        task: the task.
        section: its results; None: there are none.
    """
    return [
        f"{value.label}, seed {seed}"
        for value in task.study.axes["method"]
        for seed in sorted(set(task.study.seeds) - set(_find_runs(section, value.label) if section else ()))
    ]


def _find_runs(section: Section, label: str) -> Mapping[int, Result]:
    found = [method.runs for method in section.shown if method.point.get("method") == label]
    return found[0] if found else {}


def make_negative_loss(run: Result) -> TestCounts | None:
    """Return a language model's negative loss per test example, in nats; None if it was not kept."""
    scored = run.test_counts
    return None if run.loss is None or scored is None else TestCounts(-unpack(run.loss), scored.count, scored.source)


SCORES: Mapping[str, Callable[[Result], TestCounts | None]] = {
    "accuracy": lambda run: run.test_counts,
    NATS: make_negative_loss,
}
"""How a run is scored per test example, by measure; higher is better."""


def compute_evidence(measure: str, method: Method, baseline: Method) -> Evidence:
    """Return the paired differences of two arms in points or nats, positive where the method is better.

    Raises:
        RunError: a run lacks the measure, or the arms share no test examples.
    """
    if measure not in SCORES:
        seeds = sorted(set(method.runs) & set(baseline.runs))
        return Evidence(
            np.array([POINTS * (get_own_accuracy(method.runs[s]) - get_own_accuracy(baseline.runs[s])) for s in seeds])
        )
    scores = [
        {seed: s for seed, run in arm.runs.items() if (s := SCORES[measure](run)) is not None}
        for arm in (method, baseline)
    ]
    paired = pair_runs(*scores)
    if paired is None:
        raise RunError(f"{method.label} and {baseline.label} share no {measure} of the same test examples")
    unit = POINTS if measure == NATS else 1.0
    return Evidence(paired.by_seed / unit, paired.by_row / unit, paired.rest / unit**2)


def get_own_accuracy(run: Result) -> float:
    """Return the accuracy on all clients' own held-out examples together, 0 to 1.

    Raises:
        RunError: the run did not measure calibration(rows=clients).
    """
    try:
        return float((run.summary or {})["trust"]["calibration"]["clients"]["before"]["accuracy"])
    except (KeyError, TypeError):
        raise RunError(f"a run of seed {run.seed} has no accuracy on clients' own examples") from None


@dataclass(frozen=True)
class ArmValues:
    """What the runs of an arm reach, next to the frozen probe.

    Attributes:
        task: its task.
        label: name of the arm.
        by_seed: the task's measure, in percent, or in nats per token, which are better if they are lower.
        probe: test accuracy of the frozen probe in percent, mean over the runs; None: it was not measured so.
    """

    task: Task
    label: str
    by_seed: tuple[float, ...]
    probe: float | None


def list_arms(sections: Mapping[str, Section]) -> list[ArmValues]:
    """Return the arms of all finished tasks.

    Args:
        sections: results by name of the task; a task may lack some or all of its runs.
    """
    return [
        _measure_arm(task, value.label, _find_runs(sections[name], value.label))
        for name, task in read_registry()[1].items()
        if not find_missing(task, sections.get(name))
        for value in task.study.axes["method"]
    ]


def _measure_arm(task: Task, label: str, runs: Mapping[int, Result]) -> ArmValues:
    own = [_get_value(task.measure, runs[seed]) for seed in task.study.seeds]
    probes = [p for run in runs.values() if (p := (run.summary or {}).get("baseline_accuracy")) is not None]
    is_comparable = task.measure == "accuracy" and bool(probes)
    return ArmValues(task, label, tuple(own), POINTS * fmean(probes) if is_comparable else None)


def _get_value(measure: str, run: Result) -> float:
    if measure not in SCORES:
        return POINTS * get_own_accuracy(run)
    scored = SCORES[measure](run)
    if scored is None:
        raise RunError(f"a run of seed {run.seed} has no {measure} of its test examples")
    mean = float(scored.correct.sum() / scored.count.sum())
    return -mean if measure == NATS else POINTS * mean


def load_results(folder: Path = STUDIES / "decide") -> dict[str, Section]:
    """Return the committed results of each task that has some, by name of the task."""
    written = [name for name in read_registry()[1] if (folder / name / "results.jsonl").exists()]
    return {name: load_section(name, folder) for name in written}


def decide_all(sections: Mapping[str, Section]) -> list[Decision]:
    """Return the decisions of all claims, corrected together.

    Args:
        sections: results by name of the task; a task may lack some or all of its runs.

    Raises:
        RunError: a run of a finished task lacks its measure.
    """
    claims, tasks = read_registry()
    finished = {name: sections[name] for name, task in tasks.items() if not find_missing(task, sections.get(name))}
    evidence = [
        _compare_arms(claim, tasks[claim.study], finished[claim.study]) if claim.study in finished else None
        for claim in claims
    ]
    tests = [_test(own, tasks[claim.study].margin) for claim, own in zip(claims, evidence, strict=True)]
    return [
        Decision(claim, tasks[claim.study], own, uncorrected, corrected)
        for claim, own, uncorrected, corrected in zip(claims, evidence, tests, correct(tests), strict=True)
    ]


def _compare_arms(claim: RegisteredClaim, task: Task, section: Section) -> Evidence:
    arms = [find_method(section, {"method": label}) for label in (claim.method, claim.baseline)]
    evidence = compute_evidence(task.measure, *arms)
    if len(evidence.by_seed) != len(task.study.seeds):
        raise RunError(
            f"claim {claim.number} has the {task.measure} of {len(evidence.by_seed)} pairs of runs, not of all "
            f"{len(task.study.seeds)} seeds; repeat the runs that lack it: "
            f"fedpeft study experiments/decide/{task.name}/study.toml"
        )
    return evidence


def _test(evidence: Evidence | None, margin: float | None) -> PValues:
    return PValues(1.0, None if margin is None else 1.0) if evidence is None else compute_tests(evidence, margin)


def main() -> int:
    """Print a line per claim: verdicts, difference and its uncorrected 95 % interval."""
    sections = load_results()
    decisions = decide_all(sections)
    for one in decisions:
        name = f"{one.claim.number:2d} {' and '.join(one.verdicts)}: {one.claim.method} against {one.claim.baseline}"
        if one.evidence is None or one.interval is None:
            runs = len(one.task.study.plan_runs())
            missing = len(find_missing(one.task, sections.get(one.task.name)))
            print(f"{name}, {one.task.name} has {runs - missing} of {runs} runs")
        else:
            low, high = one.interval
            print(f"{name}, {one.evidence.difference:+.3f} ({low:+.3f} to {high:+.3f})")
    run = sum(one.evidence is not None for one in decisions)
    print(f"{sum(one.is_decided for one in decisions)} of {run} claims with results are decided, of {len(decisions)}")
    return 0


if __name__ == "__main__":
    with exit_on_error():
        sys.exit(main())

"""Print the verdict of each registered claim, once, after the last run of the study.

python -m experiments.decide.verdicts

There is no interim look: the command refuses to compute anything while a run of a task is missing.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np

from experiments import exit_on_error
from experiments.claims.decisions import compute_tests, correct, decide
from experiments.claims.records import find_method, load_section
from experiments.claims.verdicts import Evidence
from experiments.decide.registry import NATS, RegisteredClaim, Task, read_registry
from fedpeft.errors import RunError
from fedpeft.study.results import Result, unpack
from fedpeft.study.sections import Method, Section
from fedpeft.study.statistics import LEVEL, POINTS, TestCounts, pair_runs


@dataclass(frozen=True)
class Decision:
    """A claim, its paired differences and its verdicts."""

    claim: RegisteredClaim
    evidence: Evidence
    verdicts: tuple[str, ...]


def check_complete(task: Task, section: Section) -> None:
    """Raise RunError if an arm of a task lacks a finished run."""
    missing = [
        f"{value.label}, seed {seed}"
        for value in task.study.axes["method"]
        for seed in sorted(set(task.study.seeds) - set(_find_runs(section, value.label)))
    ]
    if missing:
        raise RunError(
            f"{task.name} lacks {len(missing)} of {len(task.study.plan_runs())} runs, the first is "
            f"{missing[0]}; verdicts "
            f"are computed once, after all runs: fedpeft study experiments/decide/{task.name}/study.toml"
        )


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


def decide_all(sections: Mapping[str, Section]) -> list[Decision]:
    """Return the decisions of all claims, corrected together.

    Raises:
        RunError: a run is missing, or lacks its measure.
    """
    claims, tasks = read_registry()
    for task in tasks.values():
        check_complete(task, sections[task.name])
    evidence = []
    for claim in claims:
        arms = (find_method(sections[claim.study], {"method": label}) for label in (claim.method, claim.baseline))
        evidence.append(compute_evidence(tasks[claim.study].measure, *arms))
    tests = [compute_tests(own, tasks[claim.study].margin) for claim, own in zip(claims, evidence, strict=True)]
    judged = zip(claims, evidence, correct(tests), strict=True)
    return [Decision(claim, own, decide(own.difference, p)) for claim, own, p in judged]


def main() -> int:
    """Print a line per claim: verdicts, difference and its uncorrected 95 % interval."""
    for one in decide_all({name: load_section(f"decide/{name}") for name in read_registry()[1]}):
        width = one.evidence.uncertainty.compute_half_width(LEVEL, 2)
        print(
            f"{one.claim.number:2d} {' and '.join(one.verdicts)}: {one.claim.method} against {one.claim.baseline}, "
            f"{one.evidence.difference:+.3f} ({one.evidence.difference - width:+.3f} to "
            f"{one.evidence.difference + width:+.3f})"
        )
    return 0


if __name__ == "__main__":
    with exit_on_error():
        sys.exit(main())

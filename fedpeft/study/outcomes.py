"""The sentence at the top of a report: the test score of the best method, compared with the linear probe."""

from __future__ import annotations

from fedpeft.reporting.outcome import describe_outcome
from fedpeft.reporting.summary import TEST_ROWS
from fedpeft.study.measures import format_heading
from fedpeft.study.sections import Method, Section
from fedpeft.study.statistics import POINTS


def describe_section_outcome(section: Section) -> str:
    """Return one sentence about the best method of a section; empty if no run has a test score."""
    main = section.main_measure
    scored = [m for m in section.shown if m.compute_mean(main.key) is not None]
    scored = [m for m in scored if not m.own_rows] or scored
    if not scored:
        return ""
    best = max(scored, key=lambda m: main.sign * (m.compute_mean(main.key) or 0.0))
    sentence = _compare_with_probe(best) or _describe_score(section, best)
    if len(scored) > 1:
        sentence = f"Of {len(scored)} methods, {best.label} is best: {sentence[0].lower()}{sentence[1:]}"
    return f"Preview on a sample: {sentence[0].lower()}{sentence[1:]}" if section.is_preview else sentence


def _compare_with_probe(method: Method) -> str:
    """Return the sentence of `describe_outcome` for a method's means; empty without a probe on the same examples."""
    summaries = [run.summary or {} for run in method.runs.values()]
    probes = [s["baseline_accuracy"] for s in summaries if s.get("baseline_accuracy") is not None]
    if len(probes) < len(summaries) or method.own_rows:
        return ""
    means = {
        "accuracy": (method.compute_mean("accuracy") or 0.0) / POINTS,
        "accuracy_of": TEST_ROWS,
        "baseline_accuracy": sum(probes) / len(probes),
        "metric": summaries[0].get("metric") or "accuracy",
        "kept_round": max(s.get("kept_round", 1) for s in summaries),
        "targets": summaries[0].get("targets"),
    }
    return describe_outcome(means, TEST_ROWS)


def _describe_score(section: Section, method: Method) -> str:
    main = section.main_measure
    value = f"{method.compute_mean(main.key):,.{main.digits}f}"
    what = format_heading(main.heading, section.results).replace(" (%)", "")
    unit, whose = (
        "%" if "(%)" in main.heading else "",
        "the clients' own adapters" if method.own_rows else "the saved adapter",
    )
    return f"The {what} of {whose} is {value}{unit}; the run has no linear probe on the same examples."

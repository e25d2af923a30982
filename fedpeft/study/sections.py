"""Runs that a report shows together, grouped into methods.

A section is one study, or all single runs that were given. A method is a point of the grid: runs that differ only in
their seed. Axes that the baseline names distinguish methods. The other axes are the context, such as a partition,
within which methods are compared.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

from fedpeft.data.rows import get_test_source
from fedpeft.reporting.console import format_duration
from fedpeft.study.measures import BY_KEY
from fedpeft.study.results import FILE, Result
from fedpeft.study.statistics import TestCounts, compute_mean_and_deviation, find_pareto_front
from fedpeft.study.study_file import Study

ON_OWN_ROWS = "(own rows)"
"""Suffix of the names of methods whose clients have their own models."""


@dataclass(frozen=True)
class Method:
    """The runs of one point of the grid.

    Attributes:
        name: distinguishes it from the other methods of its context.
        context: the values that it shares with them; empty if there is only one context.
        runs: finished runs, by seed.
        failed: failed runs.
    """

    name: str
    context: str
    point: Mapping[str, str]
    runs: Mapping[int, Result]
    failed: tuple[Result, ...] = ()

    @property
    def label(self) -> str:
        """Context and name."""
        return f"{self.context}: {self.name}" if self.context else self.name

    def get_values(self, key: str) -> list[float]:
        """Return a measure of all runs that have it, in the unit of its heading."""
        measure = BY_KEY[key]
        values = (measure.value(run) for run in self.runs.values())
        return [measure.scale * v for v in values if v is not None]

    def compute_mean(self, key: str) -> float | None:
        """Return a measure's mean over the seeds; None if no run has it."""
        values = self.get_values(key)
        return compute_mean_and_deviation(values)[0] if values else None

    def compute_deviation(self, key: str) -> float:
        """Return a measure's standard deviation over the seeds; 0 for fewer than two."""
        values = self.get_values(key)
        return (compute_mean_and_deviation(values)[1] or 0.0) if values else 0.0

    @property
    def own_rows(self) -> bool:
        """Whether accuracy is measured by clients' own models on their own examples, and so not comparable."""
        return any(run.own_rows for run in self.runs.values())

    @property
    def comparison_key(self) -> tuple[object, ...]:
        """The metric and the test examples; only methods with equal keys have comparable accuracies."""
        run = next(iter(self.runs.values()))
        measure = (run.summary or {}).get("metric")
        return self.own_rows, measure, get_test_source(str(run.config.get("dataset", "")))

    @property
    def test_counts(self) -> dict[int, TestCounts]:
        """The counts per test example, by seed, without runs that clients score on their own examples."""
        kept = {seed: run for seed, run in self.runs.items() if not run.own_rows}
        return {seed: s for seed, run in kept.items() if (s := run.test_counts) is not None}


@dataclass(frozen=True)
class Section:
    """Runs that are shown together.

    Attributes:
        title: name of the study and preset.
        question: what was asked; may be empty.
        results: the latest result of each configuration.
        baseline: axis -> label; axes that it does not name are the context.
        margin: percentage points of "no worse by more than".
        targets: accuracies in percent for the cost tables; empty: chosen from the results.
    """

    title: str
    question: str
    results: Sequence[Result]
    baseline: Mapping[str, str]
    margin: float = 1.0
    targets: tuple[float, ...] = ()

    @cached_property
    def methods(self) -> list[Method]:
        """The methods in the order of the results, context by context."""
        points: dict[tuple[tuple[str, str], ...], list[Result]] = {}
        for result in self.results:
            points.setdefault(tuple(result.point.items()), []).append(result)
        varying = {
            axis
            for axis in {a for point in points for a, _ in point}
            if len({dict(point).get(axis) for point in points}) > 1
        }
        inside = [a for a in varying if a in self.baseline]
        methods = []
        for point, runs in points.items():
            labels = {a: v for a, v in point if a in varying}
            name = describe({a: v for a, v in labels.items() if a in inside}) or "all runs"
            context = describe({a: v for a, v in labels.items() if a not in inside})
            finished = {r.seed: r for r in runs if r.is_finished}
            if any(r.own_rows for r in runs):
                name = f"{name} {ON_OWN_ROWS}"
            methods.append(Method(name, context, dict(point), finished, tuple(r for r in runs if not r.is_finished)))
        order = list(dict.fromkeys(m.context for m in methods))
        return sorted(methods, key=lambda m: order.index(m.context))

    @property
    def shown(self) -> list[Method]:
        """Methods with at least one finished run."""
        return [m for m in self.methods if m.runs]

    @property
    def contexts(self) -> list[str]:
        """The contexts, in order."""
        return list(dict.fromkeys(m.context for m in self.shown))

    @property
    def names(self) -> list[str]:
        """The names of methods, in order."""
        return list(dict.fromkeys(m.name for m in self.shown))

    @property
    def failed_runs(self) -> list[Result]:
        """Failed runs."""
        return [r for r in self.results if not r.is_finished]

    @property
    def single_run(self) -> Result | None:
        """The run, if the section has only one and it has finished."""
        return self.results[0] if len(self.results) == 1 and self.results[0].is_finished else None

    @property
    def own_rows_note(self) -> str:
        """A sentence on the accuracies of clients' own models; empty if no run has them."""
        if not any(run.own_rows for run in self.results):
            return ""
        meaning = "the mean over clients, each with a model of its own on held-out rows of its own"
        if self.single_run is not None:
            return f" Accuracy and loss are {meaning}."
        return f" {ON_OWN_ROWS}: {meaning}; it is not compared with accuracies on test rows, which are another measure."

    @property
    def common(self) -> dict[str, str]:
        """The settings that all runs share, without the seed."""
        configs = [r.config for r in self.results]
        first = configs[0] if configs else {}
        return {k: str(v) for k, v in first.items() if k != "seed" and all(c.get(k) == v for c in configs)}

    @property
    def hardware(self) -> list[str]:
        """A description of each machine on which runs were executed."""
        kinds = {}
        for result in self.results:
            hardware = (result.summary or {}).get("hardware")
            if isinstance(hardware, Mapping) and hardware:
                gpus = hardware.get("gpus")
                named = map(str, gpus) if isinstance(gpus, list) else ()
                processors = ", ".join([str(hardware.get("cpu")), *dict.fromkeys(named)])
                kinds[f"{processors}, {hardware.get('workers')} worker(s), {hardware.get('system')}"] = True
        return list(kinds)

    def find_reference(self, method: Method) -> Method | None:
        """Return the baseline in the context of `method`; None if it has no finished run."""
        point = {**method.point, **{a: v for a, v in self.baseline.items() if a in method.point}}
        return next((m for m in self.shown if dict(m.point) == point), None)

    @property
    def pareto(self) -> dict[str, bool]:
        """Whether each method, by label, is on the Pareto front of its context.

        A method is on the front if no other comparable method has at most its mean bytes and at least its mean
        accuracy.
        """
        fronts: dict[str, bool] = {}
        for alike in dict.fromkeys((m.context, m.comparison_key) for m in self.shown):
            inside = [
                (m.label, cost, value)
                for m in self.shown
                if (m.context, m.comparison_key) == alike
                and (cost := m.compute_mean("total_bytes")) is not None
                and (value := m.compute_mean("accuracy")) is not None
            ]
            front = find_pareto_front([c for _, c, _ in inside], [v for _, _, v in inside])
            fronts |= {label: on for (label, _, _), on in zip(inside, front, strict=True)}
        return fronts


def describe(point: Mapping[str, str]) -> str:
    """Return the labels of a point as text, with the axis name before numbers and truth values."""
    return ", ".join(
        v if any(c.isalpha() for c in v) and v not in ("True", "False") else f"{a} {v or '(empty)'}"
        for a, v in point.items()
    )


def create_study_section(study: Study, results: Sequence[Result]) -> Section:
    """Create a section with the study's question, baseline and margin, in the order of its grid."""
    order = {tuple(run.point.items()): i for i, run in enumerate(study.plan_runs())}
    ordered = sorted(results, key=lambda r: (order.get(tuple(r.point.items()), len(order)), r.seed))
    title = f"{study.name} ({study.preset})" if study.preset else study.name
    return Section(title, study.question, ordered, study.baseline, study.margin)


def assign_points(results: Sequence[Result]) -> list[Result]:
    """Return single runs with points made of all differing settings and all files whose contents differ.

    A run with no record of a file, such as a private run, does not count as different because of that.
    """
    keys = dict.fromkeys(k for r in results for k in r.config if k not in ("seed", "workers"))
    differing = [k for k in keys if len({str(r.config.get(k)) for r in results}) > 1]
    files = dict.fromkeys(k for r in results for k in r.contents)
    several = [k for k in files if len({r.contents[k] for r in results if k in r.contents}) > 1]
    return [
        dataclasses.replace(
            r,
            point={k: str(r.config.get(k)) for k in differing} | {k: r.contents.get(k, "not meaning") for k in several},
        )
        for r in results
    ]


def get_runs_baseline(results: Sequence[Result]) -> dict[str, str]:
    """Return the baseline of single runs: the point of the first run, without contents of files.

    Runs with other data or another model form a context of their own.
    """
    return {axis: label for axis, label in results[0].point.items() if not axis.startswith(FILE)}


def format_total_time(section: Section) -> str:
    """Return the total time of the section's runs as text."""
    return format_duration(sum((r.summary or {}).get("seconds") or 0.0 for r in section.results))

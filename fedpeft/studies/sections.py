"""Runs that are shown together, grouped into methods.

A section is one study (or all the runs that were given on their own). A method is a point of its grid: the runs that
differ only in their seed. Axes that the baseline names tell methods apart; the other axes are the context in which
methods are compared with each other (one partition, say).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

from fedpeft.data.rows import get_test_source
from fedpeft.reporting.console import format_duration
from fedpeft.studies.measures import BY_KEY
from fedpeft.studies.results import FILE, Result
from fedpeft.studies.statistics import TestCounts, compute_mean_and_deviation, find_pareto_front
from fedpeft.studies.study_file import Study

ON_OWN_ROWS = "(own rows)"
"""Behind the name of a method whose clients have models of their own."""


@dataclass(frozen=True)
class Method:
    """The runs of one point of the grid.

    Attributes:
        name: what tells it from the other methods of its context.
        context: what it shares with them; empty if there is only one context.
        runs: finished ones, by seed.
        failed: the others.
    """

    name: str
    context: str
    point: Mapping[str, str]
    runs: Mapping[int, Result]
    failed: tuple[Result, ...] = ()

    @property
    def label(self) -> str:
        """Method and context."""
        return f"{self.context}: {self.name}" if self.context else self.name

    def get_values(self, key: str) -> list[float]:
        """A measure of all runs that have it, in its unit."""
        measure = BY_KEY[key]
        found = (measure.value(run) for run in self.runs.values())
        return [measure.scale * v for v in found if v is not None]

    def compute_mean(self, key: str) -> float | None:
        """Its mean over the seeds."""
        values = self.get_values(key)
        return compute_mean_and_deviation(values)[0] if values else None

    def compute_deviation(self, key: str) -> float:
        """Its standard deviation over the seeds; 0 for a single one."""
        values = self.get_values(key)
        return (compute_mean_and_deviation(values)[1] or 0.0) if values else 0.0

    @property
    def own_rows(self) -> bool:
        """Whether its accuracy is that of clients' own models on their own rows, and no other method's measure."""
        return any(run.own_rows for run in self.runs.values())

    @property
    def comparison_key(self) -> tuple[object, ...]:
        """By what its accuracy is, and on which rows; methods that differ in it have no accuracies to compare."""
        run = next(iter(self.runs.values()))
        measure = (run.summary or {}).get("metric")
        return self.own_rows, measure, get_test_source(str(run.config.get("dataset", "")))

    @property
    def scored(self) -> dict[int, TestCounts]:
        """Test rows by seed; none of runs whose accuracy is each client's own model's on its own rows."""
        kept = {seed: run for seed, run in self.runs.items() if not run.own_rows}
        return {seed: s for seed, run in kept.items() if (s := run.scored) is not None}


@dataclass(frozen=True)
class Section:
    """Runs that are shown together.

    Attributes:
        title: name of the study and preset.
        question: what was asked; may be empty.
        results: latest ones.
        baseline: axis -> label; what it leaves out is context.
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
        """In the order of the results, context by context."""
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
            own = {a: v for a, v in point if a in varying}
            name = describe({a: v for a, v in own.items() if a in inside}) or "all runs"
            context = describe({a: v for a, v in own.items() if a not in inside})
            finished = {r.seed: r for r in runs if r.finished}
            if any(r.own_rows for r in runs):
                name = f"{name} {ON_OWN_ROWS}"
            methods.append(Method(name, context, dict(point), finished, tuple(r for r in runs if not r.finished)))
        order = list(dict.fromkeys(m.context for m in methods))
        return sorted(methods, key=lambda m: order.index(m.context))

    @property
    def shown(self) -> list[Method]:
        """Methods with at least one finished run."""
        return [m for m in self.methods if m.runs]

    @property
    def contexts(self) -> list[str]:
        """In order."""
        return list(dict.fromkeys(m.context for m in self.shown))

    @property
    def names(self) -> list[str]:
        """Of methods, in order."""
        return list(dict.fromkeys(m.name for m in self.shown))

    @property
    def failed(self) -> list[Result]:
        """Failed runs."""
        return [r for r in self.results if not r.finished]

    @property
    def single_run(self) -> Result | None:
        """The run, where there is only one, and it has finished."""
        return self.results[0] if len(self.results) == 1 and self.results[0].finished else None

    @property
    def own_rows_note(self) -> str:
        """What the accuracies of clients' own models are, in words; empty: there are none."""
        if not any(run.own_rows for run in self.results):
            return ""
        told = "the mean over clients, each with a model of its own on held-out rows of its own"
        if self.single_run is not None:
            return f" Accuracy and loss are {told}."
        return f" {ON_OWN_ROWS}: {told}; it is not compared with accuracies on test rows, which are another measure."

    @property
    def common(self) -> dict[str, str]:
        """Settings that all runs share, the seed left out."""
        configs = [r.config for r in self.results]
        first = configs[0] if configs else {}
        return {k: str(v) for k, v in first.items() if k != "seed" and all(c.get(k) == v for c in configs)}

    @property
    def hardware(self) -> list[str]:
        """Each machine that runs were made on, in words."""
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
        """What `method` is compared with: the baseline in the same context."""
        point = {**method.point, **{a: v for a, v in self.baseline.items() if a in method.point}}
        return next((m for m in self.shown if dict(m.point) == point), None)

    @property
    def pareto(self) -> dict[str, bool]:
        """By label: no other method of the context, judged on the same rows, has fewer bytes and at least the accuracy,
        in the mean."""
        found: dict[str, bool] = {}
        for alike in dict.fromkeys((m.context, m.comparison_key) for m in self.shown):
            inside = [
                (m.label, cost, value)
                for m in self.shown
                if (m.context, m.comparison_key) == alike
                and (cost := m.compute_mean("total_bytes")) is not None
                and (value := m.compute_mean("accuracy")) is not None
            ]
            front = find_pareto_front([c for _, c, _ in inside], [v for _, _, v in inside])
            found |= {label: on for (label, _, _), on in zip(inside, front, strict=True)}
        return found


def describe(point: Mapping[str, str]) -> str:
    """Labels of a point; a number or a truth value says whose it is."""
    return ", ".join(
        v if any(c.isalpha() for c in v) and v not in ("True", "False") else f"{a} {v or '(empty)'}"
        for a, v in point.items()
    )


def create_study_section(study: Study, results: Sequence[Result]) -> Section:
    """With the study's own question, baseline and margin; results in the order of its grid."""
    order = {tuple(run.point.items()): i for i, run in enumerate(study.plan_runs())}
    ordered = sorted(results, key=lambda r: (order.get(tuple(r.point.items()), len(order)), r.seed))
    title = f"{study.name} ({study.preset})" if study.preset else study.name
    return Section(title, study.question, ordered, study.baseline, study.margin)


def assign_points(results: Sequence[Result]) -> list[Result]:
    """Runs on their own: their point is every setting in which they differ, and every file that had several contents.
    A run that tells none of a file's (under privacy, without that part) is no other run for it."""
    keys = dict.fromkeys(k for r in results for k in r.config if k not in ("seed", "workers"))
    differing = [k for k in keys if len({str(r.config.get(k)) for r in results}) > 1]
    files = dict.fromkeys(k for r in results for k in r.contents)
    several = [k for k in files if len({r.contents[k] for r in results if k in r.contents}) > 1]
    return [
        dataclasses.replace(
            r,
            point={k: str(r.config.get(k)) for k in differing} | {k: r.contents.get(k, "not told") for k in several},
        )
        for r in results
    ]


def get_runs_baseline(results: Sequence[Result]) -> dict[str, str]:
    """What runs on their own are compared with: the first; those of other rows or another model are a context."""
    return {axis: label for axis, label in results[0].point.items() if not axis.startswith(FILE)}


def format_total_time(section: Section) -> str:
    """All the time that the section's runs took."""
    return format_duration(sum((r.summary or {}).get("seconds") or 0.0 for r in section.results))

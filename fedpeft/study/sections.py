"""Runs that a report shows together, grouped into methods.

A section contains the runs of a study, or the single runs that were given, on the test examples of one dataset with
one metric. A method is a point of the grid: runs that differ only in their seed. Axes that the baseline names
distinguish methods. The other axes are the context, such as a partition, within which methods are compared. Methods of
single runs are named after the runs' folders.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

from fedpeft.errors import ConfigError
from fedpeft.parts.spec import parse_spec
from fedpeft.reporting.console import format_duration
from fedpeft.study.measures import BY_KEY, Measure
from fedpeft.study.results import FILE, Result
from fedpeft.study.run_names import name_groups
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

    @classmethod
    def create(cls, name: str, context: str, runs: Sequence[Result]) -> Method:
        """Create the method of all runs of one point; a suffix of its name marks clients' own models."""
        finished = {run.seed: run for run in runs if run.is_finished}
        failed = tuple(run for run in runs if not run.is_finished)
        suffix = f" {ON_OWN_ROWS}" if any(run.own_rows for run in runs) else ""
        return cls(name + suffix, context, dict(runs[0].point), finished, failed)

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
        return compute_mean_and_deviation(self.get_values(key))[0]

    def compute_deviation(self, key: str) -> float:
        """Return a measure's standard deviation over the seeds; 0 for fewer than two."""
        return compute_mean_and_deviation(self.get_values(key))[1] or 0.0

    @property
    def own_rows(self) -> bool:
        """Whether accuracy is measured by clients' own models on their own examples, and so not comparable."""
        return any(run.own_rows for run in self.runs.values())

    @property
    def comparison_key(self) -> tuple[object, ...]:
        """The metric and the test examples; only methods with equal keys have comparable accuracies."""
        run = next(iter(self.runs.values()))
        return self.own_rows, run.metric, run.test_source

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
        names_of_runs: point -> name of its runs; points without one are named by their labels.
    """

    title: str
    question: str
    results: Sequence[Result]
    baseline: Mapping[str, str]
    margin: float = 1.0
    targets: tuple[float, ...] = ()
    names_of_runs: Mapping[tuple[tuple[str, str], ...], str] = field(default_factory=dict)

    @cached_property
    def methods(self) -> list[Method]:
        """The methods in the order of the results, context by context."""
        points: dict[tuple[tuple[str, str], ...], list[Result]] = {}
        for result in self.results:
            points.setdefault(tuple(result.point.items()), []).append(result)
        axes = dict.fromkeys(axis for point in points for axis, _ in point)
        varying = find_differing([{axis: dict(point).get(axis) for axis in axes} for point in points])
        by_context: dict[str, list[Method]] = {}
        for point, runs in points.items():
            labels = {axis: value for axis, value in point if axis in varying}
            name = describe({axis: value for axis, value in labels.items() if axis in self.baseline}) or "all runs"
            context = describe({axis: value for axis, value in labels.items() if axis not in self.baseline})
            method = Method.create(self.names_of_runs.get(point, name), context, runs)
            by_context.setdefault(context, []).append(method)
        return list(itertools.chain.from_iterable(by_context.values()))

    @property
    def main_measure(self) -> Measure:
        """The measure of the main table and figure: perplexity if the runs have it, otherwise the accuracy."""
        return BY_KEY["perplexity" if any(r.metric == "perplexity" for r in self.results) else "accuracy"]

    @property
    def is_preview(self) -> bool:
        """Whether every finished run used only a sample of the examples."""
        finished = [r for r in self.results if r.is_finished]
        return bool(finished) and all(r.is_preview for r in finished)

    @property
    def baseline_name(self) -> str:
        """The name of the baseline: its run's name, or its labels."""
        names = [m.name for m in self.shown if self.names_of_runs and self.find_reference(m) is m]
        return names[0] if names else describe(self.baseline) or "the first method"

    @property
    def early_ends(self) -> list[str]:
        """A sentence for each run that ended before its last round."""
        several = len(self.results) > 1
        return [
            f"{method.label}, seed {seed}, {end}" if several else f"The run {end}"
            for method in self.shown
            for seed, run in method.runs.items()
            if (end := run.early_end)
        ]

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
        accuracy (or at most its mean perplexity).
        """
        fronts: dict[str, bool] = {}
        main = self.main_measure
        for alike in dict.fromkeys((m.context, m.comparison_key) for m in self.shown):
            inside = [
                (m.label, cost, value)
                for m in self.shown
                if (m.context, m.comparison_key) == alike
                and (cost := m.compute_mean("total_bytes")) is not None
                and (value := m.compute_mean(main.key)) is not None
            ]
            front = find_pareto_front([c for _, c, _ in inside], [main.sign * v for _, _, v in inside])
            fronts |= {label: on for (label, _, _), on in zip(inside, front, strict=True)}
        return fronts


def find_differing(tables: Sequence[Mapping[str, object]]) -> list[str]:
    """Return the keys with several values among the tables, in order of appearance; a table may lack keys."""
    values: dict[str, set[object]] = {}
    for key, value in itertools.chain.from_iterable(table.items() for table in tables):
        values.setdefault(key, set()).add(value)
    return [key for key, several in values.items() if len(several) > 1]


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


def split_by_data(section: Section) -> list[Section]:
    """Return a section for each dataset and metric, since runs on different test examples can't be compared."""
    groups = group_by_data(section.results)
    if len(groups) == 1:
        return [section]
    titles = [f"{section.title}: {name}" for name in name_data(groups)]
    return [
        dataclasses.replace(section, title=title, results=results)
        for title, results in zip(titles, groups, strict=True)
    ]


def group_by_data(results: Sequence[Result]) -> list[list[Result]]:
    """Group results by test examples and metric, in order of appearance.

    A run with no record of its files, such as a private run, counts as one on the first known content. Failed runs have
    no metric: they join the first group on their dataset, or the first of all.
    """
    groups: dict[tuple[str, str | None, tuple[str, ...]], list[Result]] = {}
    for result in sorted(results, key=lambda r: (not r.is_finished, not r.data_digests)):
        alike = [key for key in groups if key[0] == result.test_source]
        if result.is_finished:
            digests = result.data_digests
            alike = [key for key in alike if key[1] == result.metric and (key[2] == digests or not digests)]
        else:
            alike = alike or list(groups)
        key = alike[0] if alike else (result.test_source, result.metric, result.data_digests)
        groups.setdefault(key, []).append(result)
    place = {id(result): i for i, result in enumerate(results)}
    ordered = [sorted(group, key=lambda r: place[id(r)]) for group in groups.values()]
    return sorted(ordered, key=lambda group: place[id(group[0])])


def name_data(groups: Sequence[Sequence[Result]]) -> list[str]:
    """Return a name for the dataset of each group; the metric, or a number, distinguishes equal names."""
    names = [format_data_name(str(group[0].config.get("dataset", ""))) for group in groups]
    metrics = [(group[0].metric or "failed").replace("_", " ") for group in groups]
    for texts in (metrics, [f"content {i}" for i in range(1, len(names) + 1)]):
        pairs = list(zip(names, texts, strict=True))
        differing = {name for name, text in pairs if any(n == name and t != text for n, t in pairs)}
        names = [f"{name}, {text}" if name in differing else name for name, text in pairs]
    return names


def format_data_name(dataset: str) -> str:
    """Return a short name of a dataset: a file's name for a file, and a sample's source marked as a sample."""
    try:
        spec = parse_spec(dataset)
    except ConfigError:
        return dataset
    if spec.name == "sample":
        return f"{format_data_name(str(spec.settings.get('of', '')))} (sample)"
    path = spec.settings.get("path") or spec.argument
    return Path(str(path)).name if path else dataset


def describe_run(run: Result) -> str:
    """Return the data, rule and method of a run as text."""
    config = {**run.config, **run.settled}
    parts = (format_data_name(str(config.get("dataset") or "")), config.get("strategy"), config.get("peft"))
    return ", ".join(str(part) for part in parts if part)


def assign_points(results: Sequence[Result]) -> list[Result]:
    """Return single runs with points made of all differing settings and all files whose contents differ.

    A run with no record of a file, such as a private run, does not count as different because of that.
    """
    keys = dict.fromkeys(k for r in results for k in r.config if k not in ("seed", "workers"))
    settings = [{k: str(r.config.get(k)) for k in keys} for r in results]
    contents = [r.contents for r in results]
    differing, changed = find_differing(settings), find_differing(contents)
    return [
        dataclasses.replace(r, point={k: s[k] for k in differing} | {k: c.get(k, "not meaning") for k in changed})
        for r, s, c in zip(results, settings, contents, strict=True)
    ]


def create_runs_section(results: Sequence[Result], title: str = "") -> Section:
    """Create a section of single runs on the same test examples, with methods named after the runs' folders."""
    pointed = assign_points(results)
    groups: dict[tuple[tuple[str, str], ...], list[str]] = {}
    for result in pointed:
        if result.folder:
            groups.setdefault(tuple(result.point.items()), []).append(result.folder)
    names = dict(zip(groups, name_groups(list(groups.values())), strict=True))
    title = ": ".join(part for part in (title, *(names.values() if len(results) == 1 else ())) if part)
    return Section(title or "runs", "", pointed, get_runs_baseline(pointed), names_of_runs=names)


def get_runs_baseline(results: Sequence[Result]) -> dict[str, str]:
    """Return the baseline of single runs: the point of the first run, without contents of files.

    Runs with other data or another model form a context of their own.
    """
    return {axis: label for axis, label in results[0].point.items() if not axis.startswith(FILE)}


def format_total_time(section: Section) -> str:
    """Return the total time of the section's runs as text."""
    return format_duration(sum((r.summary or {}).get("seconds") or 0.0 for r in section.results))

"""The numbers of a report: runs grouped into methods, and the tables made from them.

A section is one study (or all the runs that were given on their own). A method is a point of its grid: the runs that
differ only in their seed. Axes that the baseline names tell methods apart; the other axes are the context in which
methods are compared with each other (one partition, say).
"""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from fedpeft.run.console import duration
from fedpeft.studies.results import QUANTILES, Result
from fedpeft.studies.statistics import POINTS, Comparison, Scored, compare, mean_and_deviation, pareto_front

MEGABYTE = 1e6

ABSENT = "–"


@dataclass(frozen=True)
class Measure:
    """A number of a run, as tables show it: times `scale`, with `digits` decimals."""

    key: str
    heading: str
    value: Callable[[Result], float | None]
    scale: float = 1.0
    digits: int = 1


def from_summary(key: str) -> Callable[[Result], float | None]:
    """A number of summary.json."""
    return lambda result: (result.summary or {}).get(key)


def total_bytes(result: Result) -> float | None:
    """Up and down, preparation included."""
    summary = result.summary or {}
    up, down = summary.get("uplink_bytes"), summary.get("downlink_bytes")
    return None if up is None or down is None else float(up + down)


def round_seconds(result: Result) -> float | None:
    """Time of all rounds, over resumes: the whole of them and their evaluation."""
    seconds = [r["seconds"] for r in result.rounds if r.get("seconds") is not None]
    return sum(seconds) if seconds else None


def worst_tenth(result: Result) -> float | None:
    """Mean accuracy of the tenth of the clients that is served worst."""
    return result.client_accuracy["worst_tenth"] if result.client_accuracy else None


def calibration_error(result: Result) -> float | None:
    """Expected calibration error."""
    return result.calibration["error"] if result.calibration else None


def forgotten(measure: str) -> Callable[[Result], float | None]:
    """How much worse the second task has become, where it was scored by `measure`."""

    def found(result: Result) -> float | None:
        scored = (result.summary or {}).get("forgetting")
        return float(scored["lost"]) if scored and scored["measure"] == measure else None

    return found


def aggregation_error(result: Result) -> float | None:
    """Mean over the rounds of norm(dW* - dW) / norm(dW*)."""
    errors = [r["aggregation_error"] for r in result.rounds if r.get("aggregation_error") is not None]
    return sum(errors) / len(errors) if errors else None


def server_seconds(result: Result) -> float | None:
    """Mean over the rounds of the server's own time: decoding, aggregating, stepping."""
    seconds = [r["aggregation_seconds"] for r in result.rounds if r.get("aggregation_seconds")]
    return sum(seconds) / len(seconds) if seconds else None


MEASURES = (
    Measure("accuracy", "test accuracy (%)", from_summary("accuracy"), POINTS, 2),
    Measure("perplexity", "test perplexity", from_summary("perplexity"), 1.0, 2),
    Measure("loss", "test loss (nats)", from_summary("loss"), 1.0, 3),
    Measure("baseline_accuracy", "frozen linear probe (%)", from_summary("baseline_accuracy"), POINTS, 2),
    Measure("centralised_accuracy", "pooled data (%)", from_summary("centralised_accuracy"), POINTS, 2),
    Measure("worst_accuracy", "worst client, own rows (%)", from_summary("worst_accuracy"), POINTS, 2),
    Measure("worst_tenth", "worst tenth of clients (%)", worst_tenth, POINTS, 2),
    Measure("calibration_error", "calibration error (%)", calibration_error, POINTS, 2),
    Measure("calibration_error_scaled", "after scaling (%)", from_summary("calibration_error_scaled"), POINTS, 2),
    Measure("forgotten", "forgotten, probe (%)", forgotten("probe accuracy"), POINTS, 2),
    Measure("forgotten_nats", "forgotten (nats a token)", forgotten("nats per token"), 1.0, 3),
    Measure("epsilon", "epsilon", from_summary("epsilon"), 1.0, 2),
    Measure("audit_epsilon", "audit: epsilon at least", from_summary("audit_epsilon"), 1.0, 2),
    Measure("membership_auc", "membership attack (AUC)", from_summary("membership_auc"), 1.0, 3),
    Measure("uplink_bytes", "uplink (MB)", from_summary("uplink_bytes"), 1 / MEGABYTE, 2),
    Measure("downlink_bytes", "downlink (MB)", from_summary("downlink_bytes"), 1 / MEGABYTE, 2),
    Measure("total_bytes", "up + down (MB)", total_bytes, 1 / MEGABYTE, 2),
    Measure("bytes_per_parameter", "bytes per parameter, up", from_summary("uplink_bytes_per_parameter"), 1.0, 2),
    Measure("local_steps", "local steps", lambda r: r.local_steps, 1.0, 0),
    Measure("aggregation_error", "aggregation error (%)", aggregation_error, POINTS, 2),
    Measure("server_seconds", "server time per round (ms)", server_seconds, 1e3, 0),
    Measure("round_seconds", "time of the rounds (s)", round_seconds, 1.0, 1),
    Measure("peak_memory_bytes", "peak memory (MB)", from_summary("peak_memory_bytes"), 1 / MEGABYTE, 0),
)
BY_KEY = {measure.key: measure for measure in MEASURES}


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

    def values(self, key: str) -> list[float]:
        """A measure of all runs that have it, in its unit."""
        measure = BY_KEY[key]
        found = (measure.value(run) for run in self.runs.values())
        return [measure.scale * v for v in found if v is not None]

    def mean(self, key: str) -> float | None:
        """Its mean over the seeds."""
        values = self.values(key)
        return mean_and_deviation(values)[0] if values else None

    def deviation(self, key: str) -> float:
        """Its standard deviation over the seeds; 0 for a single one."""
        values = self.values(key)
        return (mean_and_deviation(values)[1] or 0.0) if values else 0.0

    @property
    def scored(self) -> dict[int, Scored]:
        """Test rows by seed; none of runs whose accuracy is each client's own model's on its own rows."""
        kept = {seed: run for seed, run in self.runs.items() if not (run.summary or {}).get("shared_accuracy")}
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
    notes: tuple[str, ...] = field(default=())

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
            hardware = (result.summary or {}).get("hardware") or {}
            if hardware:
                processors = ", ".join([str(hardware.get("cpu")), *dict.fromkeys(hardware.get("gpus") or ())])
                kinds[f"{processors}, {hardware.get('workers')} worker(s), {hardware.get('system')}"] = True
        return list(kinds)

    def reference(self, method: Method) -> Method | None:
        """What `method` is compared with: the baseline in the same context."""
        point = {**method.point, **{a: v for a, v in self.baseline.items() if a in method.point}}
        return next((m for m in self.shown if dict(m.point) == point), None)

    @property
    def pareto(self) -> dict[str, bool]:
        """By label: no other method of the context has fewer bytes and at least the accuracy, in the mean."""
        found: dict[str, bool] = {}
        for context in self.contexts:
            inside = [
                (m.label, cost, value)
                for m in self.shown
                if m.context == context
                and (cost := m.mean("total_bytes")) is not None
                and (value := m.mean("accuracy")) is not None
            ]
            front = pareto_front([c for _, c, _ in inside], [v for _, _, v in inside])
            found |= {label: on for (label, _, _), on in zip(inside, front, strict=True)}
        return found


def describe(point: Mapping[str, str]) -> str:
    """Labels of a point; a number or a truth value says whose it is."""
    return ", ".join(
        v if any(c.isalpha() for c in v) and v not in ("True", "False") else f"{a} {v}" for a, v in point.items()
    )


def with_points_by_difference(results: Sequence[Result]) -> list[Result]:
    """Runs on their own: their point is every setting in which they differ."""
    import dataclasses

    keys = dict.fromkeys(k for r in results for k in r.config if k not in ("seed", "workers"))
    differing = [k for k in keys if len({str(r.config.get(k)) for r in results}) > 1]
    return [dataclasses.replace(r, point={k: str(r.config.get(k)) for k in differing}) for r in results]


# -------------------------------------------------------------------------------------------------------------- tables


@dataclass(frozen=True)
class Table:
    """What is shown (texts), and the same data as numbers.

    Attributes:
        name: of the CSV file.
        title: above the table.
        note: how to read it.
        headings: of the columns shown; the first is text, the others are numbers or short words.
        shown: rows of texts.
        data: rows of the CSV, by column.
    """

    name: str
    title: str
    note: str
    headings: tuple[str, ...]
    shown: tuple[tuple[str, ...], ...]
    data: tuple[Mapping[str, Any], ...]

    def markdown(self) -> str:
        """As a Markdown table."""
        lines = ["| " + " | ".join(self.headings) + " |", "|---|" + "---:|" * (len(self.headings) - 1)]
        lines += ["| " + " | ".join(c.replace("|", "\\|") for c in row) + " |" for row in self.shown]
        return "\n".join(lines)

    def csv(self) -> str:
        """As CSV."""
        out = io.StringIO()
        columns = list(dict.fromkeys(key for row in self.data for key in row))
        writer = csv.DictWriter(out, columns, lineterminator="\n")
        writer.writeheader()
        writer.writerows(self.data)
        return out.getvalue()


def with_deviation(values: Sequence[float], digits: int) -> str:
    """mean ± standard deviation; the mean alone for one value."""
    if not values:
        return ABSENT
    mean, deviation = mean_and_deviation(values)
    text = f"{mean:,.{digits}f}"
    return text if deviation is None else f"{text} ± {deviation:,.{digits}f}"


QUALITY = (
    "accuracy",
    "perplexity",
    "loss",
    "baseline_accuracy",
    "centralised_accuracy",
    "worst_accuracy",
    "worst_tenth",
    "calibration_error",
    "calibration_error_scaled",
    "forgotten",
    "forgotten_nats",
    "epsilon",
    "total_bytes",
)
"""Measures of the first table; the others are costs, in the second."""


def methods_table(section: Section) -> Table:
    """How good each method is, and whether it is on the Pareto front."""
    pareto = section.pareto
    return _measures_table(
        section,
        ("methods", "Methods"),
        "Mean ± standard deviation over seeds. Test accuracy is of the saved adapter, in fp32. Pareto: no other method "
        "here has fewer bytes (up + down) and at least its mean accuracy.",
        [m for m in MEASURES if m.key in QUALITY],
        {"Pareto": {m.label: "yes" if pareto.get(m.label) else "" for m in section.methods}},
    )


def resources_table(section: Section) -> Table:
    """What each method costs."""
    return _measures_table(
        section,
        ("resources", "Bytes, work, time, memory"),
        "Mean ± standard deviation over seeds. Bytes are the lengths of the real payloads, before round 1 as well. "
        "Time is that of the rounds with their evaluation, on the machine above; simultaneous runs slow each other.",
        [m for m in MEASURES if m.key not in QUALITY],
        {},
    )


def _measures_table(
    section: Section,
    name_and_title: tuple[str, str],
    note: str,
    candidates: Sequence[Measure],
    words: Mapping[str, Mapping[str, str]],
) -> Table:
    """Mean and deviation of the measures that any run has; `words`: further columns, by heading and method."""
    measures = [m for m in candidates if any(method.values(m.key) for method in section.shown)]
    shown, data = [], []
    for method in section.methods:
        seeds = f"{len(method.runs)}" + (f" ({len(method.failed)} failed)" if method.failed else "")
        cells = [with_deviation(method.values(m.key), m.digits) for m in measures]
        extra = {heading: by_method[method.label] for heading, by_method in words.items()}
        shown.append((method.label, seeds, *cells, *extra.values()))
        row: dict[str, Any] = {"method": method.label, "seeds": len(method.runs), "failed": len(method.failed)}
        for m in measures:
            values = method.values(m.key)
            mean, deviation = mean_and_deviation(values) if values else (None, None)
            row |= {f"{m.heading} mean": mean, f"{m.heading} sd": deviation}
        data.append(row | extra)
    headings = ("method", "seeds", *(m.heading for m in measures), *words)
    return Table(*name_and_title, note, headings, tuple(shown), tuple(data))


def same_work(method: Method, baseline: Method) -> str:
    """Local steps relative to the baseline, over the seeds that both have."""
    seeds = method.runs.keys() & baseline.runs.keys()
    mine = sum(method.runs[s].trained_rows or 0 for s in seeds)
    theirs = sum(baseline.runs[s].trained_rows or 0 for s in seeds)
    if not mine or not theirs:
        return ABSENT
    return "equal" if mine == theirs else f"{mine / theirs:.2f} x"


def comparison_table(section: Section) -> Table | None:
    """Each method against the baseline, paired by test row and seed; None without a pair."""
    shown, data = [], []
    for method in section.shown:
        reference = section.reference(method)
        if reference is None or reference is method:
            continue
        found = compare(method.scored, reference.scored)
        if found is None:
            continue
        work = same_work(method, reference)
        shown.append(
            (
                method.label,
                reference.name,
                str(len(found.seeds)),
                f"{found.difference:+.2f}",
                interval(found.difference, found.seed_half_width),
                interval(found.difference, found.row_half_width),
                f"{found.gained:.0f} / {found.lost:.0f}",
                work,
                found.verdict,
                no_worse(found, section.margin),
            )
        )
        data.append(_comparison_row(method, reference, found, work, section.margin))
    if not shown:
        return None
    return Table(
        "comparisons",
        f"Compared with the baseline ({describe(section.baseline) or 'the first method'})",
        "Percentage points of test accuracy, method minus baseline, paired by test row and seed. The first interval "
        "(Student's t, 95 %) is over seeds, on these test rows; the second over test rows, with these seeds. A sign is "
        "claimed only with at least 5 seeds and where both intervals agree on it. No worse by more than the margin: "
        "the one-sided 95 % bound, the worse of both. What the data can't decide is not resolved. The intervals are "
        "not corrected for the number of comparisons. Work: steps x batch size, relative to the baseline.",
        (
            "method",
            "baseline",
            "seeds",
            "difference (points)",
            "95 % over seeds",
            "95 % over test rows",
            "rows gained / lost",
            "work",
            "accuracy is",
            f"no worse by {section.margin:g}",
        ),
        tuple(shown),
        tuple(data),
    )


def _comparison_row(m: Method, reference: Method, found: Comparison, work: str, margin: float) -> dict[str, Any]:
    return {
        "method": m.label,
        "baseline": reference.label,
        "seeds": len(found.seeds),
        "difference_points": found.difference,
        "seed_half_width": finite(found.seed_half_width),
        "row_half_width": finite(found.row_half_width),
        "lower_bound_95": finite(found.lower_bound),
        "upper_bound_95": finite(found.upper_bound),
        "rows_gained": found.gained,
        "rows_lost": found.lost,
        "work": work,
        "verdict": found.verdict,
        "margin_points": margin,
        "no_worse": found.no_worse(margin),
    }


def finite(value: float) -> float | None:
    """None for infinity."""
    return value if math.isfinite(value) else None


def interval(centre: float, width: float) -> str:
    """[low, high]."""
    return f"[{centre - width:+.2f}, {centre + width:+.2f}]" if math.isfinite(width) else "one seed"


def no_worse(found: Comparison, margin: float) -> str:
    """The answer with its bound."""
    answer = found.no_worse(margin)
    return f"{answer} (bound {found.lower_bound:+.2f})" if found.enough_seeds else answer


# ----------------------------------------------------------------------------------------------------- accuracy at cost


@dataclass(frozen=True)
class CurvePoint:
    """A run after a round: validation accuracy (%), and what was spent until then."""

    round: int
    accuracy: float
    loss: float
    megabytes: float
    seconds: float


def curve(run: Result) -> list[CurvePoint]:
    """The evaluated rounds of a run."""
    points: list[CurvePoint] = []
    spent = seconds = 0.0
    for line in run.rounds:
        spent += (line["uplink_bytes"] + line["downlink_bytes"]) / MEGABYTE
        seconds += math.nan if line["seconds"] is None else line["seconds"]
        if line.get("accuracy") is not None:
            points.append(CurvePoint(line["round"], POINTS * line["accuracy"], line["loss"], spent, seconds))
    return points


def chosen_targets(section: Section) -> tuple[float, ...]:
    """Accuracies worth asking for: what the baseline reaches in the end, in half points, and 2 and 5 points less."""
    if section.targets:
        return section.targets
    first = next((m for m in section.shown if section.reference(m) is m), None) or next(iter(section.shown), None)
    ends = [points[-1].accuracy for run in (first.runs.values() if first else ()) if (points := curve(run))]
    if not ends:
        return ()
    end = math.floor(2 * sum(ends) / len(ends)) / 2
    return tuple(t for t in (end - 5, end - 2, end) if t > 0)


def cost_table(section: Section) -> Table | None:
    """Rounds, bytes and seconds until a validation accuracy is first reached."""
    shown, data = [], []
    for target in chosen_targets(section):
        for method in section.shown:
            curves = [curve(run) for run in method.runs.values()]
            reached = [next(p for p in points if p.accuracy >= target) for points in curves if _reaches(points, target)]
            spent = {
                "rounds": [float(p.round) for p in reached],
                "MB": [p.megabytes for p in reached],
                "seconds": [p.seconds for p in reached if math.isfinite(p.seconds)],
            }
            cells = [
                with_deviation(v, d) if v else "not told" if reached else "not reached"
                for v, d in zip(spent.values(), (1, 2, 1), strict=True)
            ]
            shown.append((method.label, f"{target:g}", f"{len(reached)} of {len(curves)}", *cells))
            row: dict[str, Any] = {"method": method.label, "target_percent": target, "seeds": len(curves)}
            row["reached"] = len(reached)
            for name, values in spent.items():
                row[f"{name}_mean"], row[f"{name}_sd"] = mean_and_deviation(values) if values else (None, None)
            data.append(row)
    if not shown:
        return None
    return Table(
        "cost",
        "Cost of an accuracy",
        "Until the validation accuracy of the global model first reaches the target: rounds, bytes up and down with "
        "the preparation (round 0 is the model after it), time of the rounds. Mean ± standard deviation over the seeds "
        "that reach it; where not all do, the mean is of the lucky ones.",
        ("method", "target (%)", "seeds that reach it", "rounds", "bytes (MB)", "time (s)"),
        tuple(shown),
        tuple(data),
    )


def _reaches(points: Iterable[CurvePoint], target: float) -> bool:
    return any(p.accuracy >= target for p in points)


# ----------------------------------------------------------------------------------------------------- the other tables


def clients_table(section: Section) -> Table | None:
    """How accuracy spreads over clients; None where it isn't known."""
    shown, data = [], []
    positions = [QUANTILES.index(q) for q in (0.0, 0.1, 0.5, 0.9, 1.0)]
    for method in section.shown:
        spreads = [run.client_accuracy for run in method.runs.values() if run.client_accuracy]
        if not spreads:
            continue
        columns = [[POINTS * s["quantiles"][i] for s in spreads] for i in positions]
        worst = method.values("worst_tenth")
        shown.append((method.label, with_deviation(worst, 2), *(with_deviation(c, 2) for c in columns)))
        names = [f"quantile_{QUANTILES[i]:g}" for i in positions]
        row: dict[str, Any] = {"method": method.label, "worst_tenth": sum(worst) / len(worst)}
        data.append(row | {n: sum(c) / len(c) for n, c in zip(names, columns, strict=True)})
    if not shown:
        return None
    return Table(
        "clients",
        "Clients",
        "Accuracy (%) of the final global model on test rows with each client's own mix of classes (accuracies per "
        "class, weighted by the client's shares); then over clients. Mean ± standard deviation over seeds.",
        ("method", "worst tenth, mean", "worst client", "10 % quantile", "median", "90 % quantile", "best client"),
        tuple(shown),
        tuple(data),
    )


def runs_table(section: Section) -> Table:
    """Every run, for the CSV."""
    data = []
    for method in section.methods:
        for run in (*method.runs.values(), *method.failed):
            row = {"method": method.label, "seed": run.seed, "status": run.status, "reason": run.reason or ""}
            numbers = {m.heading: None if (v := m.value(run)) is None else m.scale * v for m in MEASURES}
            data.append({**row, **numbers, **{f"setting {k}": v for k, v in run.config.items()}})
    return Table("runs", "Runs", "", (), (), tuple(data))


def rounds_table(section: Section) -> Table:
    """Every evaluated round, for the CSV."""
    data = [
        {"method": m.label, "seed": seed, **vars(point)}
        for m in section.shown
        for seed, run in m.runs.items()
        for point in curve(run)
    ]
    return Table("rounds", "Rounds", "", (), (), tuple(data))


def calibration_table(section: Section) -> Table:
    """Every bin of the reliability diagrams, for the CSV."""
    data = []
    for method in section.shown:
        for seed, run in method.runs.items():
            found = run.calibration or {"rows": (), "confidence": (), "accuracy": ()}
            bins = zip(found["rows"], found["confidence"], found["accuracy"], strict=True)
            for number, (rows, confidence, accuracy) in enumerate(bins):
                row = {"method": method.label, "seed": seed, "bin": number, "rows": rows}
                data.append({**row, "confidence": confidence, "accuracy": accuracy})
    return Table("calibration", "Calibration", "", (), (), tuple(data))


def tables(section: Section) -> list[Table]:
    """All tables that have something to say; those without headings are for the CSV alone."""
    found = (
        methods_table(section),
        comparison_table(section),
        resources_table(section),
        cost_table(section),
        clients_table(section),
    )
    rest = (runs_table(section), rounds_table(section), calibration_table(section))
    return [t for t in (*found, *rest) if t is not None and t.data]


def time_in_words(section: Section) -> str:
    """All the time that the section's runs took."""
    return duration(sum((r.summary or {}).get("seconds") or 0.0 for r in section.results))

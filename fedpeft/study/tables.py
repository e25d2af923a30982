"""The tables of a report: the shown text, and the same data as numbers for CSV."""

from __future__ import annotations

import csv
import io
import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from fedpeft.study.measures import BY_KEY, MEASURES, TABLES, build_curve, find_first_at, format_heading
from fedpeft.study.results import QUANTILES, Result
from fedpeft.study.sections import Method, Section
from fedpeft.study.statistics import POINTS, Comparison, compare, compute_mean_and_deviation
from fedpeft.wiring.measurements import trust_lines
from fedpeft.wiring.section_lines import section_lines

ABSENT = "–"


@dataclass(frozen=True)
class Table:
    """A table: the shown text, and the same data as numbers.

    Attributes:
        name: name of the CSV file.
        title: heading above the table.
        note: how to read it.
        headings: headings of the shown columns; the first is text, the others are numbers or short words.
        shown: rows of text.
        data: rows of the CSV, by column.
    """

    name: str
    title: str
    note: str
    headings: tuple[str, ...]
    shown: tuple[tuple[str, ...], ...]
    data: tuple[Mapping[str, Any], ...]

    def select_single_run(self, note: str) -> Table:
        """Return the table with `note`, without the columns that distinguish methods and seeds."""
        return replace(self.drop_columns("method", "seeds", "seeds that reach it"), note=note)

    def drop_columns(self, *headings: str) -> Table:
        """Return the table without these shown columns; the CSV keeps them."""
        kept = [i for i, heading in enumerate(self.headings) if heading not in headings]
        shown = tuple(tuple(row[i] for i in kept) for row in self.shown)
        return replace(self, headings=tuple(self.headings[i] for i in kept), shown=shown)

    def prefix_title(self, section: str) -> Table:
        """Return the table with the title of its section before its own."""
        return replace(self, title=f"{section}: {self.title}")

    def to_markdown(self) -> str:
        """Return the shown text as a Markdown table."""
        lines = ["| " + " | ".join(self.headings) + " |", "|---|" + "---:|" * (len(self.headings) - 1)]
        lines += ["| " + " | ".join(c.replace("|", "\\|") for c in row) + " |" for row in self.shown]
        return "\n".join(lines)

    def to_csv(self) -> str:
        """Return the data as CSV."""
        out = io.StringIO()
        columns = list(dict.fromkeys(key for row in self.data for key in row))
        writer = csv.DictWriter(out, columns, lineterminator="\n")
        writer.writeheader()
        writer.writerows(self.data)
        return out.getvalue()


def format_with_deviation(values: Sequence[float], digits: int) -> str:
    """Return "mean ± standard deviation" as text; the mean alone for one value."""
    mean, deviation = compute_mean_and_deviation(values)
    if mean is None:
        return ABSENT
    text = f"{mean:,.{digits}f}"
    return text if deviation is None else f"{text} ± {deviation:,.{digits}f}"


NOTES = {
    "accuracy": "Test accuracy is of the saved adapter, in fp32; baselines are measured on the same test examples.",
    "perplexity": "Test perplexity is of the saved adapter, in fp32; lower is better.",
    "resources": (
        "Bytes are the lengths of the real payloads, before round 1 as well. Time is that of the rounds with their "
        "evaluation, on the machine above; simultaneous runs slow each other."
    ),
}
"""Notes below the tables of measures, by name."""

PARETO_NOTE = "Pareto: no other method on this dataset has fewer bytes (up + down) and at least as good a mean."


def build_measures_table(section: Section, name: str) -> Table | None:
    """Build a table of `TABLES`: mean and deviation of its measures, per method; None if no run has any.

    The table of the main measure also has the bytes, and the place on the Pareto front.
    """
    title, keys = TABLES[name]
    measures = [BY_KEY[key] for key in keys if any(method.get_values(key) for method in section.shown)]
    if not measures:
        return None
    is_main, pareto = section.main_measure in measures, section.pareto
    notes = ["Mean ± standard deviation over seeds.", NOTES.get(name, "")]
    if is_main:
        measures.append(BY_KEY["total_bytes"])
        notes.append(PARETO_NOTE + section.own_rows_note)
    shown, data = [], []
    for method in section.methods:
        seeds = f"{len(method.runs)}" + (f" ({len(method.failed)} failed)" if method.failed else "")
        cells = [format_with_deviation(method.get_values(m.key), m.digits) for m in measures]
        on_front = {"Pareto": "yes" if pareto.get(method.label) else ""} if is_main else {}
        shown.append((method.label, seeds, *cells, *on_front.values()))
        row: dict[str, Any] = {"method": method.label, "seeds": len(method.runs), "failed": len(method.failed)}
        for m in measures:
            mean, deviation = compute_mean_and_deviation(method.get_values(m.key))
            row |= {f"{m.heading} mean": mean, f"{m.heading} sd": deviation}
        data.append(row | on_front)
    headings = ("method", "seeds", *(m.heading for m in measures), *(["Pareto"] if is_main else ()))
    return Table(name, title, " ".join(filter(None, notes)), headings, tuple(shown), tuple(data))


def build_settings_table(section: Section) -> Table | None:
    """Build the table of the settings in which single runs differ; None if they are named by these settings."""
    axes = list(dict.fromkeys(axis for method in section.methods for axis in method.point))
    if not axes or not section.names_of_runs:
        return None
    rows = [
        {"method": m.label, **{axis: m.point.get(axis, ABSENT) or "(empty)" for axis in axes}} for m in section.methods
    ]
    shown = tuple(tuple(row.values()) for row in rows)
    note = "The settings of each run that the others do not share; runs that differ in their seed are one method."
    return Table("settings", "Settings that differ", note, ("method", *axes), shown, tuple(rows))


def build_result_table(section: Section) -> Table:
    """Build the table of all measures of a single run."""
    run, shown = section.results[0], []
    for measure in MEASURES:
        value = measure.value(run)
        if value is not None:
            shown.append(
                (format_heading(measure.heading, [run]), format_with_deviation([measure.scale * value], measure.digits))
            )
    note = "Test accuracy is of the saved adapter, in fp32; bytes are the lengths of the real payloads."
    note += section.own_rows_note
    return Table("result", "Result", note, ("measure", "value"), tuple(shown), ({"seed": run.seed, **dict(shown)},))


def build_trust_table(run: Result) -> Table | None:
    """Build the table of a run's trust measurements; None if it has none."""
    lines = trust_lines(run.summary or {})
    if not lines:
        return None
    note = "Asked for by --measure. docs/trust.md explains the lines of built-in measurements."
    return Table("trust", "Trust", note, ("what", "found"), tuple(lines.items()), ({"seed": run.seed, **lines},))


def hooks_table(section: Section) -> Table | None:
    """Return the sections of the runs' hooks with one row per number; None if no run has a hook."""
    rows = [
        (method.label, str(seed), what, value)
        for method in section.methods
        for seed, run in method.runs.items()
        for what, value in section_lines((run.summary or {}).get("hooks")).items()
    ]
    if not rows:
        return None
    columns, note = ("method", "seed", "what", "value"), "Hooks add sections to a run: docs/own-parts.md, A hook."
    data = tuple(dict(zip(columns, row, strict=True)) for row in rows)
    return Table("hooks", "Hooks", note, columns, tuple(rows), data)


def compare_work(method: Method, baseline: Method) -> str:
    """Return the local steps relative to the baseline as text, over the shared seeds."""
    seeds = method.runs.keys() & baseline.runs.keys()
    mine = sum(method.runs[s].trained_rows or 0 for s in seeds)
    theirs = sum(baseline.runs[s].trained_rows or 0 for s in seeds)
    if not mine or not theirs:
        return ABSENT
    return "equal" if mine == theirs else f"{mine / theirs:.2f} x"


def build_comparison_table(section: Section) -> Table | None:
    """Build the comparison of each method with the baseline, paired by test example and seed.

    Returns None if no method can be paired.
    """
    shown, data = [], []
    for method in section.shown:
        reference = section.find_reference(method)
        if reference is None or reference is method:
            continue
        comparison = compare(method.test_counts, reference.test_counts)
        if comparison is None:
            continue
        work = compare_work(method, reference)
        shown.append(
            (
                method.label,
                reference.name,
                str(len(comparison.seeds)),
                f"{comparison.difference:+.2f}",
                format_interval(comparison.difference, comparison.seed_half_width),
                format_interval(comparison.difference, comparison.row_half_width),
                format_interval(comparison.difference, comparison.half_width),
                f"{comparison.gained:.0f} / {comparison.lost:.0f}",
                work,
                comparison.verdict,
                format_no_worse(comparison, section.margin),
            )
        )
        data.append(_build_comparison_row(method, reference, comparison, work, section.margin))
    if not shown:
        return None
    note = (
        "Percentage points of test accuracy, method minus baseline, paired by test row and seed. The first interval "
        "(Student's t, 95 %) is over seeds, on these test rows; the second over test rows, with these seeds; the third "
        "over both, for other seeds on other rows, and no narrower than these. A sign is claimed only with at least 5 "
        "seeds and where the third leaves out zero. No worse by more than the margin: the one-sided 95 % bound, over "
        "both. What the data can't decide is not resolved. The intervals are not corrected for the number of "
        f"comparisons. Work: steps x batch size, relative to the baseline.{section.own_rows_note}"
    )
    headings = (
        "method",
        "baseline",
        "seeds",
        "difference (points)",
        "95 % over seeds (points)",
        "95 % over test rows (points)",
        "95 % over both (points)",
        "rows gained / lost",
        "work",
        "accuracy is",
        f"no worse by more than {section.margin:g} {'point' if section.margin == 1 else 'points'}",
    )
    table = Table(
        "comparisons",
        f"Compared with the baseline ({section.baseline_name})",
        note,
        headings,
        tuple(shown),
        tuple(data),
    )
    return table if len({row[1] for row in shown}) > 1 else table.drop_columns("baseline")


def _build_comparison_row(
    m: Method, reference: Method, comparison: Comparison, work: str, margin: float
) -> dict[str, Any]:
    return {
        "method": m.label,
        "baseline": reference.label,
        "seeds": len(comparison.seeds),
        "difference_points": comparison.difference,
        "seed_half_width": replace_infinity(comparison.seed_half_width),
        "row_half_width": replace_infinity(comparison.row_half_width),
        "half_width": replace_infinity(comparison.half_width),
        "lower_bound_95": replace_infinity(comparison.lower_bound),
        "upper_bound_95": replace_infinity(comparison.upper_bound),
        "rows_gained": comparison.gained,
        "rows_lost": comparison.lost,
        "work": work,
        "verdict": comparison.verdict,
        "margin_points": margin,
        "no_worse": comparison.judge_no_worse(margin),
    }


def replace_infinity(value: float) -> float | None:
    """Return None for infinity and NaN, and any other number unchanged."""
    return value if math.isfinite(value) else None


def format_interval(center: float, width: float) -> str:
    """Return an interval as "[low, high]"; "one seed" if it is infinite."""
    return f"[{center - width:+.2f}, {center + width:+.2f}]" if math.isfinite(width) else "one seed"


def format_no_worse(comparison: Comparison, margin: float) -> str:
    """Return the answer to "no worse by more than the margin" with its bound."""
    answer = comparison.judge_no_worse(margin)
    return f"{answer} (bound {comparison.lower_bound:+.2f})" if comparison.has_enough_seeds else answer


# ----------------------------------------------------------------------------------------------------- accuracy at cost


def choose_targets(section: Section) -> tuple[float, ...]:
    """Return target accuracies in percent: the baseline's final one in half points, and 2 and 5 points less."""
    if section.targets:
        return section.targets
    first = next((m for m in section.shown if section.find_reference(m) is m), None) or next(iter(section.shown), None)
    ends = [points[-1].accuracy for run in (first.runs.values() if first else ()) if (points := build_curve(run))]
    if not ends:
        return ()
    end = math.floor(2 * sum(ends) / len(ends)) / 2
    return tuple(t for t in (end - 5, end - 2, end) if t > 0)


def build_cost_table(section: Section) -> Table | None:
    """Build the table of rounds, bytes and seconds until a target validation accuracy is first reached."""
    shown, data = [], []
    for target, method in itertools.product(choose_targets(section), section.shown):
        seeds, curves = len(method.runs), map(build_curve, method.runs.values())
        reached = [point for curve in curves if (point := find_first_at(curve, target)) is not None]
        spent = {
            "rounds": [float(p.round) for p in reached],
            "MB": [p.megabytes for p in reached],
            "seconds": [p.seconds for p in reached if math.isfinite(p.seconds)],
        }
        missing = "not told" if reached else "not reached"
        cells = [format_with_deviation(v, d) if v else missing for v, d in zip(spent.values(), (1, 2, 1), strict=True)]
        if set(spent["rounds"]) == {0.0}:
            cells[0] = "0 (before round 1)"
        shown.append((method.label, f"{target:g}", f"{len(reached)} of {seeds}", *cells))
        row: dict[str, Any] = {"method": method.label, "target_percent": target, "seeds": seeds}
        row["reached"] = len(reached)
        for name, values in spent.items():
            row[f"{name}_mean"], row[f"{name}_sd"] = compute_mean_and_deviation(values)
        data.append(row)
    if not shown:
        return None
    return Table(
        "cost",
        "Cost of an accuracy",
        "Until the validation accuracy of the global model first reaches the target: rounds, bytes up and down with "
        "the preparation (round 0 is the model after it), time of the rounds. Mean ± standard deviation over the seeds "
        "that reach it; where not all do, the mean is of those that do.",
        ("method", "target (%)", "seeds that reach it", "rounds", "bytes (MB)", "time (s)"),
        tuple(shown),
        tuple(data),
    )


# ----------------------------------------------------------------------------------------------------- the other tables


def build_clients_table(section: Section) -> Table | None:
    """Build the table of how accuracy spreads over clients; None if that is unknown."""
    shown, data = [], []
    positions = [QUANTILES.index(q) for q in (0.0, 0.1, 0.5, 0.9, 1.0)]
    for method in section.shown:
        spreads = [run.client_accuracy for run in method.runs.values() if run.client_accuracy]
        if not spreads:
            continue
        columns = [[POINTS * s["quantiles"][i] for s in spreads] for i in positions]
        worst = method.get_values("worst_tenth")
        shown.append((method.label, format_with_deviation(worst, 2), *(format_with_deviation(c, 2) for c in columns)))
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


def build_runs_table(section: Section) -> Table:
    """Build the CSV table of every run."""
    data = []
    for method in section.methods:
        for run in (*method.runs.values(), *method.failed):
            row = {"method": method.label, "seed": run.seed, "status": run.status, "reason": run.reason or ""}
            numbers = {m.heading: None if (v := m.value(run)) is None else m.scale * v for m in MEASURES}
            data.append({**row, **numbers, **{f"setting {k}": v for k, v in run.config.items()}})
    return Table("runs", "Runs", "", (), (), tuple(data))


def build_rounds_table(section: Section) -> Table:
    """Build the CSV table of every evaluated round; a single run shows it on the page too."""
    points = [
        (m.label, seed, point) for m in section.shown for seed, run in m.runs.items() for point in build_curve(run)
    ]
    data = tuple({"method": label, "seed": seed, **vars(point)} for label, seed, point in points)
    if section.single_run is None:
        return Table("rounds", "Rounds", "", (), (), data)
    note = "The global model on the validation rows; bytes up and down and time of the rounds, until then."
    headings = ("round", "validation accuracy (%)", "validation loss (nats)", "bytes (MB)", "time (s)")
    shown = tuple(
        (
            str(p.round),
            f"{p.accuracy:.2f}",
            f"{p.loss:.3f}",
            f"{p.megabytes:,.2f}",
            f"{p.seconds:,.1f}" if math.isfinite(p.seconds) else ABSENT,
        )
        for _, _, p in points
    )
    return Table("rounds", "Rounds", note, headings, shown, data)


def build_calibration_table(section: Section) -> Table:
    """Build the CSV table of every bin of the reliability diagrams."""
    data = []
    for method in section.shown:
        for seed, run in method.runs.items():
            calibration = run.calibration or {"rows": (), "confidence": (), "accuracy": ()}
            bins = zip(calibration["rows"], calibration["confidence"], calibration["accuracy"], strict=True)
            for number, (rows, confidence, accuracy) in enumerate(bins):
                row = {"method": method.label, "seed": seed, "bin": number, "rows": rows}
                data.append({**row, "confidence": confidence, "accuracy": accuracy})
    return Table("calibration", "Calibration", "", (), (), tuple(data))


def build_tables(section: Section) -> list[Table]:
    """Return all tables that have content; those without headings are for CSV alone."""
    cost, clients = build_cost_table(section), build_clients_table(section)
    first_tables: tuple[Table | None, ...]
    if section.single_run is not None:
        first_tables = (
            build_result_table(section),
            build_trust_table(section.single_run),
            cost
            and cost.select_single_run("Until the validation accuracy of the global model first reaches the target."),
            clients
            and clients.select_single_run("Accuracy (%) of the final global model on each client's mix of classes."),
        )
    else:
        main, *measured = _order_tables(section)
        first_tables = (
            build_measures_table(section, main),
            build_comparison_table(section),
            build_settings_table(section),
            *(build_measures_table(section, name) for name in measured),
            cost,
            clients,
        )
    rest = (
        hooks_table(section),
        build_runs_table(section),
        build_rounds_table(section),
        build_calibration_table(section),
    )
    return [_rename_measures(section, t) for t in (*first_tables, *rest) if t is not None and t.data]


def _order_tables(section: Section) -> list[str]:
    """Return the names of the tables of measures, the table of the main measure first."""
    return sorted(TABLES, key=lambda name: section.main_measure.key not in TABLES[name][1])


def _rename_measures(section: Section, table: Table) -> Table:
    """Replace "accuracy" in a table's texts by the metric of its runs."""
    title, note, *headings = (
        format_heading(text, section.results) for text in (table.title, table.note, *table.headings)
    )
    return replace(table, title=title, note=note, headings=tuple(headings))

"""The registered claims as records, and the texts and the figure that are made from them.

`python -m experiments.claims --write` writes all of them. Every number comes from the records, which claims.json
contains.
"""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from statistics import fmean, stdev
from typing import Any

from experiments.claims.decisions import BETTER, EQUIVALENT, UNDECIDED, WORSE, PValues
from experiments.decide.registry import NATS, compute_hours, compute_rung, read_registry
from experiments.decide.verdicts import NOT_RUN, ArmValues, Decision
from fedpeft.study.statistics import POINTS

Record = Mapping[str, Any]

COLORS = {BETTER: "#1b7837", WORSE: "#c0392b", EQUIVALENT: "#2166ac"}
"""Colors of verdicts in the figure; others are gray."""

GRAY, BAND = "#666666", "#e3eaf2"

BELOW_MARGIN = "The difference is real but smaller than the margin."
"""Precedes the meaning of *equivalent* if the claim is also better or worse."""


def make_record(decision: Decision) -> dict[str, Any]:
    """Return what claims.json contains of a claim; numbers are rounded, and None before its task is finished."""
    claim, task, evidence = decision.claim, decision.task, decision.evidence
    status = UNDECIDED if evidence is not None else NOT_RUN
    return {
        "number": claim.number,
        "topic": claim.topic,
        "claim": claim.says,
        "paper": claim.paper,
        "arxiv": claim.arxiv,
        "paper_says": claim.direction,
        "task": task.name,
        "method": claim.method,
        "baseline": claim.baseline,
        "flag": claim.flag,
        "part": claim.part,
        "status": "decided" if decision.is_decided else status,
        "verdicts": list(decision.verdicts) if evidence is not None else [],
        "means": _choose_meaning(decision) if evidence is not None else "",
        "difference": None if evidence is None else round(evidence.difference, 6),
        "interval": None if decision.interval is None else [round(end, 6) for end in decision.interval],
        "unit": NATS if task.measure == NATS else "points",
        "margin": task.margin,
        "p": _round_tests(decision.tests),
        "corrected_p": _round_tests(decision.corrected),
        "seeds": list(task.study.seeds),
    }


def _choose_meaning(decision: Decision) -> str:
    """Return the registered sentence for a claim's verdict."""
    words = decision.verdicts
    meaning = decision.claim.means[words[-1]]
    return f"{BELOW_MARGIN} {meaning}" if len(words) > 1 else meaning


def _round_tests(tests: PValues) -> dict[str, float | None]:
    """Return p-values with three digits."""
    values = {"no_difference": tests.no_difference, "beyond_margin": tests.beyond_margin}
    return {name: None if value is None else float(f"{value:.3g}") for name, value in values.items()}


def format_verdict(record: Record) -> str:
    """Return a claim's verdicts in words."""
    return " and ".join(record["verdicts"]) or str(record["status"])


def format_difference(record: Record) -> str:
    """Return the difference with its interval, such as "+1.20 (+0.85 to +1.55)"."""
    digits = 3 if record["unit"] == NATS else 2
    shown, low, high = (f"{value:+.{digits}f}" for value in (record["difference"], *record["interval"]))
    return f"{shown} ({low} to {high})"


def find_results(records: Sequence[Record]) -> list[Record]:
    """Return the claims whose task is finished, those that are decided first."""
    return sorted((r for r in records if r["verdicts"]), key=lambda r: (r["status"] != "decided", r["number"]))


def make_arm_record(arm: ArmValues) -> dict[str, Any]:
    """Return what claims.json contains of an arm; numbers are rounded."""
    task = arm.task
    is_accuracy = task.measure == "accuracy" and bool(task.ladder)
    return {
        "task": task.name,
        "arm": arm.label,
        "unit": NATS if task.measure == NATS else "%",
        "measure": task.measure,
        "mean": round(fmean(arm.by_seed), 6),
        "deviation": round(stdev(arm.by_seed), 6),
        "seeds": len(arm.by_seed),
        "frozen_probe": None if arm.probe is None else round(arm.probe, 6),
        "pooled_adapter": round(POINTS * compute_rung(task.ladder, "pooled adapter"), 6) if is_accuracy else None,
    }


def format_section(records: Sequence[Record], arms: Sequence[Record]) -> str:
    """Return the page's part about the registered study.

    Args:
        records: all claims.
        arms: the arms of the finished tasks.
    """
    shown = find_results(records)
    decided = sum(record["status"] == "decided" for record in records)
    text = (
        f"Claims of the registered study: {len(records)}. Decided: {decided}. Undecided: {len(shown) - decided}. "
        f"Not run yet: {len(records) - len(shown)}.\n"
    )
    if shown:
        rows = "\n".join(_format_row(record) for record in shown)
        text += (
            "\n| verdict | what it means for users | claim | compared | difference (95 %) | margin | p |\n"
            f"|---|---|---|---|---:|---:|---:|\n{rows}\n\n"
            "![Difference of each claim with its interval, zero and the margin](claims.svg)\n\n"
            "A line is the interval of a difference; right of zero, the method is better. The shaded band is the "
            f"margin.\n\n{_format_arms(arms)}"
        )
    waiting = [record for record in records if not record["verdicts"]]
    if waiting:
        text += f"\n## Not run yet\n\n{_format_waiting(waiting)}"
    return text


def _format_row(record: Record) -> str:
    p = record["corrected_p"]
    numbers = [f"{value:.2g}" for value in (p["no_difference"], p["beyond_margin"]) if value is not None]
    margin = "-" if record["margin"] is None else f"{record['margin']:g}"
    cells = (
        f"**{format_verdict(record)}**",
        record["means"],
        f"{record['number']}. {record['claim']} ([{record['arxiv']}](https://arxiv.org/abs/{record['arxiv']}))",
        f"`{record['method']}` against `{record['baseline']}`, `{record['task']}`, {len(record['seeds'])} seeds",
        f"{format_difference(record)} {record['unit']}",
        margin,
        "; ".join(numbers),
    )
    return "| " + " | ".join(cells) + " |"


def _format_arms(arms: Sequence[Record]) -> str:
    """Return the table of arms, next to the frozen probe and the pooled adapter."""
    rows = "\n".join(
        "| " + " | ".join((f"`{arm['task']}`", f"`{arm['arm']}`", arm["measure"], *_format_values(arm))) + " |"
        for arm in arms
    )
    return (
        "## What each arm reaches\n\n"
        "Means ± standard deviation over seeds. The pooled adapter has all examples in one place and no attack "
        "([the ladder](../experiments/ladder/README.md)).\n\n"
        f"| task | arm | measure | value | frozen probe | pooled adapter |\n|---|---|---|---:|---:|---:|\n{rows}\n"
    )


def _format_values(arm: Record) -> list[str]:
    digits = 3 if arm["unit"] == NATS else 1
    beside = [arm["frozen_probe"], arm["pooled_adapter"]]
    shown = [f"{arm['mean']:.{digits}f} ± {arm['deviation']:.{digits}f}"]
    return shown + ["-" if value is None else f"{value:.{digits}f}" for value in beside]


def _format_waiting(waiting: Sequence[Record]) -> str:
    """Return the table of claims without results, with the hours of their tasks."""
    tasks = read_registry()[1]
    hours = {name: sum(compute_hours(tasks[name])) for name in dict.fromkeys(record["task"] for record in waiting)}
    rows = "\n".join(
        f"| {record['number']}. {record['claim']} | `{record['task']}` | {hours[record['task']]:.1f} |"
        for record in waiting
    )
    return (
        "The hours are those of the whole task on two cores, with tuning "
        "(`python -m experiments.decide --dry-run`).\n\n"
        f"| claim | task | hours of the task |\n|---|---|---:|\n{rows}\n"
    )


def format_choices(records: Sequence[Record]) -> str:
    """Return the verdicts for docs/choosing.md, a row per verdict."""
    arms: dict[str, list[str]] = {}
    for record in find_results(records):
        for word in record["verdicts"]:
            arms.setdefault(word, []).append(f"`{record['method']}`")
    if not arms:
        return "No claim has results yet.\n"
    words = [word for word in (BETTER, WORSE, EQUIVALENT, UNDECIDED) if word in arms]
    rows = "\n".join(f"| {word} | {', '.join(arms[word])} |" for word in words)
    return f"| against its baseline | settings |\n|---|---|\n{rows}\n"


def make_notes(records: Sequence[Record]) -> list[dict[str, str]]:
    """Return what `fedpeft describe` prints: flag, part and text of each claim with results."""
    return [
        {
            "flag": record["flag"],
            "part": record["part"],
            "text": f"{format_verdict(record)}: {record['method']} against {record['baseline']} on {record['task']}, "
            f"{format_difference(record)} {record['unit']}. {record['means']}",
        }
        for record in records
        if record["verdicts"]
    ]


def draw(records: Sequence[Record]) -> str:
    """Return an SVG figure of the claims with results: a panel per task, a line per claim."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    tasks: dict[str, list[Record]] = {}
    for record in records:
        if record["verdicts"]:
            tasks.setdefault(record["task"], []).append(record)
    sizes = [len(own) for own in tasks.values()]
    out = io.StringIO()
    with pyplot.rc_context({"svg.hashsalt": "fedpeft", "font.size": 9}):
        figure, axes = pyplot.subplots(
            len(tasks),
            1,
            squeeze=False,
            figsize=(8.5, 0.45 * sum(sizes) + 0.85 * len(sizes)),
            height_ratios=[size + 0.4 for size in sizes],
            layout="constrained",
        )
        for axis, own in zip(axes[:, 0], tasks.values(), strict=True):
            _draw_task(axis, own)
        figure.savefig(out, format="svg", metadata={"Date": None})
        pyplot.close(figure)
    return "\n".join(line.rstrip() for line in out.getvalue().splitlines()) + "\n"


def _draw_task(axis: Any, records: Sequence[Record]) -> None:
    """Draw the claims of one task; the first is at the top."""
    margin = records[0]["margin"]
    if margin is not None:
        axis.axvspan(-margin, margin, color=BAND)
    axis.axvline(0, color="black", linewidth=0.8)
    for place, record in enumerate(records):
        color = COLORS.get(record["verdicts"][0], GRAY)
        axis.plot(record["interval"], [place, place], color=color, linewidth=2)
        axis.plot(record["difference"], place, "o", color=color)
        note = f"{format_verdict(record)}\n{format_difference(record)}"
        axis.text(1.01, place, note, color=color, transform=axis.get_yaxis_transform(), va="center")
    names = [f"{record['number']}. {record['method']}\nagainst {record['baseline']}" for record in records]
    axis.set_yticks(range(len(records)), names)
    axis.tick_params(axis="y", length=0)
    axis.set_ylim(len(records) - 0.5, -0.5)
    tested = "no margin" if margin is None else f"margin {margin:g}"
    axis.set_xlabel(f"{records[0]['task']}: difference in {records[0]['unit']} ({tested})")
    for side in ("top", "right", "left"):
        axis.spines[side].set_visible(False)

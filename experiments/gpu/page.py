"""The page of the GPU measurements: a table for each section, two plots, and a list of missing steps."""

from __future__ import annotations

import html
import io
from collections.abc import Iterable, Sequence
from typing import Any

from experiments.gpu.kit import Step
from experiments.gpu.record import Outcome, Record
from experiments.gpu.steps import CURVE, TOGETHER
from fedpeft.study.drawing import COLORS, MARKERS, draw_panels

STYLE = (
    "body{font:15px/1.5 sans-serif;max-width:72em;margin:2em auto;padding:0 1em;color:#1b1b1b}"
    "table{border-collapse:collapse;margin:.6em 0}td,th{padding:.2em .7em;border-bottom:1px solid #ddd;"
    "text-align:right}td:first-child,th:first-child{text-align:left}svg{max-width:100%;height:auto}"
)

READINGS = {
    "Parity with the CPU": "Two steps of plain SGD from the same weights; the difference of the change in all trained "
    "tensors, relative to the change on the CPU.",
    "Against a plain loop": "Seconds of a plain peft loop (torch's own choice of kernels, one client after another) "
    "over ours, on the same rows, steps and precision, interleaved: above 1 ours is faster.",
    CURVE: "Plain loop over batched, in bf16, in passes of up to 16,384 tokens: the fewer tokens a client's step has, "
    "the more a pass of many clients saves.",
    TOGETHER: "Batch 4, rows of 128 tokens, bf16; memory is the peak that torch has allocated.",
    "Real clients": "Server and clients are processes, with mutual TLS on loopback.",
}


def render_page(record: Record, steps: Sequence[Step], command: str) -> str:
    """Return all results so far as HTML that needs no other file."""
    title = f"fedpeft on {record.machine['device']}"
    parts = [f"<h1>{html.escape(title)}</h1>", f"<p>{html.escape(_describe_machine(record))}</p>"]
    for section in dict.fromkeys(step.section for step in steps):
        found = [record.outcomes[s.name] for s in steps if s.section == section and s.name in record.outcomes]
        rows = [outcome.row for outcome in found if outcome.status == "done"]
        if not rows:
            continue
        parts += [
            f"<h2>{html.escape(section)}</h2>",
            f"<p>{html.escape(READINGS.get(section, ''))}</p>",
            render_table(rows),
        ]
        if section in (CURVE, TOGETHER):
            parts.append(plot(section, rows))
    parts += _list_missing(record, steps)
    parts.append(f"<p>Command: <code>{html.escape(command)}</code></p>")
    head = f"<!DOCTYPE html><html lang='en'><meta charset='utf-8'><title>{html.escape(title)}</title>"
    return "\n".join([f"{head}<style>{STYLE}</style>", *parts, "</html>"]) + "\n"


def _describe_machine(record: Record) -> str:
    said = ", ".join(f"{name} {value}" for name, value in record.machine.items() if name not in ("device", "tiny"))
    tiny = " Tiny models and loads: no figure here says anything of a device." if record.machine.get("tiny") else ""
    return f"{said}.{tiny}"


def _list_missing(record: Record, steps: Sequence[Step]) -> list[str]:
    """Return the steps without a row, each with the reason."""
    lines = []
    for step in steps:
        outcome = record.outcomes.get(step.name)
        if outcome is not None and outcome.status != "done":
            lines.append((step.name, f"{outcome.status}: {outcome.reason}"))
    if later := [step.name for step in steps if step.name not in record.outcomes]:
        lines.append(("not begun", f"{', '.join(later)}; the same command goes on with them"))
    if not lines:
        return []
    items = [f"<li><b>{html.escape(name)}</b>: {html.escape(why)}</li>" for name, why in lines]
    return ["<h2>Not measured</h2>", "<ul>", *items, "</ul>"]


def render_table(rows: Sequence[Any]) -> str:
    """Return rows as an HTML table with the columns that any of them has."""
    columns = list(dict.fromkeys(name for row in rows for name in row))
    lines = [
        _render_line("th", columns),
        *(_render_line("td", [format_value(row.get(name)) for name in columns]) for row in rows),
    ]
    return "\n".join(["<table>", *lines, "</table>"])


def _render_line(tag: str, cells: Iterable[str]) -> str:
    return "<tr>" + "".join(f"<{tag}>{html.escape(cell)}</{tag}>" for cell in cells) + "</tr>"


def format_value(value: Any) -> str:
    """Format a value; numbers have three or four significant digits."""
    if value is None:
        return ""
    if isinstance(value, float):
        if value and abs(value) < 1e-3:
            return f"{value:.1e}"
        return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.4g}"
    return f"{value:,}" if isinstance(value, int) else str(value)


def plot(section: str, rows: Sequence[Any]) -> str:
    """Plot a section as SVG, with one line per model."""
    x = "tokens of a client's step" if section == CURVE else "clients in a pass"
    wanted = ["plain / batched", "batched, tokens/s"] if section == CURVE else ["tokens/s", "peak GB"]
    names = [name for name in wanted if any(row.get(name) is not None for row in rows)]
    out = io.StringIO()
    with draw_panels(len(names), len(names), out, section) as (_, axes):
        for axis, name in zip(axes, names, strict=True):
            for i, model in enumerate(dict.fromkeys(row["model"] for row in rows)):
                points = sorted((r[x], r[name]) for r in rows if r["model"] == model and r.get(name) is not None)
                axis.plot(*zip(*points, strict=True), color=COLORS[i], marker=MARKERS[i], markersize=4, label=model)
            axis.set_xscale("log", base=2)
            axis.set_xlabel(x)
            axis.set_ylabel(name)
            if name == "plain / batched":
                axis.axhline(1, color="#8a8a8a", linewidth=1)
            axis.legend()
    return out.getvalue()


def format_progress(name: str, outcome: Outcome) -> str:
    """Format the outcome of a step as a line for the terminal."""
    row = ", ".join(f"{key} {format_value(value)}" for key, value in outcome.row.items() if isinstance(value, float))
    return ": ".join(filter(None, (name, f"{outcome.status} ({outcome.seconds:.1f} s)", row or outcome.reason)))

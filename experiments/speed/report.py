"""The results as a table for the terminal, as JSON lines, and as Markdown in the README."""

from __future__ import annotations

import dataclasses
import json
import os
import platform
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib.metadata import version
from typing import Any

from rich.table import Table

from experiments.speed.rates import measure_gemm_rates
from experiments.speed.study import MeasuredVariant, Result
from fedpeft.models.dtypes import DTYPES
from fedpeft.models.kernels import get_cpu_name

BEGIN, END = "<!-- results: begin -->", "<!-- results: end -->"


@dataclass(frozen=True)
class Environment:
    """The machine and the time of the measurement; `gemm` are GFLOP/s of one core by dtype and kernel."""

    date: str
    cpu: str
    cores: int
    load: float
    gemm: dict[str, dict[str, float]]
    versions: dict[str, str]

    @classmethod
    def probe(cls) -> Environment:
        """Return the description of this machine now."""
        return cls(
            date=f"{datetime.now(UTC):%Y-%m-%d %H:%M} UTC",
            cpu=get_cpu_name(),
            cores=os.cpu_count() or 1,
            load=os.getloadavg()[0],
            gemm={
                dtype: {str(kernel): round(rate, 1) for kernel, rate in measure_gemm_rates(DTYPES[dtype]).items()}
                for dtype in ("fp32", "bf16")
            },
            versions={"python": platform.python_version()}
            | {name: version(name) for name in ("torch", "transformers", "peft", "flwr", "ray")},
        )

    def __str__(self) -> str:
        """Return the environment as one sentence."""
        rates = "; ".join(f"{d} " + ", ".join(f"{k} {r:g}" for k, r in rate.items()) for d, rate in self.gemm.items())
        versions = ", ".join(f"{name} {v}" for name, v in self.versions.items())
        return (
            f"{self.cpu}, {self.cores} cores, load {self.load:.1f} at the start; "
            f"GFLOP/s of one core: {rates}; {versions}; {self.date}"
        )


COLUMNS = ("round, s", "min..max", "times Flower tuned", "times plain", "of GEMM peak", "update differs by")


def get_reference(result: Result) -> MeasuredVariant | None:
    """Return tuned Flower in the case's own precision."""
    return result.variants.get("flower")


def list_rows(result: Result) -> Iterator[tuple[str, ...]]:
    """Yield the cells of each variant."""
    for m in result.variants.values():
        yield (
            m.variant.text,
            f"{m.median:.2f}",
            f"{min(m.seconds):.2f}..{max(m.seconds):.2f}",
            _format_times(m, get_reference(result)),
            _format_times(m, result.variants.get("plain")),
            f"{100 * m.peak_share:.0f} %",
            "" if m.difference is None or m.variant.framework == "plain" else f"{m.difference:.0e}",
        )


def _format_times(m: MeasuredVariant, other: MeasuredVariant | None) -> str:
    if other is None or other is m:
        return ""
    middle, least, most = m.compute_ratios(other)
    return f"{middle:.2f} ({least:.2f}..{most:.2f})"


def format_heading(result: Result) -> str:
    """Return the case as one line."""
    case = result.case
    return (
        f"{case.name} ({case.clients} clients, {result.steps} steps, {result.tokens:,} tokens a round; batched: "
        f"{result.clients_per_pass} clients a pass, {result.kernel} products)"
    )


def explain_result(result: Result) -> list[str]:
    """Return sentences on each switch's effect and on the cost of one-time computations."""
    found = result.variants
    lines = []
    chain = [
        ("Ray to one loop that swaps adapters", "flower", "sequential"),
        ("stacked layers and one fused optimizer, no peft modules", "sequential", "stacked"),
        ("many clients in one pass", "stacked", "together"),
        ("the faster GEMM", "together", "kernel"),
    ]
    last = "sequential"
    for text, before, after in chain:
        before = before if before in found else last
        if before in found and after in found:
            lines.append(f"{text}: {_format_times(found[after], found[before])}")
            last = after
    if "batched" in found and last in LAST and last in found and found["batched"].once:
        lines.append(f"reuse of the frozen blocks: {_format_times(found['batched'], found[last])}")
        gain = found[last].median - found["batched"].median
        once = found["batched"].once
        paid = f", paid back after {once / gain:.1f} such rounds" if gain > 0 else ""
        lines.append(f"what the reuse costs once for these rows: {once:.1f} s{paid}")
    elif "batched" in found and last in found:
        lines.append(f"batched in all, against the line before: {_format_times(found['batched'], found[last])}")
    if "flower today" in found and "batched" in found:
        lines.append(f"batched against Flower as used today: {_format_times(found['batched'], found['flower today'])}")
        if "flower fp32" in found:
            lines.append(f"  of it, keeping the model: {_format_times(found['flower fp32'], found['flower today'])}")
        if "flower fp32" in found and "flower" in found:
            lines.append(f"  of it, bf16 in a peft model: {_format_times(found['flower'], found['flower fp32'])}")
    shares = ", ".join(f"{kind} {100 * share:.0f} %" for kind, share in result.breakdown.items() if share >= 0.005)
    lines.append(f"where batched spends its time: {shares}")
    return lines


LAST = ("sequential", "stacked", "together", "kernel")


def build_table(result: Result) -> Table:
    """Build the table for the terminal."""
    shown = Table(title=format_heading(result), title_justify="left")
    shown.add_column("")
    for column in COLUMNS:
        shown.add_column(column, justify="right")
    for row in list_rows(result):
        shown.add_row(*row)
    return shown


def list_whole_rows(result: Result) -> Iterator[tuple[str, str, str]]:
    """Yield text, seconds and memory of each whole run."""
    for m in result.variants.values():
        if m.whole_seconds is not None:
            yield m.variant.text, f"{m.whole_seconds:.1f}", f"{(m.memory or 0) / 1e9:.2f}"


def format_lines(results: list[Result], environment: Environment) -> Iterator[str]:
    """Yield a line of JSON per case and variant."""
    for result in results:
        for name, m in result.variants.items():
            entry: dict[str, Any] = {"case": dataclasses.asdict(result.case), "variant": name}
            entry |= {k: v for k, v in dataclasses.asdict(m).items() if k != "variant"}
            entry |= {"median_seconds": m.median, "steps": result.steps, "tokens": result.tokens}
            entry |= {"breakdown": result.breakdown} if name == "batched" else {}
            entry |= {"environment": dataclasses.asdict(environment)}
            yield json.dumps(entry)


def format_markdown(results: list[Result], environment: Environment, command: str, exactness: float | None) -> str:
    """Return all cases as Markdown."""
    parts = [f"`{command}`", str(environment)]
    if exactness is not None:
        parts.append(f"Batched against plain in fp64: updates differ by {exactness:.0e} (relative norm).")
    for result in results:
        parts.append(f"**{format_heading(result)}**")
        parts.append(_format_markdown_table(("", *COLUMNS), list(list_rows(result))))
        if notes := explain_result(result):
            parts.append("\n".join(f"- {note.strip()}" for note in notes))
        if whole := list(list_whole_rows(result)):
            parts.append(_format_markdown_table(("whole run, alone", "seconds", "peak memory (PSS), GB"), whole))
    return "\n\n".join(parts)


def _format_markdown_table(columns: tuple[str, ...], cells: list[Any]) -> str:
    rule = ["---", *["---:"] * (len(columns) - 1)]
    return "\n".join("| " + " | ".join(line) + " |" for line in (columns, rule, *cells))

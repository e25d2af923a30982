"""`python -m experiments.slow_link`: seconds and bytes of rounds over a slow line, by codec.

Finished cases of results.jsonl are left out, so an interrupted study continues. `--dry-run` lists the cases.
"""

from __future__ import annotations

import json
import os
import platform
import tempfile
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import tyro

from experiments import write_between
from experiments.slow_link.bridge import Line
from experiments.slow_link.federation import LLAMA_1B, SMALL, Case, Federation
from experiments.slow_link.link import SlowLink, verify
from fedpeft.models.kernels import get_cpu_name

FOLDER = Path(__file__).parent
README, RESULTS = FOLDER / "README.md", FOLDER / "results.jsonl"
BEGIN, END = "<!-- results: begin -->", "<!-- results: end -->"

CASES = (
    ("reno", Case("fp32", "fp32", 1)),
    ("reno", Case("bf16", "bf16", 3)),
    ("reno", Case("int8", "int8", 3)),
    ("reno", Case("small", "small", 3)),
    ("reno", Case("tiny", "tiny", 3)),
    ("reno", Case("int8-interrupted", "int8", 3, cut_seconds=30)),
    ("bbr", Case("fp32-bbr", "fp32", 1)),
    ("bbr", Case("int8-bbr", "int8", 3)),
)
"""TCP congestion control and federation of each case."""

FLIP_MEGABYTES = 758
"""MB per round that Project FLIP's issue 684 reports for a hospital."""


@dataclass(frozen=True)
class Settings:
    """What to measure."""

    cases: tuple[str, ...] = tuple(case.name for _, case in CASES)
    """names of the cases"""
    small: bool = False
    """an adapter of a few kB, for a quick try; nothing is recorded"""
    seconds: float = 8.0
    """seconds of each raw transfer"""
    dry_run: bool = False
    """list the cases without running them"""
    write_readme: bool = False
    """write the recorded results into the README, without running anything"""


def read_results() -> list[dict[str, Any]]:
    """Return the recorded cases, in the order of `CASES`."""
    lines = RESULTS.read_text(encoding="utf-8").splitlines() if RESULTS.exists() else []
    records = {record["case"]: record for record in map(json.loads, lines)}
    return [records[case.name] for _, case in CASES if case.name in records]


def format_verification(measured: dict[str, dict[str, float]]) -> str:
    """Return one line on what the probes have measured."""
    ping = measured["ping"]
    raw = ", ".join(f"{name} {found['megabits']:.1f} Mbit/s" for name, found in measured.items() if name != "ping")
    return f"ping {ping['median_ms']:.0f} ms, {100 * ping['lost']:.1f} % without a reply; raw: {raw}"


def extrapolate_hours(record: dict[str, Any]) -> float:
    """Return the hours of a round with FLIP's update in this codec: the last round's, in proportion to the size."""
    hours = record["rounds"][-1]["seconds"] / 3600
    megabytes = 4e-6 * record["parameters"]  # of an update in fp32
    return float(hours * FLIP_MEGABYTES / megabytes)


def compute_full_rate_seconds(line: dict[str, Any], megabits: float) -> float:
    """Return the seconds that a round's payloads take at the line's full rate, down first and then up."""
    return float(8e-6 * (line["uplink_bytes"] + line["downlink_bytes"]) / megabits)


def format_table(records: list[dict[str, Any]]) -> str:
    """Return the results as a Markdown table."""
    lines = [
        "| case | TCP | seconds per round | at the full rate | MB up | MB down | on the line, up and down | lost "
        "| hours at 758 MB |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for record in records:
        rounds, line = record["rounds"], record["line"]
        carried = [line[way]["bytes"] / 1e6 for way in ("from_clients", "from_server")]
        lost = sum(way["lost"] for way in line.values())
        share = lost / sum(way["lost"] + way["packets"] for way in line.values())
        up, down = (", ".join(f"{r[f'{way}link_bytes'] / 1e6:.2f}" for r in rounds) for way in ("up", "down"))
        seconds = ", ".join(f"{r['seconds']:.0f}" for r in rounds)
        least = ", ".join(f"{compute_full_rate_seconds(r, record['link']['megabits']):.0f}" for r in rounds)
        lines.append(
            f"| {record['case']} | {record['link']['congestion']} | {seconds} | {least} | {up} | {down} | "
            f"{carried[0]:.1f}, {carried[1]:.1f} MB | {100 * share:.1f} % | {extrapolate_hours(record):.2f} |"
        )
    return "\n".join(lines)


def main() -> None:
    """Verify the line, run the cases that have no result, and print or write the table."""
    settings = tyro.cli(Settings, prog="python -m experiments.slow_link")
    done = [] if settings.small else [record["case"] for record in read_results()]
    chosen = [(tcp, case) for tcp, case in CASES if case.name in settings.cases and case.name not in done]
    if settings.dry_run:
        print("\n".join(f"{case.name}: {case.rounds} rounds over {tcp}" for tcp, case in chosen))
        return
    shape = SMALL if settings.small else LLAMA_1B
    with tempfile.TemporaryDirectory() as name:
        federation = None
        for tcp, case in () if settings.write_readme else chosen:
            federation = federation or Federation(Path(name), shape)
            with SlowLink(Line(congestion=tcp)) as link:
                measured = verify(link, seconds=settings.seconds)
                print(f"{case.name}: {format_verification(measured)}", flush=True)
                record = federation.run(link, case) | {"link": asdict(link.line), "measured": measured}
            record |= {"cpu": get_cpu_name(), "load": os.getloadavg()[0], "python": platform.python_version()}
            print(json.dumps(record), flush=True)
            if not settings.small:
                with RESULTS.open("a", encoding="utf-8") as file:
                    file.write(json.dumps(record) + "\n")
    if settings.write_readme:
        write_between(README, BEGIN, END, format_table(read_results()))


if __name__ == "__main__":
    main()

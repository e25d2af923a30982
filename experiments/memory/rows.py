"""`python -m experiments.memory.rows`: peak memory of runs on files of 10^4, 10^5, 10^6 and 10^7 examples.

Each file is generated first: Parquet with texts of 20 words and 1,000 owners. The language model is generated too, and
is small, so that reading, tokenizing and splitting the data take most of the memory and time. A round trains on 5
clients.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import tyro

from experiments import write_between

README = Path(__file__).with_name("README.md")
BEGIN, END = "<!-- rows: begin -->", "<!-- rows: end -->"

WORDS, CHUNK, TEST = 20, 50_000, 200
"""Words per text, examples generated at a time, and test examples."""

SECONDS = 0.2
"""Interval between two readings of a run's memory, in seconds."""


@dataclass(frozen=True)
class Settings:
    """The measurements to run."""

    rows: tuple[int, ...] = (10_000, 100_000, 1_000_000)
    """numbers of training examples, one run each"""
    rounds: int = 2
    """rounds of each run"""
    folder: Path | None = None
    """where files, cache and runs go, beside each other; None: a temporary folder"""
    write_readme: bool = False
    """put the table into the README of this experiment"""


def make(path: Path, rows: int) -> None:
    """Write a Parquet file of `rows` generated examples with the columns text and owner, in pieces."""
    import pyarrow as pa
    from pyarrow import parquet

    random, words = np.random.default_rng(rows), np.array([f"word{i}" for i in range(2000)])
    schema = pa.schema([("text", pa.string()), ("owner", pa.string())])
    with parquet.ParquetWriter(path, schema) as writer:
        for start in range(0, rows, CHUNK):
            count = min(CHUNK, rows - start)
            texts = [" ".join(row) for row in words[random.integers(0, len(words), (count, WORDS))]]
            owners = [f"owner {number:04d}" for number in random.integers(0, 1000, count)]
            writer.write_table(pa.table([texts, owners], schema=schema))


def simulate(folder: Path, rows: int, rounds: int) -> dict[str, Any]:
    """Run one simulation in its own process and return its summary.

    Raises:
        RuntimeError: the run failed.
    """
    train, test = folder / f"{rows}.parquet", folder / "test.parquet"
    for path, count in ((train, rows), (test, TEST)):
        if not path.exists():
            make(path, count)
    flags = {
        "dataset": f"file(path='{train}', test='{test}', label=None, owner=owner)",
        "model": "tiny_lm",
        "partition": "natural",
        "clients": 0,
        "cohort": 5,
        "rounds": rounds,
        "tokens": 64,
        "workers": 1,
        "output": folder / f"run-{rows}",
    }
    command = [sys.executable, "-m", "fedpeft.simulate", *(f"--{name}={value}" for name, value in flags.items())]
    environment = os.environ | {"FEDPEFT_CACHE": str(folder / "cache")}
    said = folder / f"{rows}.log"
    with said.open("w") as output:
        peaks = watch_peaks(run := subprocess.Popen(command, stdout=output, stderr=subprocess.STDOUT, env=environment))
    if run.returncode:
        raise RuntimeError(f"{rows} rows: {said.read_text().strip()[-2000:]}")
    summary: dict[str, Any] = json.loads((folder / f"run-{rows}" / "summary.json").read_text())
    tokenised = sum(file.stat().st_size for file in (folder / "cache").glob("rows-*/*.npy"))
    return summary | peaks | {"file_bytes": train.stat().st_size, "tokenised_bytes": tokenised}


def watch_peaks(run: subprocess.Popen[bytes]) -> dict[str, int]:
    """Return the peak memory of a run and its processes in bytes; shared pages count proportionally.

    `anonymous` memory could only go to a swap file; the system can reclaim `mapped` files.
    """
    peaks = {"anonymous": 0, "mapped": 0}
    while run.poll() is None:
        found = [read_memory_parts(process.pid) for process in list_process_tree(run.pid)]
        for i, name in enumerate(peaks):
            peaks[name] = max(peaks[name], sum(parts[i] for parts in found))
        time.sleep(SECONDS)
    return peaks


def list_process_tree(pid: int) -> list[psutil.Process]:
    """Return a process and all its descendants."""
    try:
        top = psutil.Process(pid)
        return [top, *top.children(recursive=True)]
    except psutil.Error:  # the process has just ended
        return []


def read_memory_parts(pid: int) -> tuple[int, int]:
    """Return a process's anonymous memory and mapped files in bytes; 0 if it has ended."""
    try:
        lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
    except OSError:
        return 0, 0
    kilobytes = {name: int(rest.split()[0]) for name, _, rest in (line.partition(":") for line in lines[1:])}
    return kilobytes["Pss_Anon"] * 1024, kilobytes["Pss_File"] * 1024


COLUMNS = (
    *("rows", "Parquet file, MB", "tokenised rows of all runs so far, MB", "peak memory (PSS), MB"),
    *("of it anonymous, MB", "mapped files, MB", "seconds"),
)


def format_cells(rows: int, summary: dict[str, Any]) -> tuple[str, ...]:
    """Format a run as the cells of a row."""
    sizes = (
        *(summary["file_bytes"], summary["tokenised_bytes"], summary["peak_memory_bytes"] or 0),
        *(summary["anonymous"], summary["mapped"]),
    )
    return (f"{rows:,}", *(f"{size / 1e6:,.0f}" for size in sizes), f"{summary['seconds']:.0f}")


def format_table(found: dict[int, dict[str, Any]]) -> str:
    """Return the Markdown table and a sentence on the growth of memory."""
    lines = [COLUMNS, ("---:",) * len(COLUMNS), *(format_cells(rows, summary) for rows, summary in found.items())]
    text = "\n".join("| " + " | ".join(line) + " |" for line in lines)
    fewest, most = min(found), max(found)
    if most == fewest:
        return text
    grown = {
        name: (found[most][name] - found[fewest][name]) / (most - fewest) for name in ("peak_memory_bytes", "anonymous")
    }
    return (
        f"{text}\n\nFrom {fewest:,} to {most:,} rows memory grows by {grown['peak_memory_bytes']:.0f} bytes a row, "
        f"anonymous memory by {grown['anonymous']:.0f}. The peaks of both kinds need not be at the same time."
    )


def main(settings: Settings) -> int:
    """Run all sizes and print the table; return 1 if a run failed."""
    found: dict[int, dict[str, Any]] = {}
    with tempfile.TemporaryDirectory() as temporary:
        folder = settings.folder or Path(temporary)
        folder.mkdir(parents=True, exist_ok=True)
        for rows in sorted(settings.rows):
            try:
                found[rows] = simulate(folder, rows, settings.rounds)
            except RuntimeError as error:
                print(error, file=sys.stderr)
                return 1
            print(" | ".join(format_cells(rows, found[rows])), flush=True)
    print(format_table(found))
    if settings.write_readme:
        write_between(README, BEGIN, END, format_table(found))
    return 0


if __name__ == "__main__":
    sys.exit(main(tyro.cli(Settings, description=__doc__)))

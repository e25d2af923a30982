"""Train the MLP with each rule, and print or write the table.

    python -m experiments.papers.rbla             # runs what results.jsonl lacks, one run after another
    python -m experiments.papers.rbla --dry-run   # lists the runs
    python -m experiments.papers.rbla --write     # writes the recorded results into the README

The data is Fashion-MNIST; `--path` names the folder of its IDX files if the Debian package can't be fetched.
"""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import tyro

from experiments import exit_on_error, write_between
from experiments.papers.rbla.training import Protocol, run
from fedpeft.data.datasets.fashion_mnist import FashionMnist

FOLDER = Path(__file__).parent
README, RESULTS = FOLDER / "README.md", FOLDER / "results.jsonl"
BEGIN, END = "<!-- results: begin -->", "<!-- results: end -->"

RULES = ("rbla", "zero_padding")
SEEDS = (0, 1, 2)

RUNS = (
    *(Protocol(rule, "frozen", 0) for rule in RULES),
    *(Protocol(rule, "trained", 0) for rule in RULES),
    *(Protocol(rule, "frozen", seed) for seed in SEEDS[1:] for rule in RULES),
    *(Protocol(rule, "frozen", 0) for rule in ("flexlora", "equal_ranks")),
    *(Protocol(rule, "trained", seed) for seed in SEEDS[1:] for rule in RULES),
)
"""All runs, in the order in which they are made."""


@dataclass(frozen=True)
class Settings:
    """What to do."""

    path: str | None = None
    """folder with the IDX files of Fashion-MNIST; default: the Debian package"""
    dry_run: bool = False
    """list the runs that have no result, without running them"""
    write: bool = False
    """write the recorded results into the README, without running anything"""


def read_results(path: Path = RESULTS) -> list[dict[str, Any]]:
    """Return the recorded runs."""
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()] if path.exists() else []


def format_table(records: Sequence[dict[str, Any]]) -> str:
    """Return the mean accuracies as a Markdown table, one line per rule and base."""
    lines = ["| W1 and W2 | rule | seeds | accuracy | each seed | after 5 rounds |", "|---|---|---:|---:|---|---:|"]
    for base, rule in dict.fromkeys((r["base"], r["rule"]) for r in sorted(records, key=lambda r: str(r["base"]))):
        runs = sorted((r for r in records if (r["base"], r["rule"]) == (base, rule)), key=lambda r: int(r["seed"]))
        last = [100 * r["accuracies"][-1] for r in runs]
        early = [100 * r["accuracies"][min(5, len(r["accuracies"])) - 1] for r in runs]
        each = ", ".join(f"{value:.1f}" for value in last)
        lines.append(
            f"| {base} | {rule.replace('_', ' ')} | {len(runs)} | {np.mean(last):.1f} | {each} | {np.mean(early):.1f} |"
        )
    return "\n".join(lines)


def main() -> None:
    """Run, record, and print or write the table."""
    settings = tyro.cli(Settings, prog="python -m experiments.papers.rbla")
    records = read_results()
    if settings.write:
        write_between(README, BEGIN, END, format_table(records))
        return
    done = [Protocol(**{name: record[name] for name in asdict(RUNS[0])}) for record in records]
    missing = [protocol for protocol in RUNS if protocol not in done]
    if settings.dry_run:
        print("\n".join(f"{p.rule}, base {p.base}, seed {p.seed}: {p.rounds} rounds" for p in missing))
        return
    torch.set_num_threads(1)
    data = FashionMnist(settings.path).load() if missing else None
    for protocol in missing:
        assert data is not None
        start, accuracies = time.process_time(), []
        for accuracy in run(protocol, data.train, data.test):
            accuracies.append(accuracy)
            print(f"{protocol.rule}, base {protocol.base}, seed {protocol.seed}: {accuracy:.4f}", flush=True)
        record = asdict(protocol) | {"accuracies": accuracies, "cpu_seconds": round(time.process_time() - start, 1)}
        records.append(record)
        with RESULTS.open("a", encoding="utf-8") as file:
            file.write(json.dumps(record) + "\n")
    print(format_table(records))


if __name__ == "__main__":
    with exit_on_error():
        main()

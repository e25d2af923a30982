"""python -m experiments.peft_methods: one table with each method's measured costs and the study's results."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import torch
import tyro

from experiments import write_between
from experiments.peft_methods.costs import Costs, measure
from fedpeft.errors import ConfigError, FedpeftError
from fedpeft.study.results import Result, ResultsFile, resolve_config, select_latest
from fedpeft.study.study_file import read_study
from fedpeft.study.tables import format_with_deviation

FOLDER = Path(__file__).parent
BEGIN, END = "<!-- costs: begin -->", "<!-- costs: end -->"
BASE = "minilm"
REFERENCE = "full fine-tuning"


@dataclass(frozen=True)
class Command:
    """The options of the command."""

    preset: Annotated[str, tyro.conf.arg(help="preset of the results: small or full")] = "small"
    only: Annotated[tuple[str, ...], tyro.conf.arg(help="labels of the methods to measure; empty: all")] = ()
    write: Annotated[bool, tyro.conf.arg(help="insert the table into the README")] = False


def format_table(preset: str, only: tuple[str, ...]) -> str:
    """Return a Markdown table with one line per method; missing results stay empty."""
    torch.set_num_threads(1)
    planned = read_study(FOLDER / "study.toml", preset).plan_runs()
    methods = {run.point["method"]: run.config for run in planned}
    unknown = [label for label in only if label not in methods]
    if unknown:
        raise ConfigError(f"the study has no method {unknown[0]!r}; its methods: {', '.join(methods)}")
    wanted = [label for label in methods if label in only or not only]
    costs = measure({label: methods[label].peft for label in dict.fromkeys([*wanted, REFERENCE])}, BASE)
    folder = FOLDER if preset == "small" else FOLDER / preset
    results: dict[str, list[Result]] = {}
    for result in select_latest(ResultsFile(folder / "results.jsonl").read()):
        if result.is_finished and resolve_config(result.config) in {run.config for run in planned}:
            results.setdefault(result.point["method"], []).append(result)
    heads = ("method", "rule", "trained", "% of model", "MB up", "MB down", "accuracy (%)", "forgotten (%)",
             "step (ms)", "of full", "memory (MB)", "of full", "answer (ms)", "merged (ms)")  # fmt: skip
    lines = ["| " + " | ".join(heads) + " |", "|---|---|" + "---:|" * (len(heads) - 2)]
    for label in wanted:
        row = _build_row(label, methods[label].strategy, costs[label], costs[REFERENCE], results.get(label, []))
        lines.append("| " + " | ".join(row) + " |")
    return "\n".join(lines)


def _build_row(label: str, rule: str, costs: Costs, full: Costs, results: list[Result]) -> list[str]:
    summaries = [r.summary for r in results if r.summary]
    up = [(s["uplink_bytes"] - s["prepare_bytes"]) / s["rounds"] / s["cohort"] for s in summaries if s["rounds"]]
    down = [s["downlink_bytes"] / s["rounds"] / s["cohort"] for s in summaries if s["rounds"]]
    lost = [100 * s["forgetting"]["lost"] for s in summaries if s.get("forgetting")]
    return [
        label,
        rule,
        f"{costs.parameters:,}",
        f"{100 * costs.share:.3f}",
        *(f"{sum(sent or [costs.payload]) / len(sent or [0]) / 1e6:.2f}" for sent in (up, down)),
        format_with_deviation([100 * s["accuracy"] for s in summaries], 2),
        format_with_deviation(lost, 2),
        f"{1e3 * costs.step:.0f}",
        f"{costs.step / full.step:.2f}",
        f"{costs.memory / 1e6:.0f}",
        f"{costs.memory / full.memory:.2f}",
        f"{1e3 * costs.answer:.1f}",
        "-" if costs.merged is None else f"{1e3 * costs.merged:.1f}",
    ]


def main() -> int:
    """Run the command, and return 2 if an input is missing."""
    command = tyro.cli(Command, prog="python -m experiments.peft_methods")
    try:
        if command.write and command.only:
            raise ConfigError("the README's table holds all methods: leave --only or --write out")
        made = format_table(command.preset, command.only)
    except FedpeftError as error:
        print(error, file=sys.stderr)
        return 2
    print(made)
    if command.write:
        write_between(FOLDER / "README.md", BEGIN, END, made)
    return 0


if __name__ == "__main__":
    from fedpeft.reporting.console import silence_libraries

    silence_libraries()
    sys.exit(main())

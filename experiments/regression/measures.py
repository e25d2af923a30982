"""The measures: existing experiments, run as commands of the measured commit, and the costs in their output.

All numbers are costs: lower is better. Controls measure code outside fedpeft. If a control's ratio is not 1, the
machine changed between the commits, and the other ratios of that measure are not meaningful either.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

Costs = Mapping[str, float]
"""Costs by name and unit."""


@dataclass(frozen=True)
class FinishedCommand:
    """A command that has ended.

    Attributes:
        output: the file or folder that it wrote.
        printed: its output.
        seconds: processor time of the command and its children.
    """

    output: Path
    printed: str
    seconds: float


@dataclass(frozen=True)
class Measure:
    """A command and its costs.

    Attributes:
        words: arguments of python; `OUTPUT` stands for a new path.
        costs: reads the costs from the finished command.
    """

    words: tuple[str, ...]
    costs: Callable[[FinishedCommand], Costs]


ROUNDS = {"plain": "control, a plain loop", "sequential": "one by one", "batched": "batched"}


def _read_rounds(finished: FinishedCommand) -> Costs:
    found = map(json.loads, finished.output.read_text().splitlines())
    return {
        f"round, {ROUNDS[line['variant']]}: {line['case']['name']} (s)": line["median_seconds"]
        for line in found
        if line["variant"] in ROUNDS
    }


def _read_codecs(finished: FinishedCommand) -> Costs:
    found = [json.loads(line) for line in finished.output.read_text().splitlines()]
    return {
        f"{way} {row['codec']} (ms per MB)": 1e3 / row[f"{way}_mb_s"] for way in ("encode", "decode") for row in found
    }


def _read_rules(finished: FinishedCommand) -> Costs:
    return {
        f"aggregate with {row['strategy']} (s)": row["seconds"]
        for row in map(json.loads, finished.printed.split("\n")[:-1])
    }


def _read_transport(finished: FinishedCommand) -> Costs:
    costs = {}
    for what, seconds, processor in re.findall(
        r"^\| (\d.*?) \| ([\d.]+) \| ([\d.]*) \|", finished.printed, re.MULTILINE
    ):
        name = what.replace("bare gRPC streams", "control, bare gRPC")
        costs[f"round, {name} (s)"] = float(seconds)
        if processor:
            costs[f"processor, {name} (ms per MB)"] = float(processor)
    return costs


def _create_time_reader(name: str) -> Callable[[FinishedCommand], Costs]:
    return lambda finished: {f"{name} (s of processor time)": finished.seconds}


RULES = """
import json, torch
from experiments.aggregation import studies
torch.set_num_threads(1)
studies.SEVEN_B.clear()  # one rule takes minutes on these
for row in studies.STUDIES["rules"](3):
    print(json.dumps(row))
"""

TINY = ("--dataset", "tiny", "--clients", "10", "--cohort", "5", "--rounds", "2")

MEASURES = {
    "start-up, control": Measure(
        ("-c", "import torch, transformers, peft"), _create_time_reader("control, libraries alone")
    ),
    "start-up, help": Measure(("-m", "fedpeft.simulate", "--help"), _create_time_reader("simulate --help")),
    "start-up, tiny run": Measure(
        ("-m", "fedpeft.simulate", *TINY, "--output", "OUTPUT"), _create_time_reader("a tiny run")
    ),
    "codecs": Measure(
        ("-m", "experiments.codecs", "int8", "small", "tiny", "drive", "--output", "OUTPUT"), _read_codecs
    ),
    "aggregation": Measure(("-c", RULES), _read_rules),
    "transport": Measure(
        ("-m", "experiments.transport", "--clients", "10", "--megabytes", "16", "--light", "50"), _read_transport
    ),
    "rounds, fp32": Measure(
        (
            *("-m", "experiments.speed", "--no-flower", "--no-levers", "--only", "fp32, batch 4"),
            *("--clients", "10", "--rows", "8", "--repeats", "3", "--output", "OUTPUT"),
        ),
        _read_rounds,
    ),
    "rounds, default run": Measure(
        (
            *("-m", "experiments.speed", "--no-flower", "--no-levers", "--only", "default run"),
            *("--default-rows", "16", "--repeats", "3", "--output", "OUTPUT"),
        ),
        _read_rounds,
    ),
}

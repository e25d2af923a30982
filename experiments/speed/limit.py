"""python -m experiments.speed.limit: the phases of a default run beside the least time of their matrix products.

A short default run starts with an empty cache of computed activations, and then again with the full one. For each
phase, the matrix products of the blocks are counted from the real lengths of its texts. The bound is their number over
the rate that all cores reach together in one product of usual size. It leaves out softmax, norms, optimizers and data.
"""

from __future__ import annotations

import json
import multiprocessing
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import tyro
from rich.table import Table
from torch.nn import functional
from torch.utils.flop_counter import FlopCounterMode

from experiments import exit_on_error
from experiments.speed.plain import PlainClient
from experiments.speed.rates import measure_gemm_rates
from experiments.speed.workload import SilentObserver
from experiments.to_accuracy.sides import ColdCache
from fedpeft.data.cached_rows import load_cached_examples
from fedpeft.errors import RunError
from fedpeft.machine.cores import count_usable_cores
from fedpeft.machine.terminal import Console
from fedpeft.models.dtypes import DTYPES
from fedpeft.models.kernels import choose, get_cpu_name
from fedpeft.models.layers import find_blocks
from fedpeft.simulation.simulation import Simulation
from fedpeft.wiring.config import RunConfig

SCORE = "scoring the saved adapter on the test set (fp32)"
"""Name of the phase that scores."""

CACHE_NOTE = " (kept for later runs)"
"""End of the name of a phase whose result the cache keeps."""


@dataclass(frozen=True)
class Settings:
    """What to run."""

    rounds: int = 3
    """rounds of each run"""
    dataset: str = "reviews"
    """the dataset; all other settings are defaults"""
    clients: int = 100
    """number of clients"""


@dataclass(frozen=True)
class Operations:
    """Floating-point operations per token in matrix products, those of adapters included.

    Attributes:
        below: forward, in the blocks below the lowest adapted one.
        adapted: forward, in the blocks from there on.
        step: forward and backward, in these.
    """

    below: float
    adapted: float
    step: float


def count_operations(simulation: Simulation) -> Operations:
    """Count the operations on one text."""
    work = simulation.workers.work
    client = PlainClient(work)
    batch = load_cached_examples(work.data_key).batch(simulation.rows.partition.shard(0)[:1])
    path, blocks = find_blocks(client.model)
    names = [f"{type(client.model).__name__}.{path}.{i}" for i in range(len(blocks))]

    def count(counter: FlopCounterMode) -> tuple[float, float]:
        counts = counter.get_flop_counts()
        each = [sum(counts[name].values()) / batch["attention_mask"].numel() for name in names]
        return sum(each[: work.depth]), sum(each[work.depth :])

    with FlopCounterMode(display=False) as forward, torch.no_grad():
        client.model(batch)
    with FlopCounterMode(display=False) as step:
        functional.cross_entropy(client.model(batch), batch["labels"]).backward()  # type: ignore[no-untyped-call]
    return Operations(*count(forward), count(step)[1])


def count_tokens(simulation: Simulation) -> dict[str, float]:
    """Return the tokens of the training set with validation, of the validation and the test set, and of a mean row."""
    tokens, rows = simulation.config.tokens, simulation.rows
    lengths = load_cached_examples(simulation.workers.work.data_key).lengths
    test = load_cached_examples(simulation.setup.tokenize_rows(rows.dataset.test, tokens)).lengths
    found = {"all": lengths.sum(), "validation": lengths[rows.validation].sum(), "test": test.sum()}
    return {name: float(number) for name, number in found.items()} | {"row": float(lengths.mean())}


def count_phase_operations(tokens: Mapping[str, float], work: Operations, trained_rows: float) -> dict[str, float]:
    """Return the operations of each phase by its name in summary.json; `training` is a part of the rounds."""
    whole = work.below + work.adapted
    return {
        f"frozen features of the training set{CACHE_NOTE}": tokens["all"] * whole,
        f"frozen features of the test set{CACHE_NOTE}": tokens["test"] * whole,
        "validation of the start": tokens["validation"] * work.adapted,
        "training": trained_rows * tokens["row"] * work.step,
        f"{SCORE}: frozen layers{CACHE_NOTE}": tokens["validation"] * work.below,
        f"{SCORE}: its temperature, on the validation examples": tokens["validation"] * work.adapted,
        SCORE: tokens["test"] * work.adapted,
    }


def run(settings: Settings, cache: Path, folder: Path) -> dict[str, float]:
    """Run the default and return the seconds of its phases; `training` is what the rounds spend in training.

    Raises:
        RunError: the run failed.
    """
    words = [sys.executable, "-m", "fedpeft", "simulate", "--clients", str(settings.clients)]
    words += ["--dataset", settings.dataset, "--rounds", str(settings.rounds), "--output", str(folder)]
    environment = os.environ | {"FEDPEFT_CACHE": str(cache)}
    done = subprocess.run(words, env=environment, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RunError(f"the run ended with {done.returncode}: {done.stderr[-500:]}")
    phases: dict[str, float] = json.loads((folder / "summary.json").read_text())["phases"]
    training = sum(line["training_seconds"] for line in read_lines(folder / "rounds.jsonl") if line["round"])
    return {**phases, "training": training, "rounds": phases["rounds"] - training}


def read_lines(path: Path) -> Iterator[dict[str, Any]]:
    """Yield the objects of a .jsonl file."""
    return map(json.loads, path.read_text().splitlines())


def measure_rate(dtype: torch.dtype, cores: int) -> float:
    """Return the operations per second that all cores reach together."""
    with ProcessPoolExecutor(cores, multiprocessing.get_context("spawn")) as processes:
        rates = processes.map(measure_gemm_rates, [dtype] * cores)
        return 1e9 * sum(rate[choose(dtype)] for rate in rates)


def build_table(
    cold: Mapping[str, float], warm: Mapping[str, float], operations: Mapping[str, float], rates: Mapping[str, float]
) -> Table:
    """Return a row for each phase with products, one for all else, such as imports and aggregation, and the sums.

    Args:
        cold: seconds of each phase with an empty cache.
        warm: the same with a full one.
        operations: operations of each phase with products.
        rates: operations per second of the precision in which such a phase computes.
    """
    table = Table("phase", "cold, s", "full cache, s", "products, TFLOP", "bound, s", "bound of cold")
    for phase, number in operations.items():
        seconds, bound = cold.get(phase, 0.0), number / rates[phase]
        share = f"{100 * bound / seconds:.0f} %" if seconds else ""
        times = (f"{seconds:.1f}", f"{warm.get(phase, 0.0):.1f}")
        name = phase.replace(SCORE, "scoring").replace(CACHE_NOTE, "")
        table.add_row(name, *times, f"{number / 1e12:.2f}", f"{bound:.1f}", share)
    other = [sum(seconds for phase, seconds in each.items() if phase not in operations) for each in (cold, warm)]
    table.add_row("all else", *(f"{seconds:.1f}" for seconds in other))
    table.add_row("together", f"{sum(cold.values()):.1f}", f"{sum(warm.values()):.1f}")
    return table


def main(settings: Settings) -> None:
    """Run twice and print the table."""
    load = os.getloadavg()[0]
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        config = RunConfig(clients=settings.clients, dataset=settings.dataset)
        simulation = Simulation(config, folder / "plan", SilentObserver())
        work, tokens = count_operations(simulation), count_tokens(simulation)
        cache = ColdCache(folder / "cache").place
        cold, warm = (run(settings, cache, folder / name) for name in ("cold", "warm"))
        trained = sum(line["rows"] for line in read_lines(folder / "cold" / "clients.jsonl") if line["round"])
    cores, own = count_usable_cores(), DTYPES[simulation.config.dtype]
    rates = {dtype: measure_rate(dtype, cores) for dtype in {own, torch.float32}}
    operations = count_phase_operations(tokens, work, trained)
    console = Console()
    of_phase = {phase: rates[torch.float32 if "test set" in phase else own] for phase in operations}
    console.print(build_table(cold, warm, operations, of_phase))
    reached = ", ".join(f"{rate / 1e9:.0f} GFLOP/s in {str(d).removeprefix('torch.')}" for d, rate in rates.items())
    console.print(
        f"{get_cpu_name()}, {cores} cores, {simulation.config.dtype}, {settings.rounds} rounds; "
        f"all cores together {reached}; load {load:.1f} before"
    )


if __name__ == "__main__":
    with exit_on_error():
        main(tyro.cli(Settings, description=__doc__))

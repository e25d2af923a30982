"""Does varying precision beat uniform precision? By examples and by link on real updates, over time in whole runs.

    python -m experiments.codecs.precision --updates FOLDER        by_rows and by_link
    python -m experiments.codecs.precision --runs FOLDER           over_time: ten runs on the tiny dataset

FOLDER of the first contains the updates of at least one cohort, `*.pt`, each a state as `torch.save` writes it. The
clients' example counts are drawn from a log-normal distribution with sigma 0.8, their link speeds from one with sigma
1. "Error" is that of the weighted mean of a cohort of ten, norm(sum p_k (x_k - x'_k)) / norm(sum p_k x_k), averaged
over the cohorts.

All comparisons are at equal bytes, or for links at an equal time of the slowest upload: the bits of the uniform codec
are set so that both send the same.
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch

from experiments import exit_on_error
from fedpeft.communication.codec import parse_codec
from fedpeft.communication.decoding import decode
from fedpeft.communication.precision_rule import Situation
from fedpeft.machine.terminal import Console
from fedpeft.parts.families import PRECISION_RULES
from fedpeft.peft.adapter import State
from fedpeft.simulate import simulate
from fedpeft.wiring.config import RunConfig

COHORT = 10
CODECS = (
    "adaptive(bits=2.0) | rans",
    "lowrank(share=1.0) | adaptive(bits=2.0, rounding=dither) | rans",
    "adaptive(bits=0.99) | rans",
)
UNIFORM = "ef14 | lowrank(share=0.5) | adaptive(bits={bits:.4f}) | rans"
RISING = "over_time(high=2.0, step=0.25, smoothing=0.5, patience=1) | " + UNIFORM.format(bits=0.5)


def send_updates(updates: list[State], text: str, bits: Mapping[int, float]) -> tuple[list[int], list[State]]:
    """Return the bytes and the decoded updates of a cohort whose clients spend `bits`."""
    shapes = {name: tuple(t.shape) for name, t in updates[0].items()}
    codec = parse_codec(text)
    payloads = [codec.set_bits(bits[k]).encode(x, seed=k) for k, x in enumerate(updates)]
    return [len(p) for p in payloads], [decode(p, shapes) for p in payloads]


def compute_mean(states: list[State], p: np.ndarray) -> torch.Tensor:
    """Return the weighted mean of the states as one vector."""
    flat = torch.stack([torch.cat([x[n].double().flatten() for n in sorted(x)]) for x in states])
    return torch.from_numpy(p) @ flat


def compute_error(
    updates: list[State], text: str, bits: Mapping[int, float], p: np.ndarray
) -> tuple[np.ndarray, float]:
    """Return the bytes of each client and the relative error of the aggregate."""
    sizes, back = send_updates(updates, text, bits)
    exact = compute_mean(updates, p)
    return np.array(sizes), float((compute_mean(back, p) - exact).norm() / exact.norm())


def match_uniform(updates: list[State], text: str, p: np.ndarray, wanted: float, cost: np.ndarray) -> float:
    """Return the error of uniform precision at the cost `wanted`.

    The cost is the sum of bytes, or with per-client `cost` the maximum of bytes times cost.
    """
    low, high = 0.05, 10.0
    found = float("nan")
    for _ in range(12):
        bits = (low * high) ** 0.5
        sizes, found = compute_error(updates, text, dict.fromkeys(range(len(updates)), bits), p)
        total = float((sizes * cost).max()) if cost.ndim else float(sizes.sum())
        low, high = (bits, high) if total < wanted else (low, bits)
    return found


def measure_updates(folder: Path) -> None:
    """Compare by_rows and by_link with uniform precision."""
    files = sorted(folder.glob("*.pt"))
    updates = [torch.load(file, weights_only=True) for file in files]
    cohorts = [updates[i : i + COHORT] for i in range(0, len(updates) - COHORT + 1, COHORT)]
    random = np.random.default_rng(0)
    print("| rule | codec | error, uniform | error, rule | equal |")
    print("|---|---|---|---|---|")
    for text in CODECS:
        own = parse_codec(text).bits
        found: dict[str, list[tuple[float, float]]] = {"by_rows": [], "by_link": []}
        for cohort in cohorts:
            rows, speeds = np.exp(0.8 * random.normal(size=COHORT)), np.exp(random.normal(size=COHORT))
            p = rows / rows.sum()
            situation = Situation([], dict(enumerate(rows)), dict(enumerate(speeds)))
            for rule, results in found.items():
                bits = PRECISION_RULES.build(rule).bits(dict.fromkeys(range(COHORT), own), situation)
                sizes, with_rule = compute_error(cohort, text, bits, p)
                cost = 1 / speeds if rule == "by_link" else np.array(1.0)
                wanted = float((sizes * cost).max()) if cost.ndim else float(sizes.sum())
                results.append((match_uniform(cohort, text, p, wanted, cost), with_rule))
        for rule, results in found.items():
            plain, ruled = np.mean(results, axis=0)
            what = "time of the slowest upload" if rule == "by_link" else "bytes"
            escaped = text.replace("|", "\\|")
            print(f"| {rule} | {escaped} | {plain:.3f} | {ruled:.3f} | {what} |", flush=True)


def measure_runs(folder: Path, seeds: int = 5) -> None:
    """Compare over_time with uniform precision at the same bytes, seed by seed."""
    console = Console(quiet=True)
    print("| seed | bytes a parameter, over_time | uniform | loss, over_time | uniform |")
    print("|---|---|---|---|---|")
    for seed in range(seeds):
        made: list[dict[str, Any]] = []
        for turn in range(2):
            text = UNIFORM.format(bits=8 * made[0]["uplink_bytes_per_parameter"]) if turn else RISING
            config = RunConfig(
                dataset="tiny", tokens=32, clients=8, cohort="all", rounds=12, workers=1, seed=seed, dtype="fp32",
                peft="lora(rank=8, layers=0)", optimizer="adamw", learning_rate=3e-3, downlink="fp32",
                codec=text, safeguard="none", measure="validation(every=4, keep=last)",
            )  # fmt: skip
            made.append(simulate(config, folder / f"{seed}-{turn}", False, console).to_dict())
        sizes = " | ".join(f"{m['uplink_bytes_per_parameter']:.3f}" for m in made)
        losses = " | ".join(f"{m['loss']:.4f}" for m in made)
        print(f"| {seed} | {sizes} | {losses} |", flush=True)


def main() -> None:
    """Measure the rules and print the tables."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--updates", type=Path, help="folder of updates")
    parser.add_argument("--runs", type=Path, help="folder for the runs")
    arguments = parser.parse_args()
    if not (arguments.updates or arguments.runs):
        parser.error("give --updates FOLDER, --runs FOLDER, or both")
    torch.set_num_threads(1)
    if arguments.updates:
        measure_updates(arguments.updates)
    if arguments.runs:
        measure_runs(arguments.runs)


if __name__ == "__main__":
    with exit_on_error():
        main()

"""A private run of a minute's work in seconds, for the tests of whole runs."""

from __future__ import annotations

import json
from pathlib import Path

from rich.console import Console

from fedpeft.reporting.console import ConsoleObserver
from fedpeft.reporting.records import Records
from fedpeft.simulation.simulation import Simulation
from fedpeft.wiring.config import RunConfig

TINY = {"dataset": "tiny", "tokens": 32, "clients": 6, "cohort": 3, "rounds": 2, "workers": 1, "seed": 3,
        "head": "zero", "local_work": "steps(2)", "peft": "lora(rank=2, layers=1)", "dtype": "fp32",
        "learning_rate": 3e-3, "optimizer": "adamw(warmup=8, head_rate=1.0)",
        "measure": "validation(every=100)"}  # fmt: skip
QUIET = Console(quiet=True)


class StopError(Exception):
    pass


def trained(folder: Path, **given):
    simulation = Simulation(RunConfig(**{**TINY, **given}), folder, ConsoleObserver(QUIET))
    folder.mkdir(parents=True, exist_ok=True)
    return simulation, simulation.train(simulation.server(Records(folder)))


def told(folder: Path) -> list[dict]:
    """Return the public record of the rounds, without values that follow from the noisy adapter or the schedule."""
    known = ("round", "learning_rate", "loss", "accuracy", "update_norm")
    rounds = [json.loads(line) for line in (folder / "rounds.jsonl").read_text().splitlines()]
    return [{k: v for k, v in r.items() if k not in known} for r in rounds]

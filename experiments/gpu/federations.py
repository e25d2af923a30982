"""The measurements that are whole federations: resuming, accuracy, Ray, real clients."""

from __future__ import annotations

import shutil
from pathlib import Path
from statistics import median
from typing import Any

import torch

from experiments.gpu.kit import Kit, Row
from fedpeft.config import RunConfig
from fedpeft.peft.adapter import State
from fedpeft.run.observer import RoundResult
from fedpeft.run.records import Records
from fedpeft.server.progress import Progress
from fedpeft.simulation.simulation import Simulation


class Until:
    """An observer that shows nothing, keeps the rounds' results, and ends the run after a round."""

    def __init__(self, last: int) -> None:
        self.last = last
        self.results: list[RoundResult] = []

    def round_done(self, result: RoundResult) -> bool:
        """Keep it; True: enough."""
        self.results.append(result)
        return result.round >= self.last

    def __getattr__(self, name: str) -> Any:
        return lambda *_, **__: None


def config(kit: Kit, **more: Any) -> RunConfig:
    """Few rounds of the encoder's, with one worker."""
    settings: dict[str, Any] = {
        "clients": 20,
        "cohort": 10,
        "rounds": 4,
        "dataset": kit.dataset(),
        "model": str(kit.encoder_folder()),
        "tokens": kit.size(128, 16),
        "workers": 1,
        "partition": "iid",
        "local_work": f"steps({kit.size(8, 2)})",
        "measure": "validation(every=4)",
    }
    return RunConfig(**(settings | more))


def rounds(settings: RunConfig, folder: Path, last: int = 1 << 30) -> tuple[Progress, list[RoundResult]]:
    """The rounds that are still to do in a folder, up to the `last`."""
    folder.mkdir(parents=True, exist_ok=True)
    observer = Until(last)
    simulation = Simulation(settings, folder, observer)
    try:
        progress = simulation.train(simulation.server(Records(folder)))
    finally:
        simulation.close()
    return progress, observer.results


def fresh(kit: Kit, name: str) -> Path:
    """An empty folder."""
    folder = kit.folder / name
    shutil.rmtree(folder, ignore_errors=True)
    return folder


def resume(kit: Kit) -> Row:
    """A run, the same again, and one that ends after two of its four rounds and is continued."""
    settings = config(kit)
    whole, _ = rounds(settings, fresh(kit, "whole"))
    again, _ = rounds(settings, fresh(kit, "again"))
    cut = fresh(kit, "cut")
    rounds(settings, cut, last=2)
    continued, _ = rounds(settings, cut)
    assert continued.round == whole.round
    return {
        "run": f"{settings.rounds} rounds, {_executor(settings)}",
        "weights": "random" if kit.assets is None else "real",
        "the same run again": _equal(again.adapter, whole.adapter),
        "continued after round 2": _equal(continued.adapter, whole.adapter),
    }


def _executor(settings: RunConfig) -> str:
    return "one by one" if "sequential" in settings.grid else "batched"


def _equal(a: State, b: State) -> str:
    return "equal bits" if all(torch.equal(a[name], b[name]) for name in b) else "OTHER BITS"


def accuracy(kit: Kit) -> Row:
    """A run of `python -m fedpeft.simulate` on real rows, from the start to its score."""
    from fedpeft.machine.terminal import Console
    from fedpeft.simulate import simulate

    settings = config(kit, rounds=kit.size(10, 2), clients=kit.size(50, 10), cohort=kit.size(10, 5), head="ridge")
    folder = fresh(kit, "accuracy")
    with open(kit.folder / "accuracy.log", "w", encoding="utf-8") as log:
        summary = simulate(settings, folder, False, Console(file=log)).as_dict()
    return {
        "run": f"{settings.rounds} rounds of {settings.cohort} clients, {settings.dtype}",
        "accuracy": summary["accuracy"],
        "frozen base, linear probe": summary["baseline_accuracy"],
        "seconds a round": summary["seconds_per_round"],
        "seconds in all": summary["seconds"],
    }


def ray(kit: Kit) -> Row:
    """Seconds of a round with one worker here and with one Ray actor."""
    from ray import shutdown

    try:
        here, there = (_seconds(rounds(config(kit, grid=grid), fresh(kit, grid))[1]) for grid in ("cohort", "ray"))
    finally:
        shutdown()
    return {"workers of this machine (s a round)": here, "Ray actors (s a round)": there, "Ray / here": there / here}


def _seconds(results: list[RoundResult]) -> float:
    """The first round loads the model."""
    return median(r.training_seconds or 0.0 for r in results[1:])


def real_clients(kit: Kit) -> Row:
    """Server and clients as processes, over mutual TLS, on a base in nf4."""
    from experiments.transport.clients import Federation, Settings

    folder = fresh(kit, "clients")
    folder.mkdir(parents=True)
    settings = Settings(
        dataset=kit.dataset(),
        model=str(kit.encoder_folder()),
        clients=2,
        rows=kit.size(48, 8),
        rounds=kit.size(3, 2),
        device=kit.device,
    )
    found = Federation(folder, settings).run("nf4", "nf4", "--tokens", str(kit.size(128, 16)))
    return {
        "base": "nf4",
        "clients": settings.clients,
        "rounds": settings.rounds,
        "seconds a round": found.summary["seconds_per_round"],
        "accuracy": found.summary["accuracy"],
        "peak resident GB of a client": found.peak / 1e9,
    }

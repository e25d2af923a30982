"""The measurements that run whole federations: resuming, accuracy, Ray, real clients."""

from __future__ import annotations

import shutil
from pathlib import Path
from statistics import median
from typing import Any

import torch

from experiments.gpu.kit import Kit, Row
from fedpeft.peft.adapter import State
from fedpeft.reporting.observer import RoundResult
from fedpeft.reporting.records import Records
from fedpeft.rounds.progress import ServerState
from fedpeft.simulation.simulation import Simulation
from fedpeft.wiring.config import RunConfig


class StoppingObserver:
    """An observer that prints nothing, keeps the results of rounds, and ends the run after a round."""

    def __init__(self, last: int) -> None:
        """Hold the number of the last round."""
        self.last = last
        self.results: list[RoundResult] = []

    def round_done(self, result: RoundResult) -> bool:
        """Keep it; True: enough."""
        self.results.append(result)
        return result.round >= self.last

    def __getattr__(self, name: str) -> Any:
        """Return a callback that does nothing, for all other events."""
        return lambda *_, **__: None


def create_config(kit: Kit, **more: Any) -> RunConfig:
    """Return the settings of a short run of the encoder, with one worker."""
    settings: dict[str, Any] = {
        "clients": 20,
        "cohort": 10,
        "rounds": 4,
        "dataset": kit.choose_dataset(),
        "model": str(kit.get_encoder_folder()),
        "tokens": kit.choose_size(128, 16),
        "workers": 1,
        "partition": "iid",
        "local_work": f"steps({kit.choose_size(8, 2)})",
        "measure": "validation(every=4)",
    }
    return RunConfig(**(settings | more))


def run_rounds(settings: RunConfig, folder: Path, last: int = 1 << 30) -> tuple[ServerState, list[RoundResult]]:
    """Run the remaining rounds of a folder, up to round `last`."""
    folder.mkdir(parents=True, exist_ok=True)
    observer = StoppingObserver(last)
    simulation = Simulation(settings, folder, observer)
    try:
        progress = simulation.train(simulation.server(Records(folder)))
    finally:
        simulation.close()
    return progress, observer.results


def create_folder(kit: Kit, name: str) -> Path:
    """Return an empty folder for a step."""
    folder = kit.folder / name
    shutil.rmtree(folder, ignore_errors=True)
    return folder


def resume(kit: Kit) -> Row:
    """Compare a run, its repetition, and a run that stops after two of its four rounds and is resumed."""
    settings = create_config(kit)
    whole, _ = run_rounds(settings, create_folder(kit, "whole"))
    again, _ = run_rounds(settings, create_folder(kit, "again"))
    cut = create_folder(kit, "cut")
    run_rounds(settings, cut, last=2)
    continued, _ = run_rounds(settings, cut)
    assert continued.round == whole.round
    return {
        "run": f"{settings.rounds} rounds, {_get_executor_name(settings)}",
        "weights": "random" if kit.assets is None else "real",
        "the same run again": _format_equality(again.adapter, whole.adapter),
        "continued after round 2": _format_equality(continued.adapter, whole.adapter),
    }


def _get_executor_name(settings: RunConfig) -> str:
    return "one by one" if "sequential" in settings.grid else "batched"


def _format_equality(a: State, b: State) -> str:
    return "equal bits" if all(torch.equal(a[name], b[name]) for name in b) else "OTHER BITS"


def measure_accuracy(kit: Kit) -> Row:
    """Run `fedpeft simulate` on real examples, from the start to the score."""
    from fedpeft.machine.terminal import Console
    from fedpeft.simulate import simulate

    settings = create_config(
        kit, rounds=kit.choose_size(10, 2), clients=kit.choose_size(50, 10), cohort=kit.choose_size(10, 5), head="ridge"
    )
    folder = create_folder(kit, "accuracy")
    with open(kit.folder / "accuracy.log", "w", encoding="utf-8") as log:
        summary = simulate(settings, folder, False, Console(file=log)).to_dict()
    return {
        "run": f"{settings.rounds} rounds of {settings.cohort} clients, {settings.dtype}",
        "accuracy": summary["accuracy"],
        "frozen base, linear probe": summary["baseline_accuracy"],
        "seconds a round": summary["seconds_per_round"],
        "seconds in all": summary["seconds"],
    }


def measure_ray(kit: Kit) -> Row:
    """Measure the seconds of a round with one local worker and with one Ray actor."""
    from ray import shutdown

    try:
        here, there = (
            _compute_seconds(run_rounds(create_config(kit, grid=grid), create_folder(kit, grid))[1])
            for grid in ("cohort", "ray")
        )
    finally:
        shutdown()
    return {"workers of this machine (s a round)": here, "Ray actors (s a round)": there, "Ray / here": there / here}


def _compute_seconds(results: list[RoundResult]) -> float:
    """Return the median training seconds of all rounds but the first, which loads the model."""
    return median(r.training_seconds or 0.0 for r in results[1:])


def run_real_clients(kit: Kit) -> Row:
    """Run server and clients as processes over mutual TLS, with a base in nf4."""
    from experiments.transport.clients import Federation, Settings

    folder = create_folder(kit, "clients")
    folder.mkdir(parents=True)
    settings = Settings(
        dataset=kit.choose_dataset(),
        model=str(kit.get_encoder_folder()),
        clients=2,
        rows=kit.choose_size(48, 8),
        rounds=kit.choose_size(3, 2),
        device=kit.device,
    )
    found = Federation(folder, settings).run("nf4", "nf4", "--tokens", str(kit.choose_size(128, 16)))
    return {
        "base": "nf4",
        "clients": settings.clients,
        "rounds": settings.rounds,
        "seconds a round": found.summary["seconds_per_round"],
        "accuracy": found.summary["accuracy"],
        "peak resident GB of a client": found.peak / 1e9,
    }

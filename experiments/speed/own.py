"""fedpeft's own rounds: a simulation's server, grid and workers, without evaluation."""

from __future__ import annotations

import dataclasses
import math
import tempfile
import time
from multiprocessing.connection import Connection
from pathlib import Path

from fedpeft.clients.workbench import WorkPlan

from experiments.speed.sides import Round, Variant, answer
from experiments.speed.workload import Silent, Workload
from fedpeft.peft.adapter import State
from fedpeft.run.observer import Metrics, RoundResult
from fedpeft.run.records import Records
from fedpeft.server.progress import Checkpoints
from fedpeft.server.sampling import FixedSize
from fedpeft.simulation.simulation import Simulation


class Timer(Silent):
    """Keeps the finished round."""

    result: RoundResult

    def round_done(self, result: RoundResult) -> None:
        """Keep it."""
        self.result = result


def plan_of(plan: WorkPlan, variant: Variant) -> WorkPlan:
    """The plan with the levers of a variant."""
    batched = variant.executor == "batched"
    return dataclasses.replace(
        plan,
        executor=variant.executor,
        dtype=variant.dtype or plan.dtype,
        clients_per_pass=plan.clients_per_pass if variant.together else 1,
        kernel=plan.kernel if variant.kernel and batched else "native",
        depth=plan.depth if variant.reuse and batched else 0,
    )


class Rounds(Simulation):
    """A simulation of one round on given rows, with the levers of a variant."""

    def __init__(self, load: Workload, variant: Variant, folder: Path) -> None:
        self.timer = Timer()
        self.once = 0.0
        config = dataclasses.replace(load.config, rounds=1, head="zero", dtype=variant.dtype or load.config.dtype)
        super().__init__(config, folder, self.timer)
        self.work = plan_of(load.plan, variant)
        self.partition, self.clients = load.partition, len(load.partition)
        self.sampler = FixedSize(self.clients, self.clients)
        self.start = load.start

    def evaluate(self, state: State, version: int) -> Metrics:
        """Nothing: training alone is timed."""
        return Metrics(math.nan, math.nan)

    def freeze(self, data_key: str, depth: int, name: str, base: str = "") -> None:
        """Only what training needs: without reuse, no features."""
        if depth:
            started = time.perf_counter()
            super().freeze(data_key, depth, name, base)
            self.once = max(self.once, time.perf_counter() - started)

    def one(self) -> Round:
        """One round from the start state."""
        with tempfile.TemporaryDirectory(dir=self.folder) as folder:
            self.checkpoints = Checkpoints(Path(folder) / "checkpoint")
            progress = self.train(self.server(Records(Path(folder))))
        seconds = self.timer.result.training_seconds
        assert seconds is not None, "a run without privacy"
        return Round(seconds, progress.adapter, self.once)


def run(connection: Connection, load: Workload, variants: dict[str, Variant]) -> None:
    """Start the workers of a variant when it is first asked for, do rounds when told to."""
    started: dict[str, Rounds] = {}
    with tempfile.TemporaryDirectory() as folder:

        def one_round(name: str) -> Round:
            if name not in started:
                place = Path(folder) / str(len(started))
                place.mkdir()
                started[name] = Rounds(load, variants[name], place)
            return started[name].one()

        try:
            answer(connection, one_round)
        finally:
            for rounds in started.values():
                rounds.close()

"""fedpeft's rounds: a simulation's server, grid and workers, without evaluation."""

from __future__ import annotations

import dataclasses
import math
import tempfile
import time
from functools import partial
from multiprocessing.connection import Connection
from pathlib import Path

from fedpeft.clients.workbench import WorkPlan

from experiments.speed.sides import Round, Variant, answer
from experiments.speed.workload import SilentObserver, Workload
from fedpeft.peft.adapter import State
from fedpeft.reporting.observer import Metrics, RoundResult
from fedpeft.reporting.records import Records
from fedpeft.reporting.workers import Workers, create_client_plan
from fedpeft.rounds.exchange import Transport
from fedpeft.rounds.features import RunParts, ServerModel, attach_features
from fedpeft.rounds.preparation import prepare
from fedpeft.rounds.progress import RunStore
from fedpeft.rounds.rounds import Server
from fedpeft.rounds.sampling import FixedSize
from fedpeft.simulation.grid import CohortGrid
from fedpeft.simulation.simulation import Simulation


class Timer(SilentObserver):
    """An observer that keeps the finished round."""

    result: RoundResult

    def round_done(self, result: RoundResult) -> None:
        """Keep the result."""
        self.result = result


def plan_of(plan: WorkPlan, variant: Variant) -> WorkPlan:
    """Return the plan with the switches of a variant."""
    batched = variant.executor == "batched"
    return dataclasses.replace(
        plan,
        executor=variant.executor,
        dtype=variant.dtype or plan.dtype,
        clients_per_pass=plan.clients_per_pass if variant.together else 1,
        kernel=plan.kernel if variant.kernel and batched else "native",
        depth=plan.depth if variant.reuse and batched else 0,
    )


class Rounds:
    """Rounds of a simulation's setup on given examples, with a variant's switches; each begins at the start state."""

    def __init__(self, load: Workload, variant: Variant, folder: Path) -> None:
        """Create the setup and start the workers."""
        config = dataclasses.replace(load.config, rounds=1, head="zero", dtype=variant.dtype or load.config.dtype)
        simulation = Simulation(config, folder, SilentObserver())
        self.folder = folder
        self.partition = load.partition
        self.setup = dataclasses.replace(simulation.setup, start=load.start)
        self.fixed = simulation.fixed
        clients = create_client_plan(self.setup, load.partition, folder, 0.0, None)
        self.workers = Workers(plan_of(load.plan, variant), clients, simulation.workers.machine, SilentObserver())
        self.once = 0.0

    def run_one(self) -> Round:
        """Run one round from the start state."""
        work, everyone = self.workers.work, len(self.partition)
        if work.depth:  # without reuse, training needs no features
            started = time.perf_counter()
            self.workers.freeze_rows()
            self.once = max(self.once, time.perf_counter() - started)
        timer = Timer()
        sizes, training = self.partition.sizes, self.setup.training
        grid = CohortGrid(
            self.workers.pool, sizes, work.clients_per_pass, lambda client: training.steps_for(int(sizes[client]))
        )
        with tempfile.TemporaryDirectory(dir=self.folder) as folder:
            place = Path(folder)
            sampler, records = FixedSize(everyone, everyone), Records(place)
            store = RunStore.from_records(records)
            transport = Transport(grid, timer.client_done)
            hooks = attach_features(RunParts(self.setup, transport, store, timer, ServerModel(_evaluate_nothing)))
            start = partial(prepare, self.setup, transport, self.fixed, None, timer.say)
            progress = Server(self.setup, transport, sampler, store, timer, hooks, start).run()
        seconds = timer.result.training_seconds
        assert seconds is not None, "a run without privacy"
        return Round(seconds, progress.adapter, self.once)

    def close(self) -> None:
        """End the workers."""
        self.workers.close()


def _evaluate_nothing(state: State, version: int) -> Metrics:
    """Return NaN metrics, since only training is timed."""
    return Metrics(math.nan, math.nan)


def run(connection: Connection, load: Workload, variants: dict[str, Variant]) -> None:
    """Start the workers of a variant when it is first asked for, do rounds when told to."""
    started: dict[str, Rounds] = {}
    with tempfile.TemporaryDirectory() as folder:

        def one_round(name: str) -> Round:
            if name not in started:
                place = Path(folder) / str(len(started))
                place.mkdir()
                started[name] = Rounds(load, variants[name], place)
            return started[name].run_one()

        try:
            answer(connection, one_round)
        finally:
            for rounds in started.values():
                rounds.close()

"""Flower's own simulation: FedAvg over its Ray backend, one actor per core and one thread per actor.

Tuned: an actor keeps the model and swaps the adapter. Untuned ("today"): it loads the model again in each call, as
Flower's examples do.
"""

from __future__ import annotations

import dataclasses
import functools
import os
import pickle
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from flwr.app import ArrayRecord, ConfigRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from flwr.serverapp import Grid, ServerApp
from flwr.serverapp.strategy import FedAvg
from flwr.simulation import run_simulation

from experiments.speed.plain import PlainClient
from experiments.speed.sides import Round, Variant, answer
from experiments.speed.workload import Workload
from fedpeft.data.cached_rows import load_cached_examples

QUIET = {
    "FLWR_TELEMETRY_ENABLED": "0",
    "FLWR_DISABLE_UPDATE_CHECK": "1",
    "RAY_DISABLE_METRICS_COLLECTION": "1",
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_memory_monitor_refresh_ms": "0",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
    "RAY_worker_niceness": "0",
}
"""No telemetry, no metrics, and actors with the priority of fedpeft's workers."""

ROUND_TIMEOUT_SECONDS = 3600


@functools.cache
def _load_workload(file: str, dtype: str) -> Workload:
    load: Workload = pickle.loads(Path(file).read_bytes())
    return dataclasses.replace(load, plan=dataclasses.replace(load.plan, dtype=dtype))


@functools.cache
def _get_client(file: str, dtype: str) -> PlainClient:
    return PlainClient(_load_workload(file, dtype).plan)


client_app = ClientApp()


@client_app.train()
def train(message: Message, context: Context) -> Message:
    """Train one client in a Ray actor."""
    config: Any = message.content["config"]
    load = _load_workload(config["workload"], config["dtype"])
    client = PlainClient(load.plan) if config["rebuild"] else _get_client(config["workload"], config["dtype"])
    received: Any = message.content["arrays"]
    job = load.create_job(int(context.node_config["partition-id"]), int(config["server-round"]))
    job = dataclasses.replace(job, received=dict(received.to_torch_state_dict()))
    trained = client.train(job, load_cached_examples(load.plan.data_key))
    content = {"arrays": ArrayRecord(trained), "metrics": MetricRecord({"num-examples": len(job.rows)})}
    return Message(RecordDict(content), reply_to=message)  # type: ignore[arg-type]


@dataclass(frozen=True)
class Federation:
    """A running simulation, as its server sees it.

    Attributes:
        grid: how the server reaches the clients.
        file: the workload of the clients, pickled.
    """

    grid: Grid
    file: Path

    def exchange(
        self, strategy: FedAvg, number: int, arrays: ArrayRecord, dtype: str, rebuild: bool = False
    ) -> Exchange:
        """Run round `number`, from 1, on the clients that the strategy chooses.

        Raises:
            RuntimeError: a client did not answer.
        """
        settings = ConfigRecord({"workload": str(self.file), "dtype": dtype, "rebuild": rebuild})
        messages = list(strategy.configure_train(number, arrays, settings, self.grid))
        replies = list(self.grid.send_and_receive(messages, timeout=ROUND_TIMEOUT_SECONDS))
        down, up = (sum(map(_count_bytes, some)) for some in (messages, replies))  # aggregation empties the replies
        after, _ = strategy.aggregate_train(number, replies)
        failed = [r.error for r in replies if r.has_error()]
        if after is None or failed or len(replies) != len(messages):
            raise RuntimeError(f"{len(replies)} of {len(messages)} clients answered; failures: {failed[:1]}")
        return Exchange(after, up, down)


@dataclass(frozen=True)
class Exchange:
    """The arrays after a round, and the bytes of its messages' content in each direction."""

    after: ArrayRecord
    uplink_bytes: int
    downlink_bytes: int


def _count_bytes(message: Message) -> int:
    return sum(record.count_bytes() for record in message.content.values()) if message.has_content() else 0


def start_simulation(load: Workload, serve: Callable[[Federation], None]) -> None:
    """Run `serve` as the server app of Flower's simulation of the workload's clients."""
    os.environ.update(QUIET)
    server_app = ServerApp()
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "workload"
        file.write_bytes(pickle.dumps(load))

        @server_app.main()
        def main(grid: Grid, context: Context) -> None:
            serve(Federation(grid, file))

        ray: dict[str, Any] = {"num_cpus": load.workers, "log_to_driver": False, "address": "local"}
        backend = {"client_resources": {"num_cpus": 1}, "init_args": ray}
        run_simulation(server_app, client_app, len(load.partition), backend_config=backend)


def run(connection: Connection, load: Workload, variants: dict[str, Variant]) -> None:
    """Start the simulation, do rounds when told to."""

    def serve(federation: Federation) -> None:
        strategy = FedAvg(fraction_train=1.0, fraction_evaluate=0.0, min_available_nodes=len(load.partition))

        def one_round(name: str) -> Round:
            variant = variants[name]
            started = time.perf_counter()
            dtype = variant.dtype or load.plan.dtype
            after = federation.exchange(strategy, 1, ArrayRecord(load.start), dtype, variant.rebuild).after
            return Round(time.perf_counter() - started, dict(after.to_torch_state_dict()))

        answer(connection, one_round)

    start_simulation(load, serve)

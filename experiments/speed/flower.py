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
    job = load.create_job(int(context.node_config["partition-id"]))
    job = dataclasses.replace(job, received=dict(received.to_torch_state_dict()))
    trained = client.train(job, load_cached_examples(load.plan.data_key))
    content = {"arrays": ArrayRecord(trained), "metrics": MetricRecord({"num-examples": len(job.rows)})}
    return Message(RecordDict(content), reply_to=message)  # type: ignore[arg-type]


def run(connection: Connection, load: Workload, variants: dict[str, Variant]) -> None:
    """Start the simulation, do rounds when told to."""
    os.environ.update(QUIET)
    clients = len(load.partition)
    server_app = ServerApp()
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "workload"
        file.write_bytes(pickle.dumps(load))

        @server_app.main()
        def main(grid: Grid, context: Context) -> None:
            strategy = FedAvg(fraction_train=1.0, fraction_evaluate=0.0, min_available_nodes=clients)

            def one_round(name: str) -> Round:
                variant = variants[name]
                settings = {
                    "workload": str(file),
                    "dtype": variant.dtype or load.plan.dtype,
                    "rebuild": variant.rebuild,
                }
                started = time.perf_counter()
                messages = strategy.configure_train(1, ArrayRecord(load.start), ConfigRecord(settings), grid)
                replies = list(grid.send_and_receive(messages, timeout=ROUND_TIMEOUT_SECONDS))
                after, _ = strategy.aggregate_train(1, replies)
                seconds = time.perf_counter() - started
                failed = [r.error for r in replies if r.has_error()]
                if after is None or failed or len(replies) != clients:
                    raise RuntimeError(f"{len(replies)} of {clients} clients answered; failures: {failed[:1]}")
                return Round(seconds, dict(after.to_torch_state_dict()))

            answer(connection, one_round)

        ray: dict[str, Any] = {"num_cpus": load.workers, "log_to_driver": False, "address": "local"}
        run_simulation(
            server_app, client_app, clients, backend_config={"client_resources": {"num_cpus": 1}, "init_args": ray}
        )

"""The Flower side: FedAvg and its server optimizers over LoRA, in Flower's simulation with persistent actors.

An actor keeps the model in the precision of the base, bf16 where the machine has it, and the tokenized examples. It
swaps the adapter from message to message. `python -m experiments.to_accuracy.flower ORDER.json` runs one order.
"""

from __future__ import annotations

import random
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from flwr.app import ArrayRecord
from flwr.serverapp.strategy import FedAdam, FedAvg, FedAvgM, FedYogi

from experiments.speed.flower import Federation, start_simulation
from experiments.to_accuracy.opponents import Bench
from experiments.to_accuracy.settings import Order
from fedpeft.reporting.console import silence_libraries
from fedpeft.rounds.clock import Clock

SERVERS: Mapping[str, tuple[type[FedAvg], dict[str, Any]]] = {
    "FedAvg": (FedAvg, {}),
    "FedAvgM 0.5": (FedAvgM, {"server_learning_rate": 1.0, "server_momentum": 0.5}),
    "FedAvgM 0.9": (FedAvgM, {"server_learning_rate": 0.3, "server_momentum": 0.9}),
    "FedAdam 1e-3": (FedAdam, {"eta": 1e-3}),
    "FedAdam 1e-2": (FedAdam, {"eta": 1e-2}),
    "FedYogi 1e-2": (FedYogi, {"eta": 1e-2}),
}
"""Server optimizers, as Flower has them. Momentum 0.9 steps ten times as far, so its rate is lower."""


def main(file: Path) -> None:
    """Run the rounds of an order, and write a line after each."""
    silence_libraries()
    order = Order.read(file)
    with Bench(order) as bench:
        kind, settings = SERVERS[order.server]
        clients = len(bench.load.partition)
        strategy = kind(
            fraction_train=bench.cohort / clients,
            min_train_nodes=bench.cohort,
            fraction_evaluate=0.0,
            min_available_nodes=clients,
            **settings,
        )

        def serve(federation: Federation) -> None:
            random.seed(bench.load.plan.seed)  # Flower draws cohorts from it
            bench.record(0, bench.load.start, Clock())
            arrays, number = ArrayRecord(bench.load.start), 0
            while bench.training_seconds < order.seconds:
                number, clock = number + 1, Clock()
                done = federation.exchange(strategy, number, arrays, bench.load.plan.dtype)
                # Flower's adaptive server optimizers return fp64, which would be sent in twice the bytes
                after = done.after.to_torch_state_dict()
                state = {name: after[name].to(tensor.dtype) for name, tensor in bench.load.start.items()}
                arrays = ArrayRecord(state)
                bench.record(number, state, clock, done.uplink_bytes, done.downlink_bytes)

        start_simulation(bench.load, serve)


if __name__ == "__main__":
    main(Path(sys.argv[1]))

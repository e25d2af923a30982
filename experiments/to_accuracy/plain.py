"""The centralized side: a peft model and AdamW on all examples in one process, with a thread per core.

It has no clients, so no bytes. `python -m experiments.to_accuracy.plain ORDER.json` runs one order.
"""

from __future__ import annotations

import itertools
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch

from experiments.speed.plain import PlainClient
from experiments.to_accuracy.opponents import Bench
from experiments.to_accuracy.settings import Order
from fedpeft.data.cached_rows import load_cached_examples
from fedpeft.reporting.console import silence_libraries
from fedpeft.rounds.clock import Clock

PIECES = 10
"""Evaluations per pass over the examples. A round of the federations trains on a tenth of them, too."""


def iterate_batches(bench: Bench, lengths: np.ndarray) -> Iterator[np.ndarray]:
    """Yield the example indices of each step, in one pass after another without end."""
    for number in itertools.count(1):
        yield from bench.load.create_job(0, number).create_batches(lengths)


def main(file: Path) -> None:
    """Train until the order's time is over, with an evaluation after each share of the examples."""
    silence_libraries()
    order = Order.read(file)
    with Bench(order) as bench:
        load = bench.load
        client = PlainClient(load.plan)
        torch.set_num_threads(load.workers)
        examples = load_cached_examples(load.plan.data_key)
        client.receive(load.start)
        training = load.plan.training
        optimizer, warmup = training.optimizer.create_optimizer(client.parameters, training.learning_rate)
        bench.record(0, load.start, Clock())
        steps = max(1, training.steps_for(len(load.partition.shard(0))) // PIECES)
        batches, number = iterate_batches(bench, examples.lengths), 0
        while bench.training_seconds < order.seconds:
            number, clock = number + 1, Clock()
            for rows in itertools.islice(batches, steps):
                client.step(examples.batch(rows), optimizer, warmup)
            state = {name: parameter.detach().clone() for name, parameter in client.parameters.items()}
            bench.record(number, state, clock)


if __name__ == "__main__":
    main(Path(sys.argv[1]))

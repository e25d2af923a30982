"""The measurements without a federation: parity, determinism, rounds, ways to train, clients per pass."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from statistics import median
from typing import Any

import torch
from fedpeft.clients.executor import Trained

from experiments.gpu.clock import empty_cache, measure_cost, time_interleaved
from experiments.gpu.kit import Kit, Row
from experiments.gpu.shapes import MINILM, Shape
from experiments.gpu.training import BATCHED, PLAIN, SEQUENTIAL, Load, compute_distance, create_trainer
from fedpeft.machine.cores import count_usable_cores

PASS = 16_384
"""Tokens per pass of many clients, in the curve over tokens per client and step."""

MOST_TOGETHER = 64


def load_of(kit: Kit, shape: Shape, precision: str, clients: int, steps: int, batch: int, tokens: int) -> Load:
    """Create a load of the kit's size, with real weights if the kit has them."""
    weights = kit.encoder if shape is MINILM else None
    if kit.tiny:
        clients, steps, batch, tokens = min(clients, 3), min(steps, 2), min(batch, 2), min(tokens, 16)
    return Load(kit.choose_shape(shape), precision, clients, steps, batch, tokens, weights)


def train_clients(load: Load, name: str, device: str) -> list[Trained]:
    """Train all clients of a load and return their results."""
    examples = load.create_examples()
    return list(create_trainer(name, load, examples, device).train(load.create_jobs(examples)))


def measure_parity(kit: Kit, shape: Shape, precision: str) -> Row:
    """Compare one client's gradients on this device and the CPU: two steps of plain SGD from equal weights."""
    load = load_of(kit, shape, precision, 1, 2, 4, 64)
    load = replace(load, optimizer="sgd", rate=0.1, portable=True)
    torch.set_num_threads(count_usable_cores())
    found = {device: train_clients(load, SEQUENTIAL, device)[0] for device in ("cpu", kit.device)}
    here, there = found["cpu"], found[kit.device]
    row = {
        "model": shape.name,
        "base": precision,
        "weights": _get_weights_name(load),
        "gradients differ by": compute_distance(there.state, here.state, load.start()),
        "loss, CPU": here.loss,
        "loss, here": there.loss,
    }
    batched = train_clients(load, BATCHED, kit.device)[0]
    return {**row, "batched from one by one": compute_distance(batched.state, there.state, load.start())}


def measure_determinism(kit: Kit, shape: Shape, precision: str, name: str) -> Row:
    """Train the same clients twice, and report whether all bits are equal."""
    load = load_of(kit, shape, precision, 4, 4, 4, 128)
    first, second = (train_clients(load, name, kit.device) for _ in range(2))
    equal = all(torch.equal(a.state[k], b.state[k]) for a, b in zip(first, second, strict=True) for k in a.state)
    return {
        "model": shape.name,
        "base": precision,
        "way": name,
        "equal bits": "yes" if equal else "NO",
        "updates differ by": compute_distance(second[0].state, first[0].state, load.start()),
    }


def measure_round_cost(
    kit: Kit, shape: Shape, precision: str, name: str, clients: int, steps: int, batch: int, tokens: int
) -> Row:
    """Measure seconds, tokens per second and memory of the training in a round."""
    load = load_of(kit, shape, precision, clients, steps, batch, tokens)
    examples = load.create_examples()
    jobs, trainer = load.create_jobs(examples), create_trainer(name, load, examples, kit.device)
    found = measure_cost(lambda: list(trainer.train(jobs)), kit.device, kit.choose_size(3, 1))
    return {
        "model": shape.name,
        "base": precision,
        "way": name,
        "weights": _get_weights_name(load),
        "clients": load.clients,
        "tokens of a step": load.batch * load.tokens,
        "seconds a round": found.seconds,
        "tokens/s": load.trained_tokens / found.seconds,
        "peak GB": found.gigabytes,
    }


def compare_with_plain(kit: Kit, shape: Shape, precision: str, batch: int, tokens: int, clients: int = 10) -> Row:
    """Compare fedpeft's executors with an interleaved plain loop: the loop's seconds over theirs."""
    load = load_of(kit, shape, precision, clients, 4, batch, tokens)
    seconds = _measure_seconds(kit, load, (PLAIN, SEQUENTIAL, BATCHED))
    return {
        "model": shape.name,
        "base": precision,
        "batch": load.batch,
        "tokens": load.tokens,
        "clients": load.clients,
        "plain loop (s)": median(seconds[PLAIN]),
        "plain / one by one": _compute_ratio(seconds, SEQUENTIAL),
        "plain / batched": _compute_ratio(seconds, BATCHED),
    }


def measure_ratio(kit: Kit, shape: Shape, per_step: int) -> Row:
    """Measure the plain loop's seconds over the batched executor's, in full passes of `per_step` tokens per client."""
    tokens = min(per_step, 128)
    clients = min(MOST_TOGETHER, max(2, PASS // per_step))
    load = load_of(kit, shape, "bf16", clients, 2, per_step // tokens, tokens)
    seconds = _measure_seconds(kit, load, (PLAIN, BATCHED))
    return {
        "model": shape.name,
        "tokens of a client's step": per_step,
        "clients in a pass": load.clients,
        "plain / batched": _compute_ratio(seconds, BATCHED),
        "batched, tokens/s": load.trained_tokens / median(seconds[BATCHED]),
    }


def measure_together(kit: Kit, shape: Shape, clients: int) -> Row:
    """Measure memory and speed of many clients in one pass: batch 4, 128 tokens each, bf16."""
    load = load_of(kit, shape, "bf16", clients, 2, 4, 128)
    examples = load.create_examples()
    jobs, trainer = load.create_jobs(examples), create_trainer(BATCHED, load, examples, kit.device)
    found = measure_cost(lambda: list(trainer.train(jobs)), kit.device, kit.choose_size(3, 1))
    return {
        "model": shape.name,
        "clients in a pass": clients,
        "tokens of a pass": load.clients * load.batch * load.tokens,
        "tokens/s": load.trained_tokens / found.seconds,
        "peak GB": found.gigabytes,
    }


def _measure_seconds(kit: Kit, load: Load, names: Sequence[str]) -> dict[str, list[float]]:
    examples = load.create_examples()
    jobs = load.create_jobs(examples)
    trainers = {name: create_trainer(name, load, examples, kit.device) for name in names}
    ways = {name: _create_training(trainer, jobs) for name, trainer in trainers.items()}
    found = time_interleaved(ways, kit.device, kit.choose_size(5, 1))
    ways.clear()
    trainers.clear()
    empty_cache(kit.device)
    return found


def _create_training(trainer: Any, jobs: Sequence[Any]) -> Any:
    return lambda: list(trainer.train(jobs))


def _compute_ratio(seconds: dict[str, list[float]], name: str) -> float:
    """Return the median ratio of the plain loop's seconds to those of `name`, within a repeat."""
    return median(plain / ours for plain, ours in zip(seconds[PLAIN], seconds[name], strict=True))


def _get_weights_name(load: Load) -> str:
    return "random" if load.weights is None else "real"

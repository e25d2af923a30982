"""The measurements that need no federation: parity, determinism, rounds, ways to train, clients in a pass."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from statistics import median
from typing import Any

import torch
from fedpeft.clients.executor import Trained

from experiments.gpu.clock import cost, empty, interleaved
from experiments.gpu.kit import Kit, Row
from experiments.gpu.shapes import MINILM, Shape
from experiments.gpu.training import BATCHED, PLAIN, SEQUENTIAL, Load, apart, way
from fedpeft.machine.hardware import usable_cores

PASS = 16_384
"""Tokens that a pass of many clients is filled with in the curve over tokens per client and step."""

MOST_TOGETHER = 64


def load_of(kit: Kit, shape: Shape, precision: str, clients: int, steps: int, batch: int, tokens: int) -> Load:
    """A load of the kit's size, on real weights where there are some."""
    weights = kit.encoder if shape is MINILM else None
    if kit.tiny:
        clients, steps, batch, tokens = min(clients, 3), min(steps, 2), min(batch, 2), min(tokens, 16)
    return Load(kit.shape(shape), precision, clients, steps, batch, tokens, weights)


def trained(load: Load, name: str, device: str) -> list[Trained]:
    """What all clients have come to."""
    examples = load.examples()
    return list(way(name, load, examples, device).train(load.jobs(examples)))


def parity(kit: Kit, shape: Shape, precision: str) -> Row:
    """One client's gradients here and on the CPU: two steps of plain SGD, from the same weights."""
    load = load_of(kit, shape, precision, 1, 2, 4, 64)
    load = replace(load, optimizer="sgd", rate=0.1, portable=True)
    torch.set_num_threads(usable_cores())
    found = {device: trained(load, SEQUENTIAL, device)[0] for device in ("cpu", kit.device)}
    here, there = found["cpu"], found[kit.device]
    row = {
        "model": shape.name,
        "base": precision,
        "weights": _weights(load),
        "gradients differ by": apart(there.state, here.state, load.start()),
        "loss, CPU": here.loss,
        "loss, here": there.loss,
    }
    batched = trained(load, BATCHED, kit.device)[0]
    return {**row, "batched from one by one": apart(batched.state, there.state, load.start())}


def determinism(kit: Kit, shape: Shape, precision: str, name: str) -> Row:
    """The same clients twice: all bits are equal, or not."""
    load = load_of(kit, shape, precision, 4, 4, 4, 128)
    first, second = (trained(load, name, kit.device) for _ in range(2))
    equal = all(torch.equal(a.state[k], b.state[k]) for a, b in zip(first, second, strict=True) for k in a.state)
    return {
        "model": shape.name,
        "base": precision,
        "way": name,
        "equal bits": "yes" if equal else "NO",
        "updates differ by": apart(second[0].state, first[0].state, load.start()),
    }


def round_cost(
    kit: Kit, shape: Shape, precision: str, name: str, clients: int, steps: int, batch: int, tokens: int
) -> Row:
    """Seconds, tokens per second and memory of the training in a round."""
    load = load_of(kit, shape, precision, clients, steps, batch, tokens)
    examples = load.examples()
    jobs, trainer = load.jobs(examples), way(name, load, examples, kit.device)
    found = cost(lambda: list(trainer.train(jobs)), kit.device, kit.size(3, 1))
    return {
        "model": shape.name,
        "base": precision,
        "way": name,
        "weights": _weights(load),
        "clients": load.clients,
        "tokens of a step": load.batch * load.tokens,
        "seconds a round": found.seconds,
        "tokens/s": load.trained_tokens / found.seconds,
        "peak GB": found.gigabytes,
    }


def against_plain(kit: Kit, shape: Shape, precision: str, batch: int, tokens: int, clients: int = 10) -> Row:
    """Our ways against a plain loop on the same rows, interleaved: ratios of its seconds to theirs."""
    load = load_of(kit, shape, precision, clients, 4, batch, tokens)
    seconds = _seconds(kit, load, (PLAIN, SEQUENTIAL, BATCHED))
    return {
        "model": shape.name,
        "base": precision,
        "batch": load.batch,
        "tokens": load.tokens,
        "clients": load.clients,
        "plain loop (s)": median(seconds[PLAIN]),
        "plain / one by one": _ratio(seconds, SEQUENTIAL),
        "plain / batched": _ratio(seconds, BATCHED),
    }


def ratio(kit: Kit, shape: Shape, per_step: int) -> Row:
    """The same for a number of tokens in a client's step, in passes that are full."""
    tokens = min(per_step, 128)
    clients = min(MOST_TOGETHER, max(2, PASS // per_step))
    load = load_of(kit, shape, "bf16", clients, 2, per_step // tokens, tokens)
    seconds = _seconds(kit, load, (PLAIN, BATCHED))
    return {
        "model": shape.name,
        "tokens of a client's step": per_step,
        "clients in a pass": load.clients,
        "plain / batched": _ratio(seconds, BATCHED),
        "batched, tokens/s": load.trained_tokens / median(seconds[BATCHED]),
    }


def together(kit: Kit, shape: Shape, clients: int) -> Row:
    """Memory and speed of a number of clients in a pass: batch 4, rows of 128 tokens, bf16."""
    load = load_of(kit, shape, "bf16", clients, 2, 4, 128)
    examples = load.examples()
    jobs, trainer = load.jobs(examples), way(BATCHED, load, examples, kit.device)
    found = cost(lambda: list(trainer.train(jobs)), kit.device, kit.size(3, 1))
    return {
        "model": shape.name,
        "clients in a pass": clients,
        "tokens of a pass": load.clients * load.batch * load.tokens,
        "tokens/s": load.trained_tokens / found.seconds,
        "peak GB": found.gigabytes,
    }


def _seconds(kit: Kit, load: Load, names: Sequence[str]) -> dict[str, list[float]]:
    examples = load.examples()
    jobs = load.jobs(examples)
    trainers = {name: way(name, load, examples, kit.device) for name in names}
    ways = {name: _training(trainer, jobs) for name, trainer in trainers.items()}
    found = interleaved(ways, kit.device, kit.size(5, 1))
    ways.clear()
    trainers.clear()
    empty(kit.device)
    return found


def _training(trainer: Any, jobs: Sequence[Any]) -> Any:
    return lambda: list(trainer.train(jobs))


def _ratio(seconds: dict[str, list[float]], name: str) -> float:
    """Of the plain loop's seconds, taken within a repeat."""
    return median(plain / ours for plain, ours in zip(seconds[PLAIN], seconds[name], strict=True))


def _weights(load: Load) -> str:
    return "random" if load.weights is None else "real"

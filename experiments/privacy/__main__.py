"""python -m experiments.privacy: the time that DP-SGD adds to a local step of the sequential executor.

Plain and private jobs on the same examples take turns. All are timed per example, because Poisson batches vary in size.
The main number is the median of the ratios of adjacent jobs. Methods whose gradients per example come from Opacus'
hooks are also timed with `vmap` of the whole model, the route of all other methods.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Annotated, Any

import numpy as np
import torch
import tyro
from fedpeft.clients.executor import Job, RowPrivacy
from fedpeft.clients.local_training import LocalTraining
from fedpeft.clients.private import PrivateExecutor

from experiments import exit_on_error
from fedpeft.data.rows import load_dataset
from fedpeft.models.base_model import resolve_model
from fedpeft.models.dtypes import DTYPES
from fedpeft.parts.families import LOCAL_OPTIMIZERS, PEFT_METHODS, TASKS
from fedpeft.peft.method import PrivacyRoute
from fedpeft.privacy.noise import RunKey


@dataclass(frozen=True)
class Command:
    """Options for timing DP-SGD against plain steps, interleaved."""

    dataset: Annotated[str, tyro.conf.arg(help="dataset whose training examples are used")] = "reuters_r8"
    model: Annotated[str, tyro.conf.arg(help="base model")] = "minilm"
    peft: Annotated[tuple[str, ...], tyro.conf.arg(help="PEFT methods")] = ("lora(layers=0)", "ia3(layers=0)")
    tokens: Annotated[int, tyro.conf.arg(help="longest text")] = 32
    batch_size: Annotated[int, tyro.conf.arg(help="examples per step")] = 8
    steps: Annotated[int, tyro.conf.arg(help="steps of a job")] = 8
    repeats: Annotated[int, tyro.conf.arg(help="turns of each type of job")] = 7


PLAIN = "plain"
"""The type of job without privacy; the others have the name of their route to gradients per example."""


def main(command: Command) -> None:
    """Print one line per method and route."""
    torch.set_num_threads(1)
    data = load_dataset(command.dataset)
    task, folder = TASKS.build(data.task), resolve_model(command.model)
    rows = task.tokenise(data.train.take(np.arange(400)), folder, command.tokens)
    print("| method | route | plain, ms a row | private, ms a row | ratio (median of pairs) |\n|---|---|---|---|---|")
    for spec in command.peft:
        times = measure(command, spec, task, folder, rows, data.classes)
        plain = times.pop(PLAIN)
        for route, private in times.items():
            ratio = statistics.median(b / a for a, b in zip(plain, private, strict=True))
            plain_ms, private_ms = (1e3 * statistics.median(seconds) for seconds in (plain, private))
            print(f"| {spec} | {route} | {plain_ms:.2f} | {private_ms:.2f} | {ratio:.2f} |", flush=True)


def measure(command: Command, spec: str, task: Any, folder: Any, rows: Any, classes: int) -> dict[str, list[float]]:
    """Return the seconds per example of the plain jobs and of the private ones by each route of the method."""
    own = PEFT_METHODS.build(spec).privacy
    routes: tuple[PrivacyRoute, ...] = ("hooks", "vmap") if own == "hooks" else (own,)
    kinds = {PLAIN: _create_timer(command, spec, task, folder, rows, classes, own, False)}
    kinds |= {route: _create_timer(command, spec, task, folder, rows, classes, route, True) for route in routes}
    times: dict[str, list[float]] = {kind: [] for kind in kinds}
    for repeat in range(command.repeats + 1):
        for kind in sorted(kinds, reverse=bool(repeat % 2)):
            seconds = kinds[kind](repeat + 1)
            if repeat:  # the first turn warms up
                times[kind].append(seconds)
    return times


def _create_timer(
    command: Command, spec: str, task: Any, folder: Any, rows: Any, classes: int, route: PrivacyRoute, private: bool
) -> Callable[[int], float]:
    """Create a function that runs the job of a round and returns its processor seconds per example."""
    method = PEFT_METHODS.build(spec)
    model = task.model(task.base(folder, DTYPES["fp32"]), classes)
    method.attach(model, "fp32")
    layout = method.layout(model)
    executor = PrivateExecutor(model, task, rows, layout, route)
    seen: list[int] = []
    batch = executor.batch

    def count_rows(index: Any) -> Any:
        seen.append(len(index))
        return batch(index)

    executor.batch = count_rows
    shard = np.arange(len(rows))
    even = LOCAL_OPTIMIZERS.build("adamw(head_rate=1.0)")
    local = LocalTraining(batch_size=command.batch_size, optimizer=even).replace_steps(command.steps)
    privacy = RowPrivacy(1.0, 1.0, command.batch_size / len(shard), RunKey(bytes(32)), 0) if private else None
    job = Job(
        0, 1, 0, shard, method.start(model, 0), frozenset(layout.names), local, 1e-3, form=layout.form, privacy=privacy
    )

    def run(round_number: int) -> float:
        seen.clear()
        started = time.process_time()
        next(iter(executor.train([replace(job, round=round_number)])))
        return (time.process_time() - started) / sum(seen)

    return run


if __name__ == "__main__":
    with exit_on_error():
        main(tyro.cli(Command, prog="python -m experiments.privacy"))

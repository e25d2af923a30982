"""python -m experiments.privacy: what DP-SGD adds to the time of a local step of the sequential executor.

Plain and private jobs on the same rows take turns; both are timed per row, because Poisson batches vary in size. The
number that counts is the median of the ratios of neighbouring jobs.
"""

from __future__ import annotations

import statistics
import time
from dataclasses import dataclass, replace
from typing import Annotated, Any

import numpy as np
import torch
import tyro
from fedpeft.clients.private import PrivateExecutor
from fedpeft.clients.training import Job, LocalTraining, RowPrivacy

from fedpeft.base_model import resolve_model
from fedpeft.data import load_dataset
from fedpeft.peft_method import PEFT_METHODS
from fedpeft.run_key import RunKey
from fedpeft.task import DTYPES, TASKS


@dataclass(frozen=True)
class Command:
    """Time DP-SGD against plain steps, interleaved."""

    dataset: Annotated[str, tyro.conf.arg(help="whose training rows are used")] = "reuters_r8"
    model: Annotated[str, tyro.conf.arg(help="base model")] = "minilm"
    peft: Annotated[tuple[str, ...], tyro.conf.arg(help="PEFT methods")] = ("lora(layers=0)", "ia3(layers=0)")
    tokens: Annotated[int, tyro.conf.arg(help="longest text")] = 32
    batch_size: Annotated[int, tyro.conf.arg(help="rows of a step")] = 8
    steps: Annotated[int, tyro.conf.arg(help="steps of a job")] = 8
    repeats: Annotated[int, tyro.conf.arg(help="pairs of jobs")] = 7


def main(command: Command) -> None:
    """Print one line per method."""
    torch.set_num_threads(1)
    data = load_dataset(command.dataset)
    task, folder = TASKS.build(data.task), resolve_model(command.model)
    rows = task.tokenise(data.train.take(np.arange(400)), folder, command.tokens)
    print("| method | plain, ms a row | private, ms a row | ratio (median of pairs) |\n|---|---|---|---|")
    for spec in command.peft:
        plain, private, ratios = measure(command, spec, task, folder, rows, data.classes)
        print(f"| {spec} | {1e3 * plain:.2f} | {1e3 * private:.2f} | {statistics.median(ratios):.2f} |", flush=True)


def measure(
    command: Command, spec: str, task: Any, folder: Any, rows: Any, classes: int
) -> tuple[float, float, list[float]]:
    """Median seconds a row of plain and private jobs, and the ratio of each pair."""
    method = PEFT_METHODS.build(spec)
    model = task.model(task.base(folder, DTYPES["fp32"]), classes)
    method.attach(model, "fp32")
    layout = method.layout(model)
    executor = PrivateExecutor(model, task, rows, layout, method.privacy)
    seen: list[int] = []
    batch = executor.batch

    def counted(index: Any) -> Any:
        seen.append(len(index))
        return batch(index)

    executor.batch = counted  # type: ignore[method-assign]
    shard = np.arange(len(rows))
    local = LocalTraining(batch_size=command.batch_size, steps=command.steps)
    received = method.start(model, 0)
    plain = Job(0, 1, 0, shard, received, frozenset(layout.names), local, 1e-3, form=layout.form)
    privacy = RowPrivacy(1.0, 1.0, command.batch_size / len(shard), RunKey(bytes(32)), 0)
    times: dict[bool, list[float]] = {False: [], True: []}
    for repeat in range(command.repeats + 1):
        for is_private in (False, True) if repeat % 2 else (True, False):
            job = replace(plain, round=repeat + 1, privacy=privacy if is_private else None)
            seen.clear()
            started = time.process_time()
            next(iter(executor.train([job])))
            if repeat:  # the first pair warms up
                times[is_private].append((time.process_time() - started) / sum(seen))
    ratios = [b / a for a, b in zip(times[False], times[True], strict=True)]
    return statistics.median(times[False]), statistics.median(times[True]), ratios


if __name__ == "__main__":
    main(tyro.cli(Command, prog="python -m experiments.privacy"))

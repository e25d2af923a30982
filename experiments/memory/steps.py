"""`python -m experiments.memory.steps`: peak memory and bytes of a client's round, with and without a backward pass.

One client trains LoRA in all blocks of a pretrained model, on one thread, in a new process for each measurement.
Optimizers take turns, so other work on the machine affects all of them. The kernel's high-water mark of resident memory
is reset when model and examples are loaded; the table shows what the round adds. Bytes are the length of the payload
that the client would send.
"""

from __future__ import annotations

import json
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

import tyro

from experiments import write_between

README = Path(__file__).with_name("README.md")
RESULTS = Path(__file__).with_name("steps.jsonl")
BEGIN, END = "<!-- steps: begin -->", "<!-- steps: end -->"

OPTIMIZERS = {"adamw": "fp32", "zeroth_order": "scalars(steps={steps}) | cast(dtype=fp32)"}
"""Optimizer -> codec of the update."""


@dataclass(frozen=True)
class Settings:
    """The measurements to run."""

    model: str = "minilm"
    """a part of the base models"""
    peft: str = "lora(rank=8, layers=0)"
    """PEFT method; layers=0: all blocks"""
    batch: int = 16
    """examples of a step"""
    tokens: int = 128
    """tokens of an example, all of them real"""
    steps: int = 4
    """steps of the round"""
    repeats: int = 3
    """processes for each optimizer"""
    only: str = ""
    """measure this optimizer once, in this process, and print one line"""
    write: bool = False
    """record the lines, and put the table into the README of this experiment"""


def read_status(field: str) -> int:
    """Return a number of /proc/self/status, in bytes."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return 1024 * next(int(line.split()[1]) for line in lines if line.startswith(f"{field}:"))


def measure(settings: Settings) -> dict[str, Any]:
    """Train one client's round in this process, and return its memory, seconds and bytes."""
    import numpy as np
    import torch
    from fedpeft.clients.executor import Job
    from fedpeft.clients.local_training import LocalTraining
    from fedpeft.clients.sequential import SequentialExecutor

    from fedpeft.communication.codec import parse_codec
    from fedpeft.data.examples import TokenRows
    from fedpeft.machine.seeds import derive_seed
    from fedpeft.models.base_model import resolve_model
    from fedpeft.parts.families import LOCAL_OPTIMIZERS, PEFT_METHODS, TASKS

    torch.set_num_threads(1)
    task, method = TASKS.build("classification"), PEFT_METHODS.build(settings.peft)
    folder = resolve_model(settings.model)
    model = task.model(task.base(folder, torch.float32), 2)
    method.attach(model, "fp32")
    layout, start = method.layout(model), method.start(model, 0)
    rows = np.arange(settings.batch * settings.steps)
    draws = np.random.default_rng(0)
    examples = TokenRows(
        draws.integers(1000, 20_000, len(rows) * settings.tokens).astype(np.int32),
        np.arange(len(rows) + 1) * settings.tokens,
        draws.integers(0, 2, len(rows)),
        padding_id=0,
    )
    executor = SequentialExecutor(model, task, examples, layout)
    training = LocalTraining(settings.batch, optimizer=LOCAL_OPTIMIZERS.build(settings.only))
    job = Job(0, 1, 0, rows, start, frozenset(layout.names), training.replace_steps(settings.steps), 1e-3, layout.form)
    Path("/proc/self/clear_refs").write_text("5")
    before, began = read_status("VmRSS"), time.perf_counter()
    [result] = executor.train([job])
    seconds, peak = time.perf_counter() - began, read_status("VmHWM")
    update = {name: result.state[name] - start[name] for name in layout.names}
    codec = parse_codec(OPTIMIZERS[settings.only].format(steps=settings.steps))
    payload = codec.encode(update, seed=derive_seed(0, "codec", 1, 0))
    return {
        "optimizer": settings.only,
        "parameters": sum(tensor.numel() for tensor in update.values()),
        "loaded_bytes": before,
        "round_bytes": max(0, peak - before),
        "uplink_bytes": len(payload),
        "seconds": round(seconds, 2),
    }


def read_results() -> list[dict[str, Any]]:
    """Return the recorded measurements."""
    return [json.loads(line) for line in RESULTS.read_text(encoding="utf-8").splitlines()]


def format_range(values: list[float], digits: int) -> str:
    """Return the median of values, with the least and the largest in parentheses."""
    least, middle, most = (f"{value:.{digits}f}" for value in (min(values), median(values), max(values)))
    return f"{middle} ({least} to {most})"


def format_table(lines: list[dict[str, Any]]) -> str:
    """Return the Markdown table of medians, and how the two ways compare."""
    heads = ("optimizer", "codec", "processes", "loaded, MB", "the round adds, MB", "uplink, bytes", "seconds a round")
    rows, found = [heads, ("---", "---", *["---:"] * 5)], {}
    for name, codec in OPTIMIZERS.items():
        own = [line for line in lines if line["optimizer"] == name]
        each = {key: median(line[key] for line in own) for key in ("loaded_bytes", "round_bytes", "uplink_bytes")}
        found[name] = each
        cells = (
            f"{each['loaded_bytes'] / 1e6:.0f}",
            format_range([line["round_bytes"] / 1e6 for line in own], 0),
            f"{each['uplink_bytes']:,.0f}",
            format_range([line["seconds"] for line in own], 1),
        )
        rows.append((f"`{name}`", f"`{codec.partition('(')[0]}`", str(len(own)), *cells))
    text = "\n".join("| " + " | ".join(row) + " |" for row in rows)
    one, other = found["zeroth_order"], found["adamw"]
    return (
        f"{text}\n\nMedians, and ranges over processes. Zeroth-order steps add "
        f"{one['round_bytes'] / other['round_bytes']:.2f} times the memory of steps with a backward pass, and send "
        f"{one['uplink_bytes']:,.0f} bytes instead of {other['uplink_bytes']:,.0f}."
    )


def main(settings: Settings) -> int:
    """Measure all optimizers in turn, and print the table."""
    if settings.only:
        print(json.dumps(measure(settings)))
        return 0
    given = (
        *("--model", settings.model, "--peft", settings.peft, "--batch", str(settings.batch)),
        *("--tokens", str(settings.tokens), "--steps", str(settings.steps)),
    )
    lines: list[dict[str, Any]] = []
    for _ in range(settings.repeats):
        for name in OPTIMIZERS:
            command = [sys.executable, "-m", "experiments.memory.steps", *given, "--only", name]
            done = subprocess.run(command, capture_output=True, text=True, check=False)
            if done.returncode:
                print(f"{name}: {done.stderr.strip()}", file=sys.stderr)
                return 1
            lines.append(json.loads(done.stdout.splitlines()[-1]))
            print(json.dumps(lines[-1]), flush=True)
    print(format_table(lines))
    if settings.write:
        RESULTS.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
        write_between(README, BEGIN, END, format_table(lines))
    return 0


if __name__ == "__main__":
    sys.exit(main(tyro.cli(Settings, description=__doc__)))

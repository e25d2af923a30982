"""Which error do the bits of the downlink buy? A run's final state, sent by several grids and scored.

    python -m experiments.codecs.states runs/NAME

Compares one step size for all tensors with steps that grow with the root of a tensor's magnitude
(`compute_balanced_weights`, which runs use). Errors are norm(x - x') / norm(x) of the movement since the start.
Cross-entropy and accuracy are measured on the validation examples.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch
from torch import Tensor

from experiments import exit_on_error
from fedpeft.communication.codec import parse_codec
from fedpeft.communication.decoding import decode
from fedpeft.communication.downlink import compute_balanced_weights
from fedpeft.errors import RunError
from fedpeft.machine.terminal import Console
from fedpeft.peft.adapter import State, subtract_states
from fedpeft.reporting.console import ConsoleObserver, silence_libraries
from fedpeft.rounds.progress import Checkpoints
from fedpeft.simulation.simulation import Simulation
from fedpeft.wiring.config import read_config

GRIDS = (
    ("grid(bits=1.5, dead=0.2)", False),
    ("grid(bits=1.5, dead=0.2)", True),
    ("grid(bits=1.5)", True),
    ("grid(bits=1.98)", True),
    ("grid(bits=3.0)", False),
    ("grid(bits=3.0)", True),
    ("grid(bits=4.0)", True),
)
"""Grid, and whether its steps are balanced."""
KINDS = {"A": "lora_A", "B": "lora_B", "head": "head."}
"""Groups of tensors with separate errors, by a part of their names."""


def flatten(state: State, part: str) -> Tensor:
    """Return all entries of the tensors whose names contain `part`."""
    return torch.cat([tensor.flatten().double() for name, tensor in sorted(state.items()) if part in name])


def main() -> None:
    """Measure the grids and print the table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("run", type=Path, help="folder of a run with lora and a strategy without residual")
    folder: Path = parser.parse_args().run
    progress = Checkpoints(folder / "checkpoint").load()
    if progress is None:
        raise RunError(f"{folder} holds no checkpoint of a run; make one with: fedpeft simulate")
    silence_libraries()
    config = read_config(folder / "config.toml")
    simulation = Simulation(config, folder, ConsoleObserver(Console(stderr=True)))
    simulation.workers.freeze(simulation.workers.work.data_key, simulation.workers.work.depth, "frozen layers")
    start, shapes = simulation.setup.start, simulation.setup.layout.shapes
    if not all(any(part in name for name in start) for part in KINDS.values()):
        raise RunError(f"{folder} is a run of {config.peft}; this command takes one of lora with a classification head")
    moved = subtract_states(progress.adapter, start)
    exact = simulation.workers.evaluate(progress.adapter, 0)
    print(f"exact: cross-entropy {exact.loss:.4f}, accuracy {exact.accuracy:.4f}")
    errors_of = " | ".join(f"error of {kind}" for kind in KINDS)
    print(f"| grid | steps | B/parameter | {errors_of} | cross-entropy | accuracy |")
    print("|---|---|---|" + "---|" * (len(KINDS) + 2))
    for text, balance in GRIDS:
        payload = parse_codec(f"{text} | rans").encode(
            moved, weights=compute_balanced_weights(moved) if balance else None, shapes=shapes
        )
        arrived = decode(payload, shapes)
        score = simulation.workers.evaluate({name: start[name] + arrived[name] for name in start}, 0)
        errors = [
            float((flatten(arrived, part) - flatten(moved, part)).norm() / flatten(moved, part).norm())
            for part in KINDS.values()
        ]
        size = len(payload) / sum(tensor.numel() for tensor in moved.values())
        cells = [text, "balanced" if balance else "one", f"{size:.3f}", *(f"{e:.3f}" for e in errors)]
        print(f"| {' | '.join(cells)} | {score.loss:.4f} | {score.accuracy:.4f} |", flush=True)
    simulation.close()


if __name__ == "__main__":
    with exit_on_error():
        main()

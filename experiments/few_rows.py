"""python -m experiments.few_rows [--dataset X] [--head H]: closed-form heads by the number of training examples.

Solves heads from random subsets of the training examples, drawn again for each of `--draws`, and scores them on all
test examples. One head is your choice, by default ridge regression at the strength that is usual for many examples. The
other is ridge regression at the strength that generalized cross-validation chooses
(`fedpeft.aggregation.cross_validation`).
"""

from __future__ import annotations

import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import numpy as np
import torch
import tyro
from rich.table import Table

import fedpeft
from experiments import exit_on_error
from experiments.ladder.rungs import compute_frozen_features
from fedpeft.aggregation.cross_validation import USUAL
from fedpeft.aggregation.head_start import HeadStart
from fedpeft.errors import ConfigError
from fedpeft.machine.terminal import Console
from fedpeft.parts.families import HEADS
from fedpeft.reporting.console import ConsoleObserver
from fedpeft.simulation.simulation import Simulation

Features = tuple[torch.Tensor, torch.Tensor]


@dataclass(frozen=True)
class Command:
    """The options of the command."""

    dataset: str = "reviews"
    rows: Annotated[tuple[int, ...], tyro.conf.arg(help="numbers of training examples")] = (
        *(100, 200, 400, 600, 1000, 2000, 4000),
    )
    draws: Annotated[int, tyro.conf.arg(help="random subsets per number, at least 1")] = 5
    tokens: Annotated[int, tyro.conf.arg(help="most tokens per text")] = 64
    all_blocks: Annotated[bool, tyro.conf.arg(help="use features of all blocks, like head2toe")] = False
    head: Annotated[str, tyro.conf.arg(help="head to compare with `ridge`")] = f"ridge(strength={USUAL:g})"


def compute_features(command: Command) -> tuple[Features, Features]:
    """Return frozen features and classes of the training examples and of the test examples."""
    config = fedpeft.RunConfig(dataset=command.dataset, tokens=command.tokens, peft="linear_probe")
    with tempfile.TemporaryDirectory() as folder, ConsoleObserver(Console(stderr=True)) as observer:
        simulation = Simulation(config, Path(folder), observer)
        try:
            parts = simulation.rows.all, simulation.rows.dataset.test
            of_parts = (compute_frozen_features(simulation, part, command.all_blocks)["mean"] for part in parts)
            found = [torch.from_numpy(features).double() for features in of_parts]
        finally:
            simulation.close()
    train, test = (torch.from_numpy(np.asarray(part.labels, np.int64)) for part in parts)
    return (found[0], train), (found[1], test)


def score_head(head: HeadStart, rows: Features, test: Features) -> tuple[float, float]:
    """Return accuracy in percent and cross-entropy in nats of the head solved from `rows`."""
    features, labels = rows
    classes = int(max(labels.max(), test[1].max())) + 1
    solved = head.solve(head.statistics(features, labels, classes), features.shape[1], classes)
    logits = test[0] @ solved["head.weight"].T + solved["head.bias"]
    loss = torch.nn.functional.cross_entropy(logits, test[1])
    return 100 * float((logits.argmax(1) == test[1]).double().mean()), float(loss)


def main(command: Command, console: Console) -> None:
    """Measure the heads and print the table.

    Raises:
        ConfigError: fewer than one draw, no examples, or an unknown head.
    """
    if command.draws < 1 or min(command.rows, default=0) < 1:
        raise ConfigError(f"--draws {command.draws} and --rows {command.rows} must be at least 1")
    other, ridge = HEADS.build(command.head), HEADS.build("ridge")
    (features, labels), test = compute_features(command)
    table = Table(title=f"{command.dataset}: {features.shape[1]} features, {command.draws} draws, mean (least to most)")
    for heading in ("rows", f"{command.head} (%)", "ridge (%)", "loss (nats)", "loss of ridge (nats)"):
        table.add_column(heading)
    for count in (count for count in command.rows if count <= len(labels)):
        found = []
        for draw in range(command.draws):
            some = torch.randperm(len(labels), generator=torch.Generator().manual_seed(draw))[:count]
            rows = features[some], labels[some]
            found.append([*score_head(other, rows, test), *score_head(ridge, rows, test)])
        right, loss, of_ridge, loss_of_ridge = np.asarray(found).T
        spans = [f"{a.mean():.1f} ({a.min():.1f} to {a.max():.1f})" for a in (right, of_ridge)]
        table.add_row(str(count), *spans, f"{loss.mean():.3f}", f"{loss_of_ridge.mean():.3f}")
    console.print(table)


if __name__ == "__main__":
    with exit_on_error():
        main(tyro.cli(Command, prog="python -m experiments.few_rows"), Console(width=110))

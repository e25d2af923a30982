"""The tasks, the sides, and the search space of the two opponents."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from experiments.ladder.settings import ONE_CLIENT
from fedpeft.machine import seeds

Fields = Mapping[str, Any]
"""Fields of `RunConfig`."""

TASKS: Mapping[str, Fields] = {
    "reviews": {"dataset": "reviews", "clients": 100, "cohort": 10},
    "code_types": {"dataset": "code_types", "partition": "natural", "clients": 0, "cohort": 8},
    "reuters_r8": {"dataset": "reuters_r8", "clients": 100, "cohort": 10},
}
"""The federation of each task, which all sides share. Packages are the clients of code_types, as in the ladder."""

SEEDS = (0, 1, 2, 3, 4)
"""Seeds of the comparison."""

LEVEL_SEEDS = (100, 101, 102)
"""Seeds of the Flower runs that levels are derived from. Runs of the comparison would favor their own luck."""

SEARCH_SEED = 200
"""Seed of all trials of the search."""

EARLIER = "557f6816"
"""The commit whose default is the fourth side."""

SIDES: Mapping[str, str] = {
    "flower": "Flower, tuned",
    "plain": "plain centralized loop, tuned",
    "default": "fedpeft, present default",
    "earlier": f"fedpeft, default of {EARLIER}",
}
"""The sides, with their names in tables."""

TRIALS: Mapping[str, int] = {"flower": 12, "plain": 3}
"""Trials per task of each searched side. A search for fedpeft's default has at most those of Flower."""

SEARCH_SECONDS, SECONDS = 120.0, 240.0
"""Training time of an opponent's run, without its startup and its evaluations, in the search and afterwards."""


@dataclass(frozen=True)
class Trial:
    """The settings that a search chooses.

    Attributes:
        learning_rate: learning rate of AdamW, which has a warm-up of 8 steps.
        head_rate: learning rate of the head, relative to the adapter's.
        batch_size: examples per step.
        blocks: number of upper blocks with LoRA of rank 8; 0: all.
        epochs: passes of a client over its examples in a round; a plain loop has no rounds.
        server: name of the server optimizer in `experiments.to_accuracy.flower.SERVERS`.
    """

    learning_rate: float
    head_rate: float
    batch_size: int
    blocks: int
    epochs: int = 1
    server: str = "FedAvg"

    @property
    def fields(self) -> dict[str, Any]:
        """The trial as settings of a run, whose head begins at zero, as that of a Flower project does."""
        return {
            "peft": f"lora(layers={self.blocks})",
            "head": "zero",
            "learning_rate": self.learning_rate,
            "batch_size": self.batch_size,
            "local_work": f"epochs({float(self.epochs)})",
            "optimizer": f"adamw(warmup=8, head_rate={self.head_rate:g}, schedule=constant)",
        }


SPACE: Mapping[str, tuple[Any, ...]] = {
    "learning_rate": (5e-4, 1e-3, 2e-3, 4e-3),
    "head_rate": (0.1, 1.0),
    "batch_size": (4, 8, 16),
    "blocks": (2, 4, 0),
    "epochs": (1, 2, 4),
    "server": ("FedAvg", "FedAvg", "FedAvgM 0.5", "FedAvgM 0.9", "FedAdam 1e-3", "FedAdam 1e-2", "FedYogi 1e-2"),
}
"""The values that a trial is drawn from. FedAvg is named twice, since the six others are variants of it."""

FIRST = Trial(learning_rate=2e-3, head_rate=0.1, batch_size=4, blocks=4)
"""The first trial: the local training of fedpeft's present default."""

PLAIN_FIRST = Trial(learning_rate=1e-3, head_rate=1.0, batch_size=16, blocks=4)
"""The plain loop's first trial: the best of `experiments.ladder` on reviews and code_types."""


def draw_trials(side: str) -> list[Trial]:
    """Return the trials of a side, all different; the draws are the same in every execution."""
    random = seeds.create_generator(0, f"to_accuracy {side}")
    trials = [FIRST if side == "flower" else PLAIN_FIRST]
    while len(trials) < TRIALS[side]:
        drawn = Trial(**{name: values[random.integers(len(values))] for name, values in SPACE.items()})
        if side == "plain":
            drawn = replace(drawn, epochs=1, server="FedAvg")
        if drawn not in trials:
            trials.append(drawn)
    return trials


@dataclass(frozen=True)
class Job:
    """A run of a side.

    Attributes:
        stage: "search", "levels" or "compare".
        task: name of the task.
        side: name of the side.
        seed: seed of the run.
        trial: the opponent's settings; None: fedpeft's own defaults.
    """

    stage: str
    task: str
    side: str
    seed: int
    trial: Trial | None = None

    @property
    def key(self) -> dict[str, Any]:
        """The fields of a line of results.jsonl that identify the job."""
        return asdict(self)

    @property
    def seconds(self) -> float:
        """Training time after which an opponent's run ends."""
        return SEARCH_SECONDS if self.stage == "search" else SECONDS

    def create_fields(self, task: Fields) -> dict[str, Any]:
        """Return the settings of the run, those of the shared federation `task` included."""
        fields = {**task, "seed": self.seed}
        if self.trial is not None:
            fields |= self.trial.fields
        return fields | ONE_CLIENT if self.side == "plain" else fields


@dataclass(frozen=True)
class Order:
    """What an opponent's process does.

    Attributes:
        fields: fields of `RunConfig`.
        server: name of the server optimizer.
        seconds: training time after which it ends; the last round may exceed it.
        folder: folder for rounds.jsonl.
    """

    fields: Mapping[str, Any]
    server: str
    seconds: float
    folder: str

    @classmethod
    def read(cls, file: Path) -> Order:
        """Read an order."""
        return cls(**json.loads(file.read_text(encoding="utf-8")))

    def write(self, file: Path) -> None:
        """Write the order."""
        file.write_text(json.dumps(asdict(self)), encoding="utf-8")


def describe(job: Job) -> str:
    """Return the name of a job in messages."""
    settings = "" if job.trial is None else ", ".join(f"{name} {value}" for name, value in asdict(job.trial).items())
    return f"{job.task}, {SIDES[job.side]}, seed {job.seed}" + (f" ({settings})" if settings else "")

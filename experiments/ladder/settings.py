"""All settings of a ladder's runs, as fields of `RunConfig`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

Fields = dict[str, Any]


@dataclass(frozen=True)
class Task:
    """A dataset and the settings tried on it.

    Attributes:
        dataset: the value of `--dataset`.
        federated: label -> fields of the federation; the first one names the federation.
        heads: fields of the federation of a linear head that reads all blocks (head2toe).
        pooled: label -> fields of the adapter trained on all examples; the best on validation examples counts.
        alone: fields of the adapter that a client trains on its own examples.
        full: fields of full fine-tuning on all examples.
    """

    dataset: str
    federated: dict[str, Fields]
    heads: Fields
    pooled: dict[str, Fields]
    alone: Fields
    full: Fields


SHARED: Fields = {"tokens": 128, "measure": "validation(every=1)"}
"""Settings of all runs; other settings keep their defaults."""

ONE_CLIENT: Fields = {"clients": 1, "cohort": 1, "partition": "iid"}
"""A federation with one client, which trains on all given examples."""

TWO_BLOCKS = "lora(layers=2)"
FOUR_BLOCKS = "lora(layers=4)"
ALL_BLOCKS = "lora(layers=0)"
HEAD = "head2toe"


def create_passes(count: float, pieces: int, **fields: Any) -> Fields:
    """Return fields for `count` passes over the examples in `pieces` rounds, each followed by validation."""
    return {"rounds": pieces, "local_work": f"epochs({count / pieces})", "batch_size": 16} | fields


def create_natural(rounds: int, cohort: int, **fields: Any) -> Fields:
    """Return fields of a federation of the examples' owners."""
    return {"partition": "natural", "clients": 0, "rounds": rounds, "cohort": cohort} | fields


def create_grouped(rounds: int, cohort: int, **fields: Any) -> Fields:
    """Return fields of a federation of 100 groups of the examples' owners."""
    return {"partition": "grouped", "clients": 100, "rounds": rounds, "cohort": cohort} | fields


FULL = create_passes(2, 4, peft="full", learning_rate=5e-5)
ALONE = create_passes(4, 4, peft=TWO_BLOCKS, learning_rate=1e-3, batch_size=8)

TASKS = {
    "code_types": Task(
        dataset="code_types",
        federated={
            "4 blocks, 2e-3": create_natural(12, 8, peft=FOUR_BLOCKS, learning_rate=2e-3, batch_size=8),
            "2 blocks, 2e-3": create_natural(12, 8, peft=TWO_BLOCKS, learning_rate=2e-3, batch_size=8),
            "all blocks, 1e-3": create_natural(12, 8, peft=ALL_BLOCKS, learning_rate=1e-3, batch_size=8),
        },
        heads=create_natural(12, 8, peft=HEAD, batch_size=8),
        pooled={
            "4 blocks, 1e-3": create_passes(2, 4, peft=FOUR_BLOCKS, learning_rate=1e-3),
            "2 blocks, 1e-3": create_passes(2, 4, peft=TWO_BLOCKS, learning_rate=1e-3),
            "all blocks, 5e-4": create_passes(2, 4, peft=ALL_BLOCKS, learning_rate=5e-4),
        },
        alone=ALONE,
        full=FULL,
    ),
    "reviews": Task(
        dataset="reviews",
        federated={
            "4 blocks, 2e-3": create_grouped(20, 10, peft=FOUR_BLOCKS, learning_rate=2e-3),
            "2 blocks, 2e-3": create_grouped(20, 10, peft=TWO_BLOCKS, learning_rate=2e-3),
            "2 blocks, 4e-3": create_grouped(20, 10, peft=TWO_BLOCKS, learning_rate=4e-3),
            "2 blocks, 1e-3": create_grouped(20, 10, peft=TWO_BLOCKS, learning_rate=1e-3),
            "3 blocks, 2e-3": create_grouped(20, 10, peft="lora(layers=3)", learning_rate=2e-3),
            "all blocks, 1e-3": create_grouped(20, 10, peft=ALL_BLOCKS, learning_rate=1e-3),
            "all blocks, 2e-3": create_grouped(20, 10, peft=ALL_BLOCKS, learning_rate=2e-3),
        },
        heads=create_grouped(20, 10, peft=HEAD),
        pooled={
            "4 blocks, 1e-3": create_passes(2, 4, peft=FOUR_BLOCKS, learning_rate=1e-3),
            "2 blocks, 1e-3": create_passes(2, 4, peft=TWO_BLOCKS, learning_rate=1e-3),
            "all blocks, 5e-4": create_passes(2, 4, peft=ALL_BLOCKS, learning_rate=5e-4),
            "all blocks, 1e-3": create_passes(2, 4, peft=ALL_BLOCKS, learning_rate=1e-3),
        },
        alone=ALONE,
        full=FULL,
    ),
    "fashion_mnist": Task(
        dataset="fashion_mnist(rows=6000, test_rows=2000)",
        federated={
            "all blocks, 2e-3": {"clients": 20, "cohort": 10, "peft": ALL_BLOCKS},
            "all blocks, 1e-3": {"clients": 20, "cohort": 10, "peft": ALL_BLOCKS, "learning_rate": 1e-3},
            "4 blocks, 2e-3": {"clients": 20, "cohort": 10, "peft": FOUR_BLOCKS},
            "4 blocks, 5e-4": {"clients": 20, "cohort": 10, "peft": FOUR_BLOCKS, "learning_rate": 5e-4},
        },
        heads={"clients": 20, "cohort": 10, "peft": HEAD},
        pooled={
            "all blocks, 3e-4": create_passes(8, 8, peft=ALL_BLOCKS, learning_rate=3e-4),
            "4 blocks, 3e-4": create_passes(8, 8, peft=FOUR_BLOCKS, learning_rate=3e-4),
        },
        alone=create_passes(8, 8, peft=ALL_BLOCKS, learning_rate=3e-4, batch_size=8),
        full=FULL,
    ),
    "20newsgroups": Task(
        dataset="20newsgroups",
        federated={"defaults, 4e-3": {"learning_rate": 4e-3}},
        heads={"peft": HEAD},
        pooled={
            "2 blocks, 1e-3": create_passes(2, 4, peft=TWO_BLOCKS, learning_rate=1e-3),
            "all blocks, 5e-4": create_passes(2, 4, peft=ALL_BLOCKS, learning_rate=5e-4),
        },
        alone=ALONE,
        full=FULL,
    ),
}

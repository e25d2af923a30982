"""Advice before a run starts: settings that suit its clients, and settings that have no effect."""

from __future__ import annotations

from collections.abc import Iterator

from fedpeft.clients.drift import SkipsSteps
from fedpeft.data.partition import IgnoresOwners, PartitionStatistics
from fedpeft.errors import FedpeftError
from fedpeft.models.readout import ALL_BLOCKS
from fedpeft.parts.families import PARTITIONS, SERVER_OPTIMIZERS
from fedpeft.parts.spec import parse_spec
from fedpeft.privacy.sum_mechanism import SumMechanism
from fedpeft.wiring.auto_defaults import ADAPTER, FAR_APART, can_train_head_alone
from fedpeft.wiring.checks.rules import check_label_shift, check_server
from fedpeft.wiring.config import RunConfig
from fedpeft.wiring.setup import Setup

MANY_CLASSES = 20
"""Up to so many ridge has been a start that is at most 1.5 points lower, or is the higher one (docs/choosing.md)."""

MANY = 1000
"""Clients that are many: fewer of one step each have not been looked at."""


def advise(setup: Setup, statistics: PartitionStatistics, most: int) -> Iterator[str]:
    """Yield sentences of advice.

    Args:
        setup: of the run.
        statistics: of the clients' rows.
        most: steps of a client in a round, of the one that takes most.
    """
    if _has_label_skew(setup, statistics.label_distance):
        yield (
            f"clients hold different classes (label skew {statistics.label_distance:.2f}): if steps are undone, or "
            "nothing is gained, try --drift label_shift"
        )
    one_step_each = statistics.clients >= MANY and _is_one_step(setup, round(statistics.rows_median))
    if one_step_each and _can_use_adam(setup):
        yield (
            "most clients take one step per round, and a step of AdamW is equally long for few examples and for all: "
            "plain SGD on many small clients and Adam on the server learn more (docs/choosing.md)"
        )
    if _can_train_head_alone(setup):
        yield (
            "a linear head on all blocks of the frozen base is often better than lora for images, at a fraction of the "
            "work: try --peft head2toe, too (docs/choosing.md)"
        )
    if _has_many_classes(setup):
        yield (
            f"there are {setup.facts.classes} classes: if some have far more examples than others, --head discriminant "
            "starts higher than ridge, from the same sums (docs/choosing.md)"
        )
    if _has_unused_owners(setup.config):
        owner = parse_spec(setup.config.dataset).settings["owner"]
        yield (
            f"the column {owner} names each example's owner, but the partition {setup.config.partition} does not use "
            "it: --partition natural --clients 0 makes a client of each owner"
        )
    if _is_one_client(setup, statistics.clients):
        yield (
            f"a round asks one client of {statistics.clients}, so nothing is averaged: --cohort all asks all of them"
        )
    yield from advise_on_steps(setup, most)


def advise_on_steps(setup: Setup, most: int) -> Iterator[str]:
    """Yield sentences about settings that have no effect if a client takes at most `most` steps in a round."""
    optimizer = setup.training.optimizer
    summed = isinstance(setup.mechanism, SumMechanism) and setup.mechanism.per_example
    if not summed and optimizer.share(most - 1) <= 0.5:
        told = "1 step" if most == 1 else f"{most} steps"
        yield (
            f"warmup={optimizer.warmup} of --optimizer starts again in each round, and a round has {told} at "
            f"most: none is taken at more than {optimizer.share(most - 1):.2f} of the learning rate"
        )
    for correction in setup.drift.corrections:
        if most == 1 and isinstance(correction, SkipsSteps):
            yield (
                f"{correction.name}'s factors take turns in the steps of a round, and with one step a round A never "
                "moves"
            )


def _has_label_skew(setup: Setup, label_skew: float | None) -> bool:
    """Return whether label_shift may help; `label_skew` is the mean total variation, 0 to 1; None: no classes."""
    if label_skew is None or label_skew < FAR_APART or setup.drift.needs_shares or setup.secure_sum is not None:
        return False
    try:
        check_label_shift(setup.task, setup.config.head, setup.head, setup.mechanism)
    except FedpeftError:
        return False
    return True


def _can_train_head_alone(setup: Setup) -> bool:
    """Return whether a user has named lora although the default head for images suits the other settings."""
    return setup.method.name == ADAPTER and can_train_head_alone(setup, setup.facts, ())


def _has_many_classes(setup: Setup) -> bool:
    """Return whether the head starts from ridge regression on the labels of very many classes.

    A head on all blocks, the default for images, does not count.
    """
    of_classes = setup.task.targets == "classes" and setup.facts.classes > MANY_CLASSES
    return of_classes and setup.head.fits_labels and setup.method.reads != ALL_BLOCKS


def _has_unused_owners(config: RunConfig) -> bool:
    """Return whether a user has named a column of owners, and a partition that ignores it."""
    named = parse_spec(config.dataset).settings.get("owner")
    return bool(named) and isinstance(PARTITIONS.build(config.partition), IgnoresOwners)


def _is_one_step(setup: Setup, rows: int) -> bool:
    """Return whether a client with so many rows takes one step with an adaptive optimizer."""
    return setup.training.steps_for(rows) == 1 and not setup.training.optimizer.plain


def _is_one_client(setup: Setup, clients: int) -> bool:
    """Return whether the cohort is a share of the clients that amounts to one client."""
    is_share = isinstance(setup.config.cohort, float) and setup.mechanism is None
    return is_share and clients > 1 and setup.compute_cohort_size(clients) == 1


def _can_use_adam(setup: Setup) -> bool:
    """Return whether the server steps by the mean update, and could use Adam instead."""
    try:
        check_server(setup.strategy, SERVER_OPTIMIZERS.build("adam"))
    except FedpeftError:
        return False
    return setup.mechanism is None and setup.server_optimizer.pace is not None

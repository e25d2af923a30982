"""What a run is told before it begins that its settings do, or leave undone, and nobody would see."""

from __future__ import annotations

from typing import TYPE_CHECKING

from fedpeft.errors import FedpeftError
from fedpeft.run.checks import check_label_shift

if TYPE_CHECKING:
    from fedpeft.run.setup import Setup

FAR_APART = 0.55
"""Label skew above which label_shift has gained (0.63, 0.73); at 0.47 it cost something: experiments/harm."""


def on_drift(setup: Setup, label_skew: float | None) -> str:
    """What to try where clients hold different classes; empty: nothing.

    Args:
        setup: of the run.
        label_skew: mean total variation between clients' and all rows' class shares, 0 to 1; None: no classes.
    """
    if label_skew is None or label_skew < FAR_APART or setup.drift.needs_shares or setup.secure_sum is not None:
        return ""
    try:
        check_label_shift(setup.facts.task, setup.config.head, setup.head, setup.mechanism)
    except FedpeftError:
        return ""
    return (
        f"clients hold different classes (label skew {label_skew:.2f}): where steps are undone, or nothing is gained, "
        "try --drift label_shift"
    )


def on_steps(setup: Setup, most: int) -> list[str]:
    """What local steps never come to where a round has few of them.

    Args:
        setup: of the run.
        most: steps of a client in a round, of the one that takes most.
    """
    told, optimizer = [], setup.training.optimizer
    summed = setup.mechanism is not None and setup.mechanism.summed and setup.mechanism.per_example
    if not summed and optimizer.share(most - 1) <= 0.5:
        told.append(
            f"warmup={optimizer.warmup} of --optimizer begins anew in each round, and a round has {most} steps at "
            f"most: none is taken at more than {optimizer.share(most - 1):.2f} of the learning rate"
        )
    if most == 1 and any(correction.name == "la_lora" for correction in setup.drift.corrections):
        told.append("la_lora's factors take turns in the steps of a round, and with one step a round A never moves")
    return told

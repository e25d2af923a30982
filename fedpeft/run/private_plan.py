"""How a private run trains where its user names a budget, and says nothing of training.

    --privacy "dp_sgd(epsilon=8)"

Whether there is training at all the mechanism decides by its signal to noise (`Mechanism.trains`). If there is, the
batch, the local steps, the learning rates, the optimizer and the clipping norm follow from rows, clients, rounds and
the cohort. Nothing is tuned on what the rows say, so nothing of it costs privacy. Who sets one of `LEFT` sets all.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from fedpeft.config import RunConfig
from fedpeft.parts import part_text
from fedpeft.privacy.mechanism import Exposure
from fedpeft.run import checks
from fedpeft.run.setup import Setup, chosen_parts

LEFT = ("batch_size", "local_work", "learning_rate", "optimizer")
"""What is planned where all of it is left at its default."""


def planned(setup: Setup, federation: Exposure) -> Setup:
    """The setup with what its mechanism plans; the same one where it plans nothing.

    The planned settings say plan=False, so that a run that is continued stays what it was.

    Raises:
        FedpeftError: what is planned does not go with the other settings.
    """
    mechanism, defaults = setup.mechanism, _defaults()
    if mechanism is None or not mechanism.protects or mechanism.noise_multiplier is not None or not mechanism.plan:
        return setup
    if any(getattr(setup.config, name) != defaults[name] for name in LEFT) or not mechanism.trains(federation):
        return setup
    plan = mechanism.planned_training(federation)
    if plan is None:
        return setup
    chosen = dataclasses.replace(plan.mechanism, plan=False)
    config = dataclasses.replace(
        setup.config,
        batch_size=plan.batch_size,
        local_work=f"steps(count={plan.steps}, walk=False)",
        learning_rate=plan.learning_rate,
        optimizer=OPTIMIZER,
        privacy=part_text(chosen),
    )
    made = dataclasses.replace(setup, **{**vars(chosen_parts(config)), "config": config})
    checks.check(made)
    return made


OPTIMIZER = "sgd(warmup=0, head_rate=1.0, schedule=constant)"
"""Noise is in every entry alike: what divides by its size, as AdamW does, follows the noise. The head's gradients are
clipped and noised with the adapter's as one vector, so it has their rate."""


def _defaults() -> Mapping[str, Any]:
    return {field.name: field.default for field in dataclasses.fields(RunConfig)}

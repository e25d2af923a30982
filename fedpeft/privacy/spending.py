"""A description of what a privacy budget is spent for."""

from __future__ import annotations

import math

from fedpeft.privacy.exposure import Exposure
from fedpeft.privacy.mechanism import Mechanism


def describe_spending(mechanism: Mechanism, exposure: Exposure, noise: float) -> str:
    """Return one line on how a budget is spent if the head has a private start.

    Args:
        mechanism: the mechanism whose budget it is.
        exposure: what costs depend on.
        noise: noise multiplier of the start.
    """
    trains, share = mechanism.trains(exposure), mechanism.start_share(exposure)
    rounds = f"the rest is for {exposure.rounds} rounds" if trains else "no round of training is planned"
    line = f"{share:.0%} of the budget is for the start of the head, noise multiplier {noise:.4g}; {rounds}"
    if mechanism.epsilon is None:
        return line
    head = math.prod(exposure.layout.shapes["head.weight"])
    start, training = mechanism.signal_to_noise(exposure, share, head), mechanism.training_signal(exposure)
    fewer = (
        ""
        if trains
        else f"; at most {mechanism.count_trainable_entries(exposure):,} trained numbers rise above the noise"
    )
    return (
        f"{line}; signal to noise, if all examples agreed: {start:.3g} of the start, {training:.3g} of training with "
        f"half of the budget, where {mechanism.least_signal(exposure):g} is enough{fewer}"
    )

"""The reference without federation: the same adapter trained on all clients' rows together, from the same start.

Its work is cut into as many pieces as the federation has rounds, each of as many rows, so that the learning rate falls
as it does there. A rate that suits a few dozen local steps, whose average over a cohort calms the noise, can be too
high for hundreds of steps in a row (on the default task it diverges). So several rates are tried side by side, and the
one with the least validation loss is the reference: nothing is won by a weak one.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

from fedpeft.errors import RunError
from fedpeft.peft.adapter import State

RATES = (1.0, 0.5, 0.25)
"""What is tried, in units of the run's own learning rate."""

Step = Callable[[Mapping[float, State], int], dict[float, State]]
"""The states by rate after one more piece of work, counted from 1."""


def best_pooled(
    start: State, pieces: int, step: Step, loss: Callable[[State], float], advance: Callable[[], None]
) -> tuple[State, float]:
    """The best trained state, and its rate out of `RATES`.

    A try that after a quarter of the work is worse than the start has diverged, and ends there.

    Args:
        loss: on the validation rows.
        advance: called after each piece.

    Raises:
        RunError: all tries diverged.
    """
    least = loss(start)
    states: dict[float, State] = dict.fromkeys(RATES, start)
    for piece in range(1, pieces + 1):
        states = step(states, piece)
        if piece == max(1, pieces // 4) < pieces:
            states = {rate: state for rate, state in states.items() if loss(state) <= least}
            if not states:
                raise RunError(
                    "training on the pooled rows diverges at the run's learning rate, at half and at a quarter of it; "
                    "take a lower --learning-rate"
                )
        advance()
    losses = {rate: loss(state) for rate, state in states.items()}
    rate = min(losses, key=losses.__getitem__)
    return states[rate], rate

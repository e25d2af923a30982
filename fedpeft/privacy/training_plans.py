"""How clients train where a budget alone is named, by formula.

A head that is trained alone is led until noise has moved the weights of a class by a set length, or as far as steps
of a set length lead; an adapter as far as runs whose training was heard, in few rounds as in many.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

from fedpeft.aggregation.server_optimizer import Pace
from fedpeft.privacy.exposure import Exposure
from fedpeft.privacy.mechanism import Mechanism, Training

MOMENTUM, ROUNDS = 0.9, 20
"""The server's momentum, from this many rounds on; plans were looked at with as many."""


@dataclass(frozen=True)
class HeadAlone:
    """How far a head is led that is trained alone, looked at on frozen features (docs/decisions.md).

    Attributes:
        noise: how far noise may move the weights of a class.
        stride: how long steps are at most in the mean, if all data agree and without momentum: longer ones overshoot,
            however little noise there is.
    """

    noise: float
    stride: float

    def distance(self, mechanism: Mechanism, federation: Exposure, steps: Pace, count: int) -> float:
        """How far `count` steps lead together, at most as far as the server's `steps` let them.

        Weights of features that are longer are led less far.
        """
        classes = federation.layout.shapes["head.weight"][0]
        far = self.noise * mechanism.training_signal(federation) * math.sqrt(classes)
        return min(far, self.stride * count / (1 - steps.momentum)) / federation.length


OF_CLIENTS, OF_ROWS = HeadAlone(noise=3.5, stride=5.5), HeadAlone(noise=4.2, stride=7.875)
"""Where clients are clipped, and where rows are."""

MOST_ASKED = 10_000
"""The most clients of which a plan asks all in each round; of more, a tenth is heard well enough."""

AUDIBLE_HEAD = 15.0
"""The least signal to noise at which rounds are planned for the head alone, where there is one noise for all."""

AUDIBLE_WHITENED = 5.0
"""The same, where its features are whitened: training gained at 4.8 and above on three tasks, and lost at 2.8 on one
(docs/decisions.md)."""

CLIENTS_DISTANCE = 4.0
"""How far all planned rounds lead an adapter, if all clients agree: rounds x clip, as in the privacy study."""

STEPS = 20
"""Of rows, planned over all rounds, at least."""

HEAD_CLIP = 2.0
"""Of rows, where the head alone is trained. A smaller norm makes the gradients of nearly all rows as long, whatever is
left to learn from them, and leads to weights that are too sure of themselves."""


@dataclass(frozen=True)
class Way:
    """Where the gradients of rows lead.

    Attributes:
        distance: how far all planned steps lead, if all rows agree: the sum of steps x learning rate x clip.
        clip: what the gradient of a row is clipped to.
        head_rate: how many times as far a head is led that is not alone.
    """

    distance: float
    clip: float
    head_rate: float


OWN_NOISE = Way(distance=81.9, clip=0.3, head_rate=10.0)
"""Of an adapter, as a Reuters R8 run above the noise: rates 2.6 and 26, with momentum (docs/privacy-plan.md)."""

ONE_NOISE = Way(distance=31.5, clip=8.0, head_rate=5.0)
"""Of an adapter: looked at on the reviews (docs/decisions.md)."""

WHITENED_RATE, WHITENED_CLIP = 4.0, 1.0
"""Of a head alone on whitened features: at first twice Newton's steps, which fall to nothing (docs/decisions.md)."""

ONE_NOISE_RATE = 0.25
"""With which rows join a round of an adapter under one noise: hardly more noise than all, for a quarter of the work."""


def planned_for_clients(mechanism: Mechanism, federation: Exposure, pace: Pace | None) -> Training:
    """One step of a client on all of its rows, twice as long as the clipping norm where its gradient has norm 1 (of a
    head alone, the length of its features).

    Under momentum that is named an adapter is led as far as `CLIENTS_DISTANCE` in the long run, in few rounds less far.

    Args:
        mechanism: what clips clients.
        federation: the run.
        pace: of the server's steps; None: they are planned, too.
    """
    momentum = MOMENTUM if federation.head_alone and federation.rounds >= ROUNDS else 0.0
    steps = pace or Pace(momentum=momentum)
    distance = CLIENTS_DISTANCE
    if federation.head_alone:
        distance = OF_CLIENTS.distance(mechanism, federation, steps, federation.rounds)
    clip = float(f"{distance / (steps.reach * federation.rounds):.3g}") if mechanism.clip == 1.0 else mechanism.clip
    norm = federation.length if federation.head_alone else 1.0
    return Training(
        mechanism=replace(mechanism, clip=clip),
        batch_size=max(1, int(federation.rows.max())),
        steps=1,
        learning_rate=float(f"{2 * clip / norm:.3g}") if norm != 1.0 else 2 * clip,
        optimizer="sgd(warmup=0, head_rate=1.0, schedule=constant)",
        momentum=0.0 if pace is not None else momentum,
    )


def planned_for_whitened(mechanism: Mechanism, federation: Exposure, pace: Pace | None) -> Training:
    """All rows in each round, at rates that fall to nothing.

    The Hessian of a softmax is at most half of its features' moments (Boehning, Annals of the Institute of Statistical
    Mathematics 1992), so that a rate of 2 is a step of Newton's that never overshoots. More rounds than were looked at
    lead no farther: where features hardly vary, nothing holds back what noise adds up to.
    """
    server = pace or Pace()
    return Training(
        mechanism=replace(mechanism, clip=WHITENED_CLIP) if mechanism.clip == 1.0 else mechanism,
        batch_size=max(1, math.ceil(mechanism.start_signal(federation) / federation.clients)),
        steps=1,
        learning_rate=float(f"{WHITENED_RATE * min(1.0, ROUNDS / federation.rounds) / server.reach:.3g}"),
        optimizer="sgd(warmup=0, head_rate=1.0, schedule=linear)",
    )


def planned_for_rows(
    mechanism: Mechanism, federation: Exposure, pace: Pace | None, way: Way, steps: int = 1, rate: float = 1.0
) -> Training:
    """Rates fall from round to round, and would be 0 in the one after the last.

    The budget buys the same signal to noise in few steps on many rows as in many steps on few, but for the floor of
    small sampling rates' noise, which few steps feel less.

    Args:
        mechanism: what clips rows.
        federation: the run.
        pace: of the server's steps; None: they are planned, too.
        way: of an adapter and its head.
        steps: in a round.
        rate: with which a row joins a step.
    """
    momentum = MOMENTUM if pace is None and federation.rounds >= ROUNDS else 0.0
    server = pace or Pace(momentum=momentum)
    if federation.head_alone:
        far = OF_ROWS.distance(mechanism, federation, server, steps * federation.rounds)
        way = Way(far, HEAD_CLIP * federation.length, head_rate=1.0)
    clip = way.clip if mechanism.clip == 1.0 else mechanism.clip
    constant = (federation.rounds + 1) / 2  # as many rounds at the first one's rate lead as far
    mean = rate * mechanism.start_signal(federation) / federation.clients  # rows, as many as all may know
    return Training(
        mechanism=replace(mechanism, clip=clip),
        batch_size=max(1, round(mean) if rate < 1 else math.ceil(mean)),
        steps=steps,
        learning_rate=float(f"{way.distance / (server.reach * clip * steps * constant):.3g}"),
        optimizer=f"sgd(warmup=0, head_rate={way.head_rate}, schedule=linear)",
        momentum=momentum,
    )

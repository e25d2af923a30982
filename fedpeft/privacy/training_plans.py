"""Training plans by formula, for users who state nothing but a privacy budget.

A head that is trained alone is moved until noise has moved the weights of a class by a set length, or as far as steps
of a set length lead. An adapter is moved as far as in runs whose training clearly exceeded its noise, in few rounds as
in many.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Protocol, runtime_checkable

from fedpeft.aggregation.server_optimizer import Pace
from fedpeft.privacy.exposure import Exposure
from fedpeft.privacy.mechanism import Mechanism

MOMENTUM, ROUNDS = 0.9, 20
"""The server's momentum, and the fewest rounds for it; plans were tested with this many rounds."""


@dataclass(frozen=True)
class Training:
    """The training that a mechanism plans for clients.

    Attributes:
        mechanism: the mechanism with the settings that it has chosen.
        batch_size: expected examples of a local step, at least 1.
        steps: local steps in a round, at least 1.
        learning_rate: learning rate of the adapter.
        optimizer: optimizer of the clients. It takes plain steps, because noise is equal in all entries, and an
            optimizer that divides by their size would follow the noise.
        momentum: momentum of the server, on noisy means; 0: none, or the user has set the server's steps.
    """

    mechanism: Mechanism
    batch_size: int
    steps: int
    learning_rate: float
    optimizer: str
    momentum: float = 0.0


@runtime_checkable
class PlansTraining(Protocol):
    """A mechanism that plans how clients train, by formula, if the user states a budget alone."""

    def asks_all(self, exposure: Exposure) -> bool:
        """Return whether the plan asks all clients in each round if no cohort is named."""

    def plan_training(self, exposure: Exposure, pace: Pace | None = None) -> Training:
        """Return how clients should train.

        Args:
            exposure: the run.
            pace: the server's steps; None: this plan chooses them, too.
        """


@dataclass(frozen=True)
class HeadAlone:
    """How far a head that is trained alone is moved, chosen on frozen features (docs/decisions.md).

    Attributes:
        noise: how far noise may move the weights of a class.
        stride: the largest mean length of steps, if all data agree and without momentum. Longer steps overshoot,
            however little noise there is.
    """

    noise: float
    stride: float

    def distance(self, mechanism: Mechanism, exposure: Exposure, steps: Pace, count: int) -> float:
        """Return how far `count` steps lead together, at most as far as the server's `steps` allow.

        Weights of longer features are moved less far.
        """
        classes = exposure.layout.shapes["head.weight"][0]
        far = self.noise * mechanism.training_signal(exposure) * math.sqrt(classes)
        return min(far, self.stride * count / (1 - steps.momentum)) / exposure.length


OF_CLIENTS, OF_ROWS = HeadAlone(noise=3.5, stride=5.5), HeadAlone(noise=4.2, stride=7.875)
"""Distances if clients are clipped, and if examples are."""

MOST_ASKED = 10_000
"""The most clients of which a plan asks all in each round; among more, a tenth carries enough signal."""

LEAST_SIGNAL_HEAD = 15.0
"""The least signal-to-noise ratio at which rounds are planned for the head alone, with one noise for all clients."""

LEAST_SIGNAL_WHITENED = 5.0
"""The same for whitened features.

Training improved accuracy at 4.8 and above on three tasks, and reduced it at 2.8 on one (docs/decisions.md).
"""

CLIENTS_DISTANCE = 4.0
"""How far all planned rounds move an adapter if all clients agree: rounds x clip, as in the privacy study."""

STEPS = 20
"""The fewest steps over examples that are planned over all rounds."""

HEAD_CLIP = 2.0
"""Clipping norm of examples if the head alone is trained.

A smaller norm gives the gradients of nearly all examples the same length, whatever there is left to learn from them,
and leads to overconfident weights.
"""


@dataclass(frozen=True)
class Way:
    """How far the gradients of examples lead.

    Attributes:
        distance: how far all planned steps lead, if all examples agree: the sum of steps x learning rate x clip.
        clip: clipping norm of an example's gradient.
        head_rate: how many times as far a head is moved that is trained with an adapter.
    """

    distance: float
    clip: float
    head_rate: float


OWN_NOISE = Way(distance=81.9, clip=0.3, head_rate=10.0)
"""For an adapter if each client adds noise, from a Reuters R8 run that clearly exceeded its noise.

Its rates were 2.6 and 26, with momentum (docs/privacy-plan.md).
"""

ONE_NOISE = Way(distance=31.5, clip=8.0, head_rate=5.0)
"""For an adapter if all clients share one noise, chosen on the reviews (docs/decisions.md)."""

WHITENED_RATE, WHITENED_CLIP = 4.0, 1.0
"""For a head alone on whitened features: at first twice Newton's steps, which fall to 0 (docs/decisions.md)."""

ONE_NOISE_RATE = 0.25
"""Probability with which examples join a round of an adapter under one noise.

It costs hardly more noise than using all examples, for a quarter of the work.
"""


def plan_for_clients(mechanism: Mechanism, exposure: Exposure, pace: Pace | None) -> Training:
    """Plan one step of a client on all of its examples.

    The step is twice as long as the clipping norm if its gradient has norm 1 (for a head alone, the norm of its
    features). If the user sets a momentum, an adapter is moved as far as `CLIENTS_DISTANCE` in the long run, and less
    in few rounds.

    Args:
        mechanism: the mechanism, which clips clients.
        exposure: the run.
        pace: the server's steps; None: they are planned, too.
    """
    momentum = MOMENTUM if exposure.head_alone and exposure.rounds >= ROUNDS else 0.0
    steps = pace or Pace(momentum=momentum)
    distance = CLIENTS_DISTANCE
    if exposure.head_alone:
        distance = OF_CLIENTS.distance(mechanism, exposure, steps, exposure.rounds)
    clip = float(f"{distance / (steps.reach * exposure.rounds):.3g}") if mechanism.clip == 1.0 else mechanism.clip
    norm = exposure.length if exposure.head_alone else 1.0
    return Training(
        mechanism=replace(mechanism, clip=clip),
        batch_size=max(1, int(exposure.rows.max())),
        steps=1,
        learning_rate=float(f"{2 * clip / norm:.3g}") if norm != 1.0 else 2 * clip,
        optimizer="sgd(warmup=0, head_rate=1.0, schedule=constant)",
        momentum=0.0 if pace is not None else momentum,
    )


def plan_for_whitened(mechanism: Mechanism, exposure: Exposure, pace: Pace | None) -> Training:
    """Plan rounds over all examples for a head on whitened features, at rates that fall to 0.

    The Hessian of a softmax is at most half of its features' moments (Boehning, Annals of the Institute of Statistical
    Mathematics 1992). So a rate of 2 is a Newton step that never overshoots. More rounds than in our experiments lead
    no farther: in directions in which features hardly vary, nothing limits the accumulated noise.
    """
    server = pace or Pace()
    return Training(
        mechanism=replace(mechanism, clip=WHITENED_CLIP) if mechanism.clip == 1.0 else mechanism,
        batch_size=max(1, math.ceil(mechanism.start_signal(exposure) / exposure.clients)),
        steps=1,
        learning_rate=float(f"{WHITENED_RATE * min(1.0, ROUNDS / exposure.rounds) / server.reach:.3g}"),
        optimizer="sgd(warmup=0, head_rate=1.0, schedule=linear)",
    )


def plan_for_rows(
    mechanism: Mechanism, exposure: Exposure, pace: Pace | None, way: Way, steps: int = 1, rate: float = 1.0
) -> Training:
    """Plan steps over examples, at rates that fall from round to round and would be 0 after the last one.

    The budget buys the same signal-to-noise ratio in few steps on many examples as in many steps on few. Only the noise
    floor of small sampling rates differs, and few steps suffer less from it.

    Args:
        mechanism: the mechanism, which clips examples.
        exposure: the run.
        pace: the server's steps; None: they are planned, too.
        way: how far an adapter and its head are moved.
        steps: steps in a round.
        rate: probability with which an example joins a step.
    """
    momentum = MOMENTUM if pace is None and exposure.rounds >= ROUNDS else 0.0
    server = pace or Pace(momentum=momentum)
    if exposure.head_alone:
        far = OF_ROWS.distance(mechanism, exposure, server, steps * exposure.rounds)
        way = Way(far, HEAD_CLIP * exposure.length, head_rate=1.0)
    clip = way.clip if mechanism.clip == 1.0 else mechanism.clip
    constant = (exposure.rounds + 1) / 2  # this many rounds at the first round's rate lead as far
    mean = rate * mechanism.start_signal(exposure) / exposure.clients  # examples, by their public number
    return Training(
        mechanism=replace(mechanism, clip=clip),
        batch_size=max(1, round(mean) if rate < 1 else math.ceil(mean)),
        steps=steps,
        learning_rate=float(f"{way.distance / (server.reach * clip * steps * constant):.3g}"),
        optimizer=f"sgd(warmup=0, head_rate={way.head_rate}, schedule=linear)",
        momentum=momentum,
    )

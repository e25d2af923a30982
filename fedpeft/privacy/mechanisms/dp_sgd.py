"""DP-SGD on the clients (Abadi et al., arXiv 1607.00133): hides one training row from whoever sees a client's updates.

    every row joins a step with probability q_k = batch_size / n_k
    g = (sum_i clip(grad_i, C) + z C gauss) / (q_k n_k)

The update is private when it leaves the client, against the server, too; codec, aggregation and everything after it are
post-processing, so every strategy may follow. Each client has an account of its own: shards are disjoint, so a row's
epsilon is its client's. A step is charged (z, q_k), and each participation has as many as the client's shard needs.
The noise multiplier is the same for all: it is the smallest shard's, so the others spend less.

With `rate` every row of every client joins with the same probability q, and all clients divide by batch_size, which is
then the expected rows of a step of a client of mean size:

    g = (sum_i clip(grad_i, C) + z C gauss) / batch_size

So all spend alike, and the clients' mean is a sum over all rows with each client's noise once; above it is weighted
towards the noise of small shards.

How gradients per example are found is the PEFT method's matter (`PeftMethod.privacy`); the training loop is
`fedpeft.clients.private`.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import ClassVar

from fedpeft.aggregation.server_optimizer import Pace
from fedpeft.errors import PrivacyError
from fedpeft.parts import name_of, setting
from fedpeft.privacy.accountant import Event
from fedpeft.privacy.example_sampling import ExampleSampling
from fedpeft.privacy.exposure import Exposure
from fedpeft.privacy.ledger import Charges
from fedpeft.privacy.mechanism import Mechanism
from fedpeft.privacy.training_plans import MOST_ASKED, OWN_NOISE, STEPS, Training, plan_for_rows

LEAST_SIGNAL_HEAD = 7.0
"""The least signal to noise at which rounds are planned for the head alone: each client's noise and a convex problem,
measured in docs/decisions.md; other mechanisms have not been."""


@dataclass(frozen=True)
class DPSGD(Mechanism):
    """Clipped and noised gradients in local training."""

    rate: float | None = setting(
        None,
        "probability with which every row joins a step, at all clients alike, whose sums are divided by batch_size; "
        "none: batch_size / rows",
        above=0,
        high=1,
    )

    privacy_unit: ClassVar[str] = "training row"
    neighbours: ClassVar[str] = "one row more or less in one client's shard"
    sampling: ClassVar[str] = "rows join each local step by independent secret coins (Poisson); cohorts may be known"

    def least_signal(self, exposure: Exposure) -> float:
        """Less where the head alone is trained."""
        return LEAST_SIGNAL_HEAD if exposure.head_alone else super().least_signal(exposure)

    def asks_all(self, exposure: Exposure) -> bool:
        """For a head alone, whose steps cost little: as much noise in all as a tenth of the clients add with less of
        its own each, and no round leads where the classes of a few clients point."""
        return exposure.head_alone and exposure.clients <= MOST_ASKED

    def plan_training(self, exposure: Exposure, pace: Pace | None = None) -> Training:
        """All rows take part once a round, in as few steps as `STEPS` over all rounds allow."""
        steps = max(1, math.ceil(STEPS / exposure.rounds))
        rate = 1 / steps if self.rate is None else self.rate
        return plan_for_rows(replace(self, rate=rate), exposure, pace, OWN_NOISE, steps, rate)

    def check(self, exposure: Exposure) -> None:
        """Also refuse PEFT methods whose gradients per example can't be had.

        Raises:
            PrivacyError: says which.
        """
        super().check(exposure)
        if exposure.method.privacy == "refused":
            name = name_of(type(exposure.method))
            raise PrivacyError(f"FP7065 dp_sgd can't find gradients per example of the PEFT method {name}; take lora")

    def units(self, exposure: Exposure) -> int:
        """The largest shard's rows."""
        return int(exposure.rows.max())

    @property
    def example_sampling(self) -> ExampleSampling:
        """At one rate for all clients, or at each client's own."""
        return ExampleSampling(self.rate)

    def plan_releases(self, exposure: Exposure) -> list[tuple[float, int]]:
        """Of every client its steps in all its rounds; those with equal shards and rounds count once."""
        totals = exposure.steps * exposure.participations
        pairs = {(int(rows), int(total)) for rows, total in zip(exposure.rows, totals, strict=True) if total}
        sampling = self.example_sampling
        return [(sampling.rate_of(exposure.batch_size, rows), total) for rows, total in sorted(pairs)]

    def charges(self, exposure: Exposure, cohort: Sequence[int], noise: float) -> Charges:
        """The local steps of each client."""
        sampling, batch_size = self.example_sampling, exposure.batch_size
        rates = {client: sampling.rate_of(batch_size, int(exposure.rows[client])) for client in cohort}
        return {client: (Event(noise, rates[client]), int(exposure.steps[client])) for client in cohort}


part = DPSGD

"""DP-SGD on the clients (Abadi et al., arXiv 1607.00133): hides one example from everyone who sees a client's updates.

    every example joins a step with probability q_k = batch_size / n_k
    g = (sum_i clip(grad_i, C) + z C gauss) / (q_k n_k)

The update is private when it leaves the client, also against the server. Codec, aggregation and all later steps are
post-processing, so every strategy works. Each client has its own account: shards are disjoint, so an example's epsilon
is its client's. A step is charged (z, q_k), and a participation has as many steps as the client's shard needs. All
clients have the same noise multiplier. The smallest shard decides it, so the others spend less.

With `rate` every example of every client joins with the same probability q. All clients then divide by batch_size, the
expected number of examples in a step of a client of mean size:

    g = (sum_i clip(grad_i, C) + z C gauss) / batch_size

So all clients spend alike, and their mean is a sum over all examples with each client's noise once. Without `rate` the
mean gives more weight to the noise of small shards.

The PEFT method decides how gradients per example are computed (`PeftMethod.privacy`); the training loop is
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
"""The least signal-to-noise ratio at which rounds are planned for the head alone, with each client's own noise.

docs/decisions.md has the measurement, a convex problem.
"""


@dataclass(frozen=True)
class DPSGD(Mechanism):
    """Clipped and noised gradients in local training."""

    rate: float | None = setting(
        None,
        "probability with which every example joins a step, equal at all clients, who divide by batch_size; "
        "none: batch_size / examples",
        above=0,
        high=1,
    )

    privacy_unit: ClassVar[str] = "training row"
    neighbours: ClassVar[str] = "one row more or less in one client's shard"
    sampling: ClassVar[str] = "rows join each local step by independent secret coins (Poisson); cohorts may be known"

    def least_signal(self, exposure: Exposure) -> float:
        """Return the least `training_signal`, lower if the head alone is trained."""
        return LEAST_SIGNAL_HEAD if exposure.head_alone else super().least_signal(exposure)

    def asks_all(self, exposure: Exposure) -> bool:
        """Return whether the head alone is trained, and there are at most `MOST_ASKED` clients.

        Steps of a head cost little. The mean over all clients has as much noise as that over a tenth of them, although
        each client adds more, and no round follows the classes of a few clients.
        """
        return exposure.head_alone and exposure.clients <= MOST_ASKED

    def plan_training(self, exposure: Exposure, pace: Pace | None = None) -> Training:
        """Return a plan in which all examples take part once a round, in as few steps as `STEPS` allows."""
        steps = max(1, math.ceil(STEPS / exposure.rounds))
        rate = 1 / steps if self.rate is None else self.rate
        return plan_for_rows(replace(self, rate=rate), exposure, pace, OWN_NOISE, steps, rate)

    def check(self, exposure: Exposure) -> None:
        """Reject settings that would not protect, and PEFT methods without gradients per example.

        Raises:
            PrivacyError: the message names the setting or the method.
        """
        super().check(exposure)
        if exposure.method.privacy == "refused":
            name = name_of(type(exposure.method))
            raise PrivacyError(f"FP7065 dp_sgd has no gradients per example for the PEFT method {name}; use lora")

    def units(self, exposure: Exposure) -> int:
        """Return the number of examples in the largest shard."""
        return int(exposure.rows.max())

    @property
    def example_sampling(self) -> ExampleSampling:
        """Poisson sampling at one rate for all clients, or at each client's own."""
        return ExampleSampling(self.rate)

    def plan_releases(self, exposure: Exposure) -> list[tuple[float, int]]:
        """Return every client's steps in all its rounds; clients with equal shards and rounds count once."""
        totals = exposure.steps * exposure.participations
        pairs = {(int(rows), int(total)) for rows, total in zip(exposure.rows, totals, strict=True) if total}
        sampling = self.example_sampling
        return [(sampling.rate_of(exposure.batch_size, rows), total) for rows, total in sorted(pairs)]

    def charges(self, exposure: Exposure, cohort: Sequence[int], noise: float) -> Charges:
        """Return the local steps of each client."""
        sampling, batch_size = self.example_sampling, exposure.batch_size
        rates = {client: sampling.rate_of(batch_size, int(exposure.rows[client])) for client in cohort}
        return {client: (Event(noise, rates[client]), int(exposure.steps[client])) for client in cohort}


part = DPSGD

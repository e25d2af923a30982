"""The base class of privacy mechanisms: what they protect, where they clip and add noise, and what that costs.

The order within a round is fixed:

    client clip -> client noise -> encode -> wire -> decode -> server clip -> sum -> server noise -> / (q N)
        -> the strategy's post-processing -> server optimizer

A mechanism acts at some of these places. Everything after its noise is post-processing and free; anything may happen
before its clipping. The mechanism computes the cost of each round; the ledger (`fedpeft.privacy.ledger`) keeps the
accounts.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from enum import Enum
from typing import ClassVar

from fedpeft.aggregation.bounded_rows import compute_noise_length
from fedpeft.errors import PrivacyError
from fedpeft.parts import name_of, setting
from fedpeft.privacy.accountant import LARGEST, Event, epsilon, is_within, merge_events, noise_for, rdp_epsilon
from fedpeft.privacy.example_sampling import ExampleSampling
from fedpeft.privacy.exposure import Exposure
from fedpeft.privacy.ledger import Charges
from fedpeft.privacy.start_release import StartRelease

HALF = 0.5
"""The share of the budget for the start if training is worth planning as well."""

LEAST_SIGNAL = 30.0
"""The least signal-to-noise ratio of training (`Mechanism.training_signal`) at which rounds are planned.

That ratio assumes that all examples agree. After a good start their gradients hardly do, so 1 would not be enough.
"""


class CohortForm(Enum):
    """The rule that decides who is in a round.

    Attributes:
        DRAWN: the sampler, in public.
        DEALT: the sampler, in public, so that all clients take part equally often.
        TURNS: a fixed order in which the same cohorts return.
        SECRET: the run's key, which draws each client by a coin of its own (Poisson).
    """

    DRAWN = "drawn"
    DEALT = "dealt"
    TURNS = "turns"
    SECRET = "secret"


@dataclass(frozen=True)
class Mechanism(ABC):
    """A privacy mechanism. Subclasses are frozen dataclasses."""

    epsilon: float | None = setting(None, "the budget; without noise_multiplier, noise is chosen to meet it", above=0)
    noise_multiplier: float | None = setting(None, "standard deviation of the noise, relative to sensitivity", low=0)
    clip: float = setting(1.0, "largest norm of one unit's contribution", low=1e-6, high=1e9)
    dp_delta: float | None = setting(None, "delta; none: a tenth of its limit, 1 / (number of units)", above=0, below=1)
    start: float | None = setting(
        None, "share of the budget for the private start of the head; 1: no training; none: by formula", low=0, high=1
    )
    raw_metrics: bool = setting(False, "let clients report losses and example counts, which epsilon does not cover")
    at_budget: str = setting(
        "end", "when a client's epsilon is spent: end the run, or sit_out: go on without it", choices=("end", "sit_out")
    )
    plan: bool = setting(
        True,
        "plan batch_size, local_work, learning_rate, optimizer and clip by formula if the first four are all left out",
    )
    audit: bool = setting(False, "attack the finished run: canaries and membership inference, see fedpeft.audit")
    test_noise: bool = setting(False, "for tests: noise from the run's seed, which protects nobody; results record it")

    privacy_unit: ClassVar[str]
    """What the mechanism hides: `"training row"` (an example) or `"client"`."""

    neighbours: ClassVar[str]
    """The neighbouring relation, in words."""

    sampling: ClassVar[str]
    """What epsilon assumes about sampling, in words."""

    protects: ClassVar[bool] = True
    """Whether the mechanism protects anything; False for the reference without protection."""

    noises_updates: ClassVar[bool] = True
    """Whether updates are private when they leave a client, so that everything at the server is post-processing."""

    start_release: ClassVar[StartRelease] = StartRelease()
    """The rule that clips and noises the release before round 1."""

    def check(self, exposure: Exposure) -> None:
        """Reject settings that would not protect.

        Raises:
            PrivacyError: the message contains the reason and the remedy.
        """
        name = self.name
        if self.epsilon is None and self.noise_multiplier is None:
            raise PrivacyError(
                f"FP7049 {name} needs epsilon or noise_multiplier, such as {name}(epsilon=8, clip={self.clip})"
            )
        limit = 1 / self.units(exposure)
        if self.dp_delta is not None and self.dp_delta >= limit:
            raise PrivacyError(
                f"FP7050 dp_delta={self.dp_delta:g} allows publishing one {self.privacy_unit} outright; it must be "
                f"below 1 / (largest number of {self.privacy_unit}s) = {limit:.3g}, leave it out for a tenth of that"
            )

    @property
    def example_sampling(self) -> ExampleSampling | None:
        """The sampling of examples for local steps if the gradient of each is clipped; None: it is not."""
        return None

    @property
    def per_example(self) -> bool:
        """Whether local training clips the gradient of every example, which requires the sequential executor."""
        return self.example_sampling is not None

    @property
    def cohort_form(self) -> CohortForm:
        """The rule that decides who is in a round.

        By default clients are dealt if there is a budget. Then all clients have the noise of the client that takes part
        most often, and cohorts need not be secret.
        """
        return CohortForm.DEALT if self.protects and self.epsilon is not None else CohortForm.DRAWN

    @property
    def secret_cohort(self) -> bool:
        """Whether the run's key draws the cohort, which may be empty."""
        return self.cohort_form is CohortForm.SECRET

    @property
    def silent(self) -> bool:
        """Whether clients keep their measurements secret: losses, numbers of examples, accuracies."""
        return self.protects and not self.raw_metrics

    @property
    def name(self) -> str:
        """The name on the command line."""
        return name_of(type(self))

    def delta(self, exposure: Exposure) -> float:
        """Return the delta that epsilon is stated at."""
        return self.dp_delta if self.dp_delta is not None else 0.1 / self.units(exposure)

    @abstractmethod
    def units(self, exposure: Exposure) -> int:
        """Return the number of units that delta must be small against."""

    @abstractmethod
    def plan_releases(self, exposure: Exposure) -> list[tuple[float, int]]:
        """Return the planned (sampling rate, releases) of every account over the whole run, without duplicates."""

    @abstractmethod
    def charges(self, exposure: Exposure, cohort: Sequence[int], noise: float) -> Charges:
        """Return the cost of a round with this cohort."""

    def multiplier(self, exposure: Exposure) -> float:
        """Return the noise multiplier: the given one, or the smallest that keeps planned releases within epsilon."""
        if self.noise_multiplier is not None:
            return self.noise_multiplier
        assert self.epsilon is not None
        start = self.start_noise(exposure)
        if start is not None and not self.trains(exposure):
            return start
        before = {} if start is None else {Event(start, 1.0): 1}
        delta, noise = self.delta(exposure), 0.0
        plans = self.plan_releases(exposure)
        for rate, count in sorted(plans, key=lambda p: -rdp_epsilon({Event(1.0, p[0]): p[1]}, delta)):
            if noise == 0 or not is_within(merge_events(before, {Event(noise, rate): count}), delta, self.epsilon):
                noise = max(noise, noise_for(self.epsilon, delta, rate, count, before))
        return noise

    # -------------------------------------------------------------------------------------------------- before round 1

    def start_share(self, exposure: Exposure) -> float:
        """Return the share of the budget for the start: the given one, half, or 1 if noise would drown training.

        Shares divide variances: a release with a share s of a budget has 1 / sqrt(s) times the noise of a release that
        has all of it.
        """
        if self.start is not None:
            return self.start
        if self.epsilon is None or self.noise_multiplier is not None:
            return HALF
        return HALF if self.has_signal(exposure) else 1.0

    def trains(self, exposure: Exposure) -> bool:
        """Return whether any budget is left for rounds of training."""
        return not exposure.start or self.start_share(exposure) < 1

    def start_noise(self, exposure: Exposure) -> float | None:
        """Return the noise multiplier of the release before round 1; None: there is no such release.

        Without a budget, the start's share of the total cost follows from the cost of the planned rounds.

        Raises:
            PrivacyError: the share is 0, or it is 1 and there is no budget.
        """
        if not exposure.start:
            return None
        share, delta = self.start_share(exposure), self.delta(exposure)
        if not share:
            raise PrivacyError(
                f"FP7051 start=0 leaves nothing of the budget for a private start; give {self.name} another "
                "share, or use --head zero"
            )
        if self.epsilon is not None:
            return noise_for(self.epsilon, delta, 1.0, 1) / math.sqrt(share)
        if share == 1:
            raise PrivacyError(f"FP7052 start=1 is all of a budget, and {self.name} has none; give it an epsilon")
        plans = self.plan_releases(exposure)
        if not self.noise_multiplier or not plans:
            return self.noise_multiplier
        rounds = max(epsilon({Event(self.noise_multiplier, rate): n}, delta) for rate, n in plans)
        return noise_for(min(rounds, LARGEST), delta, 1.0, 1) * math.sqrt((1 - share) / share)

    def check_start(self, exposure: Exposure) -> None:
        """Reject a start that would be noise alone even if all examples were alike and of one class.

        Raises:
            PrivacyError: the message contains the smallest epsilon that is enough.
        """
        if not exposure.start or self.epsilon is None or self.start == 0:
            return
        signal, width = self.start_signal(exposure), exposure.layout.shapes["head.weight"][1]
        most = signal / (self.start_release.compute_deviation(1.0, exposure.clients) * compute_noise_length(width))
        share = 1.0 if self.start is None else self.start
        least = epsilon({Event(most * math.sqrt(share), 1.0): 1}, self.delta(exposure))
        if self.epsilon < least:
            raise PrivacyError(
                f"FP7053 epsilon {self.epsilon:g} is too small for a private start: its noise would hide the "
                f"sum of all {signal:g} {self.privacy_unit}s; give at least "
                f"{math.ceil(100 * least + 1) / 100:g}, or more examples or clients, or use --head zero"
            )

    def start_signal(self, exposure: Exposure) -> float:
        """Return the largest possible norm of the sum of all clients' statistics: 1 per example, or per client."""
        return float(exposure.rows.sum() if self.privacy_unit == "training row" else exposure.clients)

    def signal_to_noise(self, exposure: Exposure, share: float, entries: int) -> float:
        """Return the signal-to-noise ratio of one release of means over all data, if all data agreed.

        It is the norm of the means over the norm of the noise in `entries` numbers. Subsampling and many steps release
        the same in small pieces, which changes little. The noise of n pieces falls with the square root of n, and is
        amplified by as much as the pieces are smaller.
        """
        assert self.epsilon is not None
        noise = noise_for(self.epsilon, self.delta(exposure), 1.0, 1) / math.sqrt(share)
        deviation = self.start_release.compute_deviation(noise, exposure.clients)
        return self.start_signal(exposure) / (deviation * math.sqrt(entries))

    def training_signal(self, exposure: Exposure) -> float:
        """Return the signal-to-noise ratio of everything that rounds could release with half of the budget."""
        return self.signal_to_noise(exposure, 1 - HALF, exposure.noised_entries)

    def least_signal(self, exposure: Exposure) -> float:
        """Return the least `training_signal` at which rounds are planned."""
        return LEAST_SIGNAL

    def has_signal(self, exposure: Exposure) -> bool:
        """Return whether the signal of training exceeds its noise enough to plan rounds."""
        return self.training_signal(exposure) >= self.least_signal(exposure)

    def count_trainable_entries(self, exposure: Exposure) -> int:
        """Return how many trained entries the signal is enough for; 0: not even one.

        Only the head's entries count if the head is trained alone.
        """
        return math.floor(exposure.noised_entries * (self.training_signal(exposure) / self.least_signal(exposure)) ** 2)

    def start_charges(self, exposure: Exposure, noise: float) -> Charges:
        """Return the cost of the start: one release of each client."""
        return dict.fromkeys(range(exposure.clients), (Event(noise, 1.0), 1))

"""What a privacy mechanism is: what it protects, where it clips and adds noise, and what that costs.

The order in a round is law:

    client clip -> client noise -> encode -> wire -> decode -> server clip -> sum -> server noise -> / (q N)
        -> the strategy's post-processing -> server optimizer

A mechanism acts at some of these places. What follows its noise is post-processing and free; what precedes its clipping
may be anything. It says what each round costs; the ledger (`fedpeft.privacy.ledger`) keeps the accounts.
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
from fedpeft.families import MECHANISMS as MECHANISMS
from fedpeft.parts import name_of, setting
from fedpeft.privacy.accountant import LARGEST, Event, epsilon, is_within, noise_for, rdp_epsilon, together
from fedpeft.privacy.example_sampling import ExampleSampling
from fedpeft.privacy.exposure import Exposure
from fedpeft.privacy.ledger import Charges
from fedpeft.privacy.start_release import StartRelease

HALF = 0.5
"""Of the budget that start and training share, where both are worth something."""

LEAST_SIGNAL = 30.0
"""The least signal to noise of what rounds could release (`Mechanism.training_signal`) at which they are planned.

It is what it would be if all rows agreed, and after a good start their gradients hardly do.
"""


class CohortForm(Enum):
    """What decides who is in a round.

    Attributes:
        DRAWN: the sampler, in public.
        DEALT: the sampler, in public, so that clients come equally often.
        TURNS: a fixed order: the same cohorts come round again.
        SECRET: the run's secret, which draws each client by a coin of its own (Poisson).
    """

    DRAWN = "drawn"
    DEALT = "dealt"
    TURNS = "turns"
    SECRET = "secret"


@dataclass(frozen=True)
class Mechanism(ABC):
    """One mechanism. Subclasses are frozen dataclasses."""

    epsilon: float | None = setting(None, "the budget; without noise_multiplier, noise is chosen to meet it", above=0)
    noise_multiplier: float | None = setting(None, "standard deviation of the noise, relative to sensitivity", low=0)
    clip: float = setting(1.0, "largest norm of what one unit contributes", low=1e-6, high=1e9)
    dp_delta: float | None = setting(None, "delta; none: a tenth of its limit, 1 / (number of units)", above=0, below=1)
    start: float | None = setting(
        None, "share of the budget for the private start of the head; 1: no training; none: by formula", low=0, high=1
    )
    raw_metrics: bool = setting(False, "let clients report losses and numbers of rows, which epsilon does not cover")
    at_budget: str = setting(
        "end", "when a client's epsilon is spent: end the run, or sit_out: go on without it", choices=("end", "sit_out")
    )
    plan: bool = setting(
        True,
        "where batch_size, local_work, learning_rate and optimizer are all left out: plan them, and clip, by formula",
    )
    audit: bool = setting(False, "attack the finished run: canaries and membership inference, see fedpeft.audit")
    test_noise: bool = setting(False, "for tests: noise from the run's seed, protecting nobody; stamped on the results")

    privacy_unit: ClassVar[str]
    """Whose presence is hidden: "training row" or "client"."""

    neighbours: ClassVar[str]
    """The neighbouring relation, in words."""

    sampling: ClassVar[str]
    """What epsilon assumes of sampling, in words."""

    protects: ClassVar[bool] = True
    """False for the reference without protection."""

    noises_updates: ClassVar[bool] = True
    """Whether what leaves a client is private already, so that whatever the server does is post-processing."""

    start_release: ClassVar[StartRelease] = StartRelease()
    """How the release before round 1 is clipped and noised."""

    def check(self, exposure: Exposure) -> None:
        """Refuse what would not protect.

        Raises:
            PrivacyError: why, and what to do.
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
        """How examples join local steps, in which the gradient of each is clipped; None: none is clipped."""
        return None

    @property
    def per_example(self) -> bool:
        """Whether local training clips the gradient of every example (then the executor is the sequential one)."""
        return self.example_sampling is not None

    @property
    def cohort_form(self) -> CohortForm:
        """What decides who is in a round.

        By default clients are dealt under a budget: its noise, the same for all, is that of the client who comes most
        often, and cohorts need not be secret.
        """
        return CohortForm.DEALT if self.protects and self.epsilon is not None else CohortForm.DRAWN

    @property
    def secret_cohort(self) -> bool:
        """Whether the run's secret draws the cohort, which may be empty."""
        return self.cohort_form is CohortForm.SECRET

    @property
    def silent(self) -> bool:
        """Whether clients keep to themselves what they measure on their rows: losses, numbers of rows, accuracies."""
        return self.protects and not self.raw_metrics

    @property
    def name(self) -> str:
        """As on the command line."""
        return name_of(type(self))

    def delta(self, exposure: Exposure) -> float:
        """The delta that epsilon is stated at."""
        return self.dp_delta if self.dp_delta is not None else 0.1 / self.units(exposure)

    @abstractmethod
    def units(self, exposure: Exposure) -> int:
        """The number of units that delta must be small against."""

    @abstractmethod
    def plan_releases(self, exposure: Exposure) -> list[tuple[float, int]]:
        """The planned (sampling rate, releases) of every account over the whole run, without repetition."""

    @abstractmethod
    def charges(self, exposure: Exposure, cohort: Sequence[int], noise: float) -> Charges:
        """What a round with this cohort costs."""

    def multiplier(self, exposure: Exposure) -> float:
        """The noise multiplier: as given, or the smallest that keeps every account within epsilon as planned."""
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
            if noise == 0 or not is_within(together(before, {Event(noise, rate): count}), delta, self.epsilon):
                noise = max(noise, noise_for(self.epsilon, delta, rate, count, before))
        return noise

    # -------------------------------------------------------------------------------------------------- before round 1

    def start_share(self, exposure: Exposure) -> float:
        """The share of the budget for the start: as given, or half, or all where training could not be heard.

        Budgets are shared as variances are: a release at the share s of a budget has 1 / sqrt(s) times the noise of one
        that has all of it.
        """
        if self.start is not None:
            return self.start
        if self.epsilon is None or self.noise_multiplier is not None:
            return HALF
        return HALF if self.has_signal(exposure) else 1.0

    def trains(self, exposure: Exposure) -> bool:
        """Whether anything is left for rounds of training."""
        return not exposure.start or self.start_share(exposure) < 1

    def start_noise(self, exposure: Exposure) -> float | None:
        """The noise multiplier of the start's release; None: there is none.

        Without a budget it costs its share beside what the planned rounds cost.

        Raises:
            PrivacyError: it has no share, or all of a budget that there is not.
        """
        if not exposure.start:
            return None
        share, delta = self.start_share(exposure), self.delta(exposure)
        if not share:
            raise PrivacyError(
                f"FP7051 start=0 leaves nothing of the budget for a private start; give {self.name} another share, or "
                "take --head zero"
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
        """Refuse a start that would be noise alone, were all rows of one class and alike.

        Raises:
            PrivacyError: says the smallest epsilon that is not.
        """
        if not exposure.start or self.epsilon is None or self.start == 0:
            return
        signal, width = self.start_signal(exposure), exposure.layout.shapes["head.weight"][1]
        most = signal / (self.start_release.compute_deviation(1.0, exposure.clients) * compute_noise_length(width))
        share = 1.0 if self.start is None else self.start
        least = epsilon({Event(most * math.sqrt(share), 1.0): 1}, self.delta(exposure))
        if self.epsilon < least:
            raise PrivacyError(
                f"FP7053 epsilon {self.epsilon:g} is too small for a private start: its noise would hide the sum of "
                f"all {signal:g} {self.privacy_unit}s; give at least {math.ceil(100 * least + 1) / 100:g}, or more "
                "rows or clients, or take --head zero"
            )

    def start_signal(self, exposure: Exposure) -> float:
        """The largest norm that the sum of all clients' statistics can have: one for each row, or client."""
        return float(exposure.rows.sum() if self.privacy_unit == "training row" else exposure.clients)

    def signal_to_noise(self, exposure: Exposure, share: float, entries: int) -> float:
        """Of one release of means over all data, if all of it agreed: its norm over that of noise in `entries` numbers.

        That subsampling and many steps release the same in small pieces changes little: noise falls with the square
        root of what is added up, and is amplified away by as much as the pieces are smaller.
        """
        assert self.epsilon is not None
        noise = noise_for(self.epsilon, self.delta(exposure), 1.0, 1) / math.sqrt(share)
        deviation = self.start_release.compute_deviation(noise, exposure.clients)
        return self.start_signal(exposure) / (deviation * math.sqrt(entries))

    def training_signal(self, exposure: Exposure) -> float:
        """Signal to noise of all that rounds could release with half of the budget."""
        return self.signal_to_noise(exposure, 1 - HALF, exposure.noised_entries)

    def least_signal(self, exposure: Exposure) -> float:
        """The least `training_signal` at which rounds are planned."""
        return LEAST_SIGNAL

    def has_signal(self, exposure: Exposure) -> bool:
        """Whether training would be heard above its noise."""
        return self.training_signal(exposure) >= self.least_signal(exposure)

    def count_trainable_entries(self, exposure: Exposure) -> int:
        """How many trained entries, of a head where it is alone, would be heard; 0: not even one."""
        return math.floor(exposure.noised_entries * (self.training_signal(exposure) / self.least_signal(exposure)) ** 2)

    def start_charges(self, exposure: Exposure, noise: float) -> Charges:
        """What the start costs: one release of each client."""
        return dict.fromkeys(range(exposure.clients), (Event(noise, 1.0), 1))

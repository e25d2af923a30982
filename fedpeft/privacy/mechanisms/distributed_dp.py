"""Noise in a sum under masks, a share of it from each client: no server is trusted, and all clients share one noise.

    unit=rows      g_k = sum_i clip(grad_i, C) over the examples i of client k that secret coins have drawn, in one
                   step; each example of each client with probability batch_size / (mean examples of a client)
    unit=clients   g_k = clip(update of client k, C)
    released       sum_k round(g_k) + Skellam noise of deviation z C, and nothing else of a client

The sum is that of `secure_sum`. The noise is Skellam's (Agarwal, Kairouz, Liu, arXiv 2110.04995);
`fedpeft.privacy.skellam` has the bounds, with rounding and wrap. With unit=rows the server divides the sum by the
expected number of examples and steps along its negative times the learning rate. `--optimizer` sets that rate for head
and adapter; `--server-optimizer` adds momentum or Adam. There are no local steps. A private start of the head is also
such a sum, over all clients.

If the start reports how features vary, whiten=True makes grad_i the gradient of a head on whitened features
(`fedpeft.aggregation.whitening`). Then clipping and noise treat all directions alike. With a budget alone, the plan
whitens features if only the head is trained.

Two epsilons are reported. The first is against the server, who knows cohorts and the noise of colluding clients. Each
sum that a client is in counts; the coins of examples amplify, since only the client sees them. The budget limits this
epsilon. The second is against those who see only the released models. Then all noise counts, and secret coins (Poisson)
draw the cohorts. For clients these coins amplify only with dropouts=0 and cohorts that are hardly ever too small for a
sum: otherwise the size of a cohort's noise, or its absence, reveals the cohort's size. For examples they amplify only
as `fedpeft.privacy.sampled_rdp` describes.

The noise is enough if a share of `dropouts` of a cohort drops out; with more dropouts the sum is void. A sum is charged
before it is begun. A repeated sum is charged again, with new noise.

Real clients know neither each other's examples nor their number. The setting `rows` states their number, which decides
how many examples join a round. Each client keeps its own ledger (`fedpeft.privacy.client_protection`), draws its noise
and coins from its own key, and counts only on the noise of clients whose certificates it has seen.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import ClassVar, Self

from scipy.stats import binom

from fedpeft.aggregation.abilities import SelectsUpdate
from fedpeft.aggregation.head_start import VARIANCE
from fedpeft.aggregation.server_optimizer import Pace
from fedpeft.errors import PrivacyError
from fedpeft.parts import name_of, setting
from fedpeft.peft.adapter import State
from fedpeft.privacy.accountant import Events, merge_events, rdp_epsilon
from fedpeft.privacy.example_sampling import ExampleSampling
from fedpeft.privacy.exposure import Exposure
from fedpeft.privacy.ledger import Charges
from fedpeft.privacy.mechanism import CohortForm
from fedpeft.privacy.secure_sum.announcement import STATISTICS_BITS
from fedpeft.privacy.secure_sum.cohorts import FEWEST
from fedpeft.privacy.secure_sum.shared_noise import SharedNoise
from fedpeft.privacy.skellam import Grid, widest_grid
from fedpeft.privacy.start_release import StartRelease
from fedpeft.privacy.sum_mechanism import SumMechanism
from fedpeft.privacy.training_plans import (
    LEAST_SIGNAL_HEAD,
    LEAST_SIGNAL_WHITENED,
    ONE_NOISE,
    ONE_NOISE_RATE,
    Training,
    plan_for_clients,
    plan_for_rows,
    plan_for_whitened,
)

LEAST_NOISE, MOST_NOISE = 1e-6, 1e6
"""Limits of noise multipliers for which a grid can be computed; useful ones are far within."""

COARSE, FINE = 16, 24
"""Bits of the integers that are added up: the default, and the planned number."""

UNPLANNED = 0.05
"""Probability that some client is drawn more often than planned, so that the run ends early."""


@dataclass(frozen=True)
class DistributedDP(SumMechanism):
    """Skellam noise in sums under masks, a share of it from each client: the server is not trusted."""

    unit: str = setting(
        "rows", "privacy unit: an example (row), or a client with all its data", choices=("rows", "clients")
    )
    rows: int | None = setting(
        None,
        "unit=rows: public number of training examples of all clients together; none: counted",
        low=1,
        high=10**10,
    )
    dropouts: float = setting(
        0.1, "share of a cohort that may drop out; with more dropouts its sum is void", low=0, below=0.5
    )
    collude: float = setting(
        0.0, "share of a cohort that reveals its noise to the server; see threshold", low=0, high=0.9
    )
    bits: int = setting(COARSE, "bits of the integers that are added up, modulo 2^bits", low=8, high=32)
    whiten: bool | None = setting(
        None, "unit=rows: clip gradients of a head on features that its start has whitened; none: as planned"
    )
    mask_neighbours: int = setting(
        100, "neighbors of each client, which share its masks and keep shares of its keys", low=2
    )
    threshold: float = setting(
        0.67, "share of a client's neighbors that must stay, or the sum is void; collude is at most about "
        "2 threshold - 1",
        low=0.5, below=1,
    )  # fmt: skip

    neighbours: ClassVar[str] = "one unit's data or none in its place, in the sum over all clients"
    sampling: ClassVar[str] = (
        "against the server: known cohorts, rows join by independent secret coins; against those who see models: "
        "clients join by independent secret coins, too"
    )
    noises_updates: ClassVar[bool] = False

    @property
    def privacy_unit(self) -> str:  # type: ignore[override]
        """The unit that the setting `unit` selects."""
        return "training row" if self.unit == "rows" else "client"

    @property
    def start_release(self) -> StartRelease:  # type: ignore[override]
        """One noise for the sum; the probe of a simulation draws it at once, as Gaussian noise."""
        return StartRelease(by_clients=False, clips_clients=self.unit == "clients")

    @property
    def example_sampling(self) -> ExampleSampling | None:
        """Sampling at each client's own rate with unit=rows, where each example is clipped alone; else None."""
        return ExampleSampling() if self.unit == "rows" else None

    @property
    def cohort_form(self) -> CohortForm:
        """Secret draws, which those who only see the released models can't undo."""
        return CohortForm.SECRET

    @property
    def whitens(self) -> bool:
        """Whether the setting `whiten` is True."""
        return bool(self.whiten)

    @property
    def plans_whitening(self) -> bool:
        """Whether the unit is an example and the user did not set whiten=False."""
        return self.unit == "rows" and self.whiten is not False

    def asks_all(self, exposure: Exposure) -> bool:
        """Return True: a known cohort amplifies nothing, and a smaller one carries less signal."""
        return True

    @property
    def known(self) -> float:
        """The largest share of the noise that colluding clients know, relative to the noise left after dropouts."""
        return self.collude / (1 - self.dropouts)

    @property
    def public_rows(self) -> int | None:
        """The value of the setting `rows` with unit=rows; else None."""
        return self.rows if self.unit == "rows" else None

    def sums(self) -> SharedNoise:
        """Return how sums are formed, before the noise that they need is known."""
        return SharedNoise(
            neighbours=self.mask_neighbours,
            threshold=self.threshold,
            bits=self.bits,
            mechanism=self.name,
            clip=self.clip,
            dropouts=self.dropouts,
            assumed_colluding=self.collude,
            rows=self.unit == "rows",
        )

    def check(self, exposure: Exposure) -> None:
        """Reject settings that would not protect, that contradict each other, or whose sum has unbounded summands.

        Raises:
            PrivacyError: the message names the setting and the remedy.
        """
        super().check(exposure)
        name = name_of(type(exposure.strategy))
        if self.noise_multiplier and not LEAST_NOISE <= self.noise_multiplier <= MOST_NOISE:
            raise PrivacyError(
                f"FP7054 noise_multiplier={self.noise_multiplier:g} is beyond what a grid can hold; give {self.name} "
                f"one from {LEAST_NOISE:g} to {MOST_NOISE:g}"
            )
        if not exposure.even:
            raise PrivacyError(f"FP7055 {self.name} needs the same chance for all clients; leave out participation")
        for what in ("audit", "raw_metrics"):
            if getattr(self, what):
                raise PrivacyError(
                    f"FP7056 {self.name} releases only a noisy sum, which allows no {what}; leave that out"
                )
        if self.whiten and self.unit != "rows":
            raise PrivacyError(
                f"FP7057 whiten applies to gradients of examples; leave it out of {self.name}, or give it unit=rows"
            )
        if self.known >= 1:
            raise PrivacyError(
                f"FP7058 collude={self.collude:g} and dropouts={self.dropouts:g} leave no noise that the server does "
                "not know; together they must be below 1"
            )
        self.sums().check_colluding(exposure.clients if exposure.start else self.most(exposure))
        if self.dropouts >= 1 - self.threshold:
            raise PrivacyError(
                f"FP7059 dropouts={self.dropouts:g} would leave fewer clients than the masks' "
                f"threshold={self.threshold:g} takes; their sum must be below 1"
            )
        if self.unit == "rows" and exposure.method.privacy == "refused":
            method = name_of(type(exposure.method))
            raise PrivacyError(
                f"FP7060 {self.name} can't compute gradients per example for the PEFT method {method}; use lora"
            )
        if self.unit == "rows" and isinstance(exposure.strategy, SelectsUpdate):
            raise PrivacyError(
                f"FP7061 {name} lets clients choose which tensors they send, but clients of "
                f"{self.name}(unit=rows) send whole sums of gradients; use fedit"
            )

    def assume_colluding(self, share: float) -> Self:
        """Return the mechanism with the larger of both shares."""
        return replace(self, collude=max(self.collude, share))

    def check_remote(self) -> None:
        """Reject unit=rows without a public number of examples.

        Raises:
            PrivacyError: `rows` is missing.
        """
        if self.unit == "rows" and self.rows is None:
            raise PrivacyError(
                f"FP7062 {self.name}(unit=rows) draws the examples of all clients with one probability, and real "
                f"clients know only their own number; state the public total: {self.name}(rows=5000, ...)"
            )

    # ------------------------------------------------------------------------------------------------- what is planned

    def signal_to_noise(self, exposure: Exposure, share: float, entries: int) -> float:
        """Return the signal-to-noise ratio, reduced if some clients reveal their noise.

        The noise of the other clients must hide everything, and the colluding clients' noise is added to it.
        """
        unknown = max(1 - self.known, 1e-6)  # none at all is refused by `check`
        return math.sqrt(unknown) * super().signal_to_noise(exposure, share, entries)

    def training_signal(self, exposure: Exposure) -> float:
        """Return the signal-to-noise ratio of training, reduced if not all clients take part.

        The server knows the cohorts, so the client that is drawn most often decides the noise.
        """
        known = self.share(exposure) * math.sqrt(exposure.rounds / self.often(exposure))
        return known * super().training_signal(exposure)

    def least_signal(self, exposure: Exposure) -> float:
        """Return the least `training_signal`, lower if the head alone is trained, and lowest on whitened features."""
        if exposure.whitened:
            return LEAST_SIGNAL_WHITENED
        return LEAST_SIGNAL_HEAD if exposure.head_alone else super().least_signal(exposure)

    def plan_training(self, exposure: Exposure, pace: Pace | None = None) -> Training:
        """Return a plan for clients or for examples, whichever are added up.

        The grid is fine, since sums over all clients are long.
        """
        mechanism = replace(self, bits=FINE) if self.bits == COARSE else self
        if self.unit == "clients":
            return plan_for_clients(mechanism, exposure, pace)
        if exposure.whitened:
            return plan_for_whitened(replace(mechanism, whiten=True), exposure, pace)
        rate = 1.0 if exposure.head_alone else ONE_NOISE_RATE
        return plan_for_rows(mechanism, exposure, pace, ONE_NOISE, rate=rate)

    # ------------------------------------------------------------------------------------------------------- what costs

    def units(self, exposure: Exposure) -> int:
        """Return the number of examples, or of clients, in the whole sum."""
        return self.total(exposure) if self.unit == "rows" else exposure.clients

    def total(self, exposure: Exposure) -> int:
        """Return the number of examples of all clients: the setting `rows`, or the real number.

        Everything that depends on this number becomes public.
        """
        return int(exposure.rows.sum()) if self.rows is None else self.rows

    def share(self, exposure: Exposure) -> float:
        """Return the probability with which a client is in a round."""
        return exposure.cohort / exposure.clients

    def often(self, exposure: Exposure) -> int:
        """Return how often a client is planned to take part; hardly any client is drawn more often."""
        chance = UNPLANNED / exposure.clients
        return max(1, int(binom.ppf(1 - chance, exposure.rounds, self.share(exposure))))

    def rate(self, exposure: Exposure) -> float:
        """Return the probability with which a unit is in a round that its client is in.

        It is the same for the examples of all clients, so that no client's example costs more.
        """
        if self.unit == "clients":
            return 1.0
        return min(1.0, exposure.batch_size * exposure.clients / self.total(exposure))

    def plan_releases(self, exposure: Exposure) -> list[tuple[float, int]]:
        """Return the releases of the account that spends most."""
        return [(self.rate(exposure), self.often(exposure))]

    def charges(self, exposure: Exposure, cohort: Sequence[int], noise: float) -> Charges:
        """Return one release for each client, as the server sees it."""
        event = self.grid(exposure, noise).event(self.rate(exposure), known=self.known)
        return dict.fromkeys(cohort, (event, 1))

    def start_charges(self, exposure: Exposure, noise: float) -> Charges:
        """Return the cost of the start: one release of each client."""
        event = self.start_grid(exposure, noise).event(1.0, known=self.known)
        return dict.fromkeys(range(exposure.clients), (event, 1))

    def to_all(self, exposure: Exposure, noise: float, start: float | None, starts: int, rounds: int) -> Events:
        """Return the releases to those who see only the models, for the client about which they reveal most."""
        rate, share = self.rate(exposure), self.share(exposure)
        told: Events = {}
        if start is not None and starts:
            told = {self.start_grid(exposure, start).event(1.0): starts}
        if not rounds:
            return told
        grid = self.grid(exposure, noise)
        # With dropouts the noise of a cohort reveals its size: who knows the others learns whether a client is in it.
        amplified = self.unit == "clients" and not self.dropouts and not self._may_complete_sum(exposure, rounds)
        event = grid.event(share) if amplified else grid.event(rate, share)
        return merge_events(told, {event: rounds})

    def _may_complete_sum(self, exposure: Exposure, rounds: int) -> bool:
        """Return whether one client may complete the fewest clients of a sum in some round, which reveals it."""
        chance = rounds * binom.pmf(FEWEST - 1, exposure.clients - 1, self.share(exposure))
        return bool(chance > self.delta(exposure) / 1000)

    # -------------------------------------------------------------------------------------------------- how much noise

    def grid(self, exposure: Exposure, noise: float) -> Grid:
        """Return the grid of rounds whose noise multiplier is at least `noise`.

        Raises:
            PrivacyError: the integers are too small for it.
        """
        clients = self.most(exposure)
        signal = self.clip * (self.summands(exposure) if self.unit == "rows" else clients)
        return self._grid(noise, self.clip, self.bits, clients, exposure.trained, signal)

    def start_grid(self, exposure: Exposure, noise: float) -> Grid:
        """Return the grid of the sum before round 1."""
        size = exposure.start_entries
        return self._grid(noise, 1.0, STATISTICS_BITS, exposure.clients, (size, size), float(self.units(exposure)))

    def _grid(self, noise: float, clip: float, bits: int, clients: int, sizes: tuple[int, int], signal: float) -> Grid:
        if not noise:
            raise PrivacyError(f"FP7063 {self.name} without noise protects nothing; give it a noise_multiplier above 0")
        return widest_grid(noise, clip, bits, clients, math.floor(self.dropouts * clients), sizes, signal)

    def most(self, exposure: Exposure) -> int:
        """Return the number of clients that a cohort hardly exceeds."""
        return int(binom.ppf(1 - 1e-6, exposure.clients, self.share(exposure)))

    def summands(self, exposure: Exposure) -> float:
        """Return the expected number of summands in a round's sum: examples, or clients."""
        if self.unit == "clients":
            return float(exposure.cohort)
        return self.rate(exposure) * self.total(exposure) * self.share(exposure)

    def multiplier(self, exposure: Exposure) -> float:
        """Return the noise multiplier: the given one, or the smallest that keeps planned releases within epsilon."""
        if self.noise_multiplier is not None:
            return self.noise_multiplier
        start = self.start_noise(exposure)
        if start is not None and not self.trains(exposure):
            return start
        before = {} if start is None else {self.start_grid(exposure, start).event(1.0, known=self.known): 1}
        [(rate, count)] = self.plan_releases(exposure)
        return self._smallest(
            exposure,
            lambda z: merge_events(before, {self.grid(exposure, z).event(rate, known=self.known): count}),
            f"{count} rounds",
        )

    def start_noise(self, exposure: Exposure) -> float | None:
        """Return the noise multiplier of the start as in the base class, with the costs of sums on a grid."""
        if not exposure.start:
            return None
        share = self.start_share(exposure)
        if self.epsilon is None:
            return self.noise_multiplier
        if not share:
            return super().start_noise(exposure)
        whole = self._smallest(
            exposure, lambda z: {self.start_grid(exposure, z).event(1.0, known=self.known): 1}, "a private start"
        )
        return whole / math.sqrt(share)

    def _smallest(self, exposure: Exposure, spent: Callable[[float], Events], what: str) -> float:
        """Return the smallest noise multiplier, to 0.2 %, that keeps the releases within the budget.

        Args:
            exposure: the run.
            spent: returns the releases for a noise multiplier.
            what: name of the releases, for the error.

        Raises:
            PrivacyError: no noise multiplier is enough on this grid.
        """
        assert self.epsilon is not None
        delta, budget = self.delta(exposure), self.epsilon
        low, high = 1e-3, 1.0
        try:
            while rdp_epsilon(spent(high), delta) > budget:
                low, high = high, 1.1 * high
        except PrivacyError as error:  # of the grid, which growing noise makes too coarse in the end
            raise PrivacyError(
                f"FP7064 epsilon {budget:g} is too small for {what} under {self.name}: {error}"
            ) from error
        while high - low > 2e-3 * high:
            middle = (low + high) / 2
            low, high = (low, middle) if rdp_epsilon(spent(middle), delta) <= budget else (middle, high)
        return high

    def sums_of(self, exposure: Exposure, noise: float, start: float | None) -> SharedNoise:
        """Return how sums are formed, with the noise in them."""
        trains = start is None or self.trains(exposure)
        return replace(
            self.sums(),
            rate=self.rate(exposure),
            expected=self.summands(exposure),
            first=None if start is None else self.start_grid(exposure, start),
            later=self.grid(exposure, noise) if trains else None,
        )

    # -------------------------------------------------------------------------------------------------- before round 1

    def start_signal(self, exposure: Exposure) -> float:
        """Return the largest possible norm of the statistics' sum: 1 for each example, or for each client."""
        return float(self.units(exposure))

    def start_summand(self, statistics: State) -> State:
        """Return what a client adds to the start's sum, without the entry that reports the noise.

        The client's statistics are bounded for each example; with unit=clients they are clipped to norm 1 as one
        vector.
        """
        return {name: tensor for name, tensor in self.start_release.take(statistics).items() if name != VARIANCE}


part = DistributedDP

"""Noise in a sum under masks, a share of it from each client: no server is trusted, and there is one noise for all.

    unit=rows      g_k = sum_i clip(grad_i, C) over the rows i of client k that secret coins have drawn, in one step;
                   each row of each client with probability batch_size / (mean rows of a client)
    unit=clients   g_k = clip(update of client k, C)
    seen of a round: sum_k round(g_k) + Skellam noise of deviation z C, and nothing else of a client

The sum is `secure_sum`'s, its noise Skellam's (Agarwal, Kairouz, Liu, arXiv 2110.04995; `fedpeft.privacy.skellam` has
the bounds, with rounding and wrap). For rows the server divides it by the expected rows, and steps along minus that
times the learning rate, which `--optimizer` gives for head and adapter and `--server-optimizer` makes momentum or Adam
of. There are no local steps. A private start of the head is such a sum, too, of all clients. Where it tells how
features vary, whiten=True makes grad_i that of a head on whitened features (`fedpeft.aggregation.whitening`): what is
clipped, and hidden by noise, is then spent on no direction more than on another. A budget alone plans it for a head
that is trained alone.

Two epsilons are told. One is against the server, who knows which clients were asked, and the noise of those who
collude with it: each sum that a client is in counts; coins of rows amplify, since only the client sees them. The budget
is for this one. The other is against those who see the released models alone: then all noise counts, and cohorts are
drawn by secret coins (Poisson), which amplify for clients with dropouts=0 in cohorts that are hardly ever too small for
a sum; else, since a cohort's noise, or that there is none, then tells of its size, and for rows only as
`fedpeft.privacy.sampled_rdp` says.

Noise is enough if `dropouts` of a cohort drop out; with more the sum is void. It is charged before it is begun, and a
sum that is tried again is charged again, with new noise.

Real clients know neither each other's rows nor their number: `rows` says it, and with it how many join a round. Each
keeps its own ledger (`fedpeft.privacy.client_protection`), draws its noise and coins from its own key, and counts on
the noise of those alone whose certificates it has seen.
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
from fedpeft.privacy.accountant import Events, rdp_epsilon, together
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
"""Noise multipliers of which a grid can be computed; none that protects is near them."""

COARSE, FINE = 16, 24
"""Bits of the integers that are added up: by default, and as planned."""

UNPLANNED = 0.05
"""Chance that some client is drawn more often than is planned for; then the run ends early."""


@dataclass(frozen=True)
class DistributedDP(SumMechanism):
    """Skellam noise in sums under masks, a share of it from each client: the server is not trusted."""

    unit: str = setting("rows", "what is hidden: a row, or a client with all its data", choices=("rows", "clients"))
    rows: int | None = setting(
        None,
        "unit=rows: training examples of all clients together, which everybody may know; none: as counted",
        low=1,
        high=10**10,
    )
    dropouts: float = setting(0.1, "share of a cohort that may drop out; beyond, its sum is void", low=0, below=0.5)
    collude: float = setting(0.0, "share of a cohort that tells the server its noise; see threshold", low=0, high=0.9)
    bits: int = setting(COARSE, "of the integers that are added up, modulo 2^bits", low=8, high=32)
    whiten: bool | None = setting(
        None, "unit=rows: clip gradients as of a head on features that its start has whitened; none: as planned"
    )
    mask_neighbours: int = setting(100, "of each client: they share its masks, and keep shares of its keys", low=2)
    threshold: float = setting(
        0.67, "share of its neighbors that must stay, or the sum is void; collude is at most about 2 threshold - 1",
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
        """By the setting `unit`."""
        return "training row" if self.unit == "rows" else "client"

    @property
    def start_release(self) -> StartRelease:  # type: ignore[override]
        """One noise for the sum; the probe of a simulation draws it at once, as Gaussian noise."""
        return StartRelease(by_clients=False, clips_clients=self.unit == "clients")

    @property
    def example_sampling(self) -> ExampleSampling | None:
        """Rows are clipped one by one."""
        return ExampleSampling() if self.unit == "rows" else None

    @property
    def cohort_form(self) -> CohortForm:
        """Secret for those who see the released models alone."""
        return CohortForm.SECRET

    @property
    def whitens(self) -> bool:
        """As the setting says."""
        return bool(self.whiten)

    @property
    def plans_whitening(self) -> bool:
        """Of rows, where the user does not say otherwise."""
        return self.unit == "rows" and self.whiten is not False

    def asks_all(self, exposure: Exposure) -> bool:
        """A cohort that is known amplifies nothing, and has less to say."""
        return True

    @property
    def known(self) -> float:
        """The largest share of the noise that colluding clients know: of what is left when others have dropped out."""
        return self.collude / (1 - self.dropouts)

    @property
    def public_rows(self) -> int | None:
        """As the setting says, for rows."""
        return self.rows if self.unit == "rows" else None

    def sums(self) -> SharedNoise:
        """How sums are formed, before it is known how much noise they need."""
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
        """Also refuse what is not a sum of bounded summands, and what can't be.

        Raises:
            PrivacyError: says which.
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
        if self.audit or self.raw_metrics:
            what = "audit" if self.audit else "raw_metrics"
            raise PrivacyError(f"FP7056 {self.name} shows nothing but a noisy sum, so there is no {what}; leave it out")
        if self.whiten and self.unit != "rows":
            raise PrivacyError(
                f"FP7057 whiten is of gradients of rows; leave it out of {self.name}, or give it unit=rows"
            )
        if self.known >= 1:
            raise PrivacyError(
                f"FP7058 collude={self.collude:g} and dropouts={self.dropouts:g} leave no noise that the server does "
                "not know; together they must be below 1"
            )
        self.sums().check_colluding(exposure.clients if exposure.start else self.most(exposure))
        if self.dropouts >= 1 - self.threshold and self.dropouts:
            raise PrivacyError(
                f"FP7059 dropouts={self.dropouts:g} would leave fewer clients than the masks' "
                f"threshold={self.threshold:g} takes; their sum must be below 1"
            )
        if self.unit == "rows" and exposure.method.privacy == "refused":
            method = name_of(type(exposure.method))
            raise PrivacyError(
                f"FP7060 {self.name} can't find gradients per example of the PEFT method {method}; take lora"
            )
        if self.unit == "rows" and isinstance(exposure.strategy, SelectsUpdate):
            raise PrivacyError(
                f"FP7061 {name} lets clients choose what they submit, and sums of gradients are sent whole"
            )

    def assume_colluding(self, share: float) -> Self:
        """Return the mechanism with the larger of both shares."""
        return replace(self, collude=max(self.collude, share))

    def check_remote(self) -> None:
        """Refuse sums of rows of which nobody knows how many there are.

        Raises:
            PrivacyError: says what is missing.
        """
        if self.unit == "rows" and self.rows is None:
            raise PrivacyError(
                f"FP7062 {self.name}(unit=rows) draws the rows of all clients with one probability, and real clients "
                f"know their own alone; say about how many there are together, as all may know: {self.name}(rows=5000, "
                "...)"
            )

    # ------------------------------------------------------------------------------------------------- what is planned

    def signal_to_noise(self, exposure: Exposure, share: float, entries: int) -> float:
        """Less where some tell their noise: that of the others has to hide all, and theirs is added."""
        unknown = max(1 - self.known, 1e-6)  # none at all is refused by `check`
        return math.sqrt(unknown) * super().signal_to_noise(exposure, share, entries)

    def training_signal(self, exposure: Exposure) -> float:
        """Less where not all take part: cohorts are known, so that who is drawn most often is what is paid for."""
        known = self.share(exposure) * math.sqrt(exposure.rounds / self.often(exposure))
        return known * super().training_signal(exposure)

    def least_signal(self, exposure: Exposure) -> float:
        """Less where the head alone is trained, and least on whitened features."""
        if exposure.whitened:
            return LEAST_SIGNAL_WHITENED
        return LEAST_SIGNAL_HEAD if exposure.head_alone else super().least_signal(exposure)

    def plan_training(self, exposure: Exposure, pace: Pace | None = None) -> Training:
        """By what is added up: clients, or rows; with a fine grid, since sums of all are long."""
        mechanism = replace(self, bits=FINE) if self.bits == COARSE else self
        if self.unit == "clients":
            return plan_for_clients(mechanism, exposure, pace)
        if exposure.whitened:
            return plan_for_whitened(replace(mechanism, whiten=True), exposure, pace)
        rate = 1.0 if exposure.head_alone else ONE_NOISE_RATE
        return plan_for_rows(mechanism, exposure, pace, ONE_NOISE, rate=rate)

    # ------------------------------------------------------------------------------------------------------- what costs

    def units(self, exposure: Exposure) -> int:
        """Rows, or clients, of the whole sum."""
        return self.total(exposure) if self.unit == "rows" else exposure.clients

    def total(self, exposure: Exposure) -> int:
        """Training rows of all clients: as the setting says, or as they are; what depends on it is told to all."""
        return int(exposure.rows.sum()) if self.rows is None else self.rows

    def share(self, exposure: Exposure) -> float:
        """With which a client is in a round."""
        return exposure.cohort / exposure.clients

    def often(self, exposure: Exposure) -> int:
        """How often a client is planned to take part: hardly any is drawn more often."""
        chance = UNPLANNED / exposure.clients
        return max(1, int(binom.ppf(1 - chance, exposure.rounds, self.share(exposure))))

    def rate(self, exposure: Exposure) -> float:
        """With which a unit is in a round that its client is in: alike for the rows of all, so that none costs more."""
        if self.unit == "clients":
            return 1.0
        return min(1.0, exposure.batch_size * exposure.clients / self.total(exposure))

    def plan_releases(self, exposure: Exposure) -> list[tuple[float, int]]:
        """The account that spends most."""
        return [(self.rate(exposure), self.often(exposure))]

    def charges(self, exposure: Exposure, cohort: Sequence[int], noise: float) -> Charges:
        """One release of each client, as the server sees it."""
        event = self.grid(exposure, noise).event(self.rate(exposure), known=self.known)
        return dict.fromkeys(cohort, (event, 1))

    def start_charges(self, exposure: Exposure, noise: float) -> Charges:
        """What the start costs: one release of each client."""
        event = self.start_grid(exposure, noise).event(1.0, known=self.known)
        return dict.fromkeys(range(exposure.clients), (event, 1))

    def to_all(self, exposure: Exposure, noise: float, start: float | None, starts: int, rounds: int) -> Events:
        """What so many starts and rounds have told those who see the models alone, of who it has told most."""
        rate, share = self.rate(exposure), self.share(exposure)
        told: Events = {}
        if start is not None and starts:
            told = {self.start_grid(exposure, start).event(1.0): starts}
        if not rounds:
            return told
        grid = self.grid(exposure, noise)
        # With dropouts the noise of a cohort tells its size, and who knows the others whether the client is in it.
        amplified = self.unit == "clients" and not self.dropouts and not self._decides(exposure, rounds)
        event = grid.event(share) if amplified else grid.event(rate, share)
        return together(told, {event: rounds})

    def _decides(self, exposure: Exposure, rounds: int) -> bool:
        """Whether in some round a client may make just enough for a sum: then that there is one tells of the client."""
        chance = rounds * binom.pmf(FEWEST - 1, exposure.clients - 1, self.share(exposure))
        return bool(chance > self.delta(exposure) / 1000)

    # -------------------------------------------------------------------------------------------------- how much noise

    def grid(self, exposure: Exposure, noise: float) -> Grid:
        """Of rounds whose noise has at least z = `noise`.

        Raises:
            PrivacyError: the integers are too small for it.
        """
        clients = self.most(exposure)
        signal = self.clip * (self.summands(exposure) if self.unit == "rows" else clients)
        return self._grid(noise, self.clip, self.bits, clients, exposure.trained, signal)

    def start_grid(self, exposure: Exposure, noise: float) -> Grid:
        """Of the sum before round 1."""
        size = exposure.start_entries
        return self._grid(noise, 1.0, STATISTICS_BITS, exposure.clients, (size, size), float(self.units(exposure)))

    def _grid(self, noise: float, clip: float, bits: int, clients: int, sizes: tuple[int, int], signal: float) -> Grid:
        if not noise:
            raise PrivacyError(f"FP7063 {self.name} without noise protects nothing; give it a noise_multiplier above 0")
        return widest_grid(noise, clip, bits, clients, math.floor(self.dropouts * clients), sizes, signal)

    def most(self, exposure: Exposure) -> int:
        """Clients that a cohort hardly exceeds."""
        return int(binom.ppf(1 - 1e-6, exposure.clients, self.share(exposure)))

    def summands(self, exposure: Exposure) -> float:
        """Expected in a round's sum: rows, or clients."""
        if self.unit == "clients":
            return float(exposure.cohort)
        return self.rate(exposure) * self.total(exposure) * self.share(exposure)

    def multiplier(self, exposure: Exposure) -> float:
        """The noise multiplier: as given, or the smallest that keeps every account within epsilon as planned."""
        if self.noise_multiplier is not None:
            return self.noise_multiplier
        start = self.start_noise(exposure)
        if start is not None and not self.trains(exposure):
            return start
        before = {} if start is None else {self.start_grid(exposure, start).event(1.0, known=self.known): 1}
        [(rate, count)] = self.plan_releases(exposure)
        return self._smallest(
            exposure,
            lambda z: together(before, {self.grid(exposure, z).event(rate, known=self.known): count}),
            f"{count} rounds",
        )

    def start_noise(self, exposure: Exposure) -> float | None:
        """As every mechanism's, by what sums on a grid cost."""
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
        """The smallest noise multiplier, to 0.2 %, with which this is within the budget."""
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
        """How sums are formed, with the noise in them."""
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
        """One for each row, or client."""
        return float(self.units(exposure))

    def start_summand(self, statistics: State) -> State:
        """Sums of bounded rows as they are, or all of a client's clipped to norm 1; noise is not told of here."""
        return {name: tensor for name, tensor in self.start_release.take(statistics).items() if name != VARIANCE}


part = DistributedDP

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
keeps its own ledger (`fedpeft.privacy.summed_ledger`), draws its noise and coins from its own key, and counts on the
noise of those alone whose certificates it has seen.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import ClassVar

from scipy.stats import binom

from fedpeft.aggregation.head_start import VARIANCE
from fedpeft.aggregation.server_optimizer import Pace
from fedpeft.aggregation.strategy import Strategy
from fedpeft.errors import PrivacyError
from fedpeft.parts import name_of, setting
from fedpeft.peft.adapter import State
from fedpeft.privacy.accountant import Events, rdp_epsilon, together
from fedpeft.privacy.exposure import Exposure
from fedpeft.privacy.ledger import Charges
from fedpeft.privacy.mechanism import Mechanism, Training, bounded_block, noisy
from fedpeft.privacy.noise import RunKey
from fedpeft.privacy.secure_sum.announcement import STATISTICS_BITS
from fedpeft.privacy.secure_sum.cohorts import FEWEST
from fedpeft.privacy.secure_sum.shared_noise import SharedNoise
from fedpeft.privacy.skellam import Grid, widest_grid
from fedpeft.privacy.training_plans import (
    AUDIBLE_HEAD,
    AUDIBLE_WHITENED,
    ONE_NOISE,
    ONE_NOISE_RATE,
    planned_for_clients,
    planned_for_rows,
    planned_for_whitened,
)

LEAST_NOISE, MOST_NOISE = 1e-6, 1e6
"""Noise multipliers of which a grid can be computed; none that protects is near them."""

COARSE, FINE = 16, 24
"""Bits of the integers that are added up: by default, and as planned."""

UNPLANNED = 0.05
"""Chance that some client is drawn more often than is planned for; then the run ends early."""


@dataclass(frozen=True)
class DistributedDP(Mechanism):
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
    secret_cohort: ClassVar[bool] = True
    noises_updates: ClassVar[bool] = False
    summed: ClassVar[bool] = True

    @property
    def hides(self) -> str:  # type: ignore[override]
        """By the setting `unit`."""
        return "training row" if self.unit == "rows" else "client"

    @property
    def per_example(self) -> bool:  # type: ignore[override]
        """Rows are clipped one by one."""
        return self.unit == "rows"

    @property
    def whitens(self) -> bool:
        """As the setting says."""
        return bool(self.whiten)

    @property
    def plans_whitening(self) -> bool:
        """Of rows, where the user does not say otherwise."""
        return self.unit == "rows" and self.whiten is not False

    @property
    def suited_head(self) -> str:
        """Of rows from moments, too: they are worth their share of one noise, and tell how to whiten features."""
        return "private_ridge(dimensions=512)" if self.plans_whitening else super().suited_head

    def asks_all(self, federation: Exposure) -> bool:
        """A cohort that is known amplifies nothing, and has less to say."""
        return True

    @property
    def known(self) -> float:
        """The largest share of the noise that colluding clients know: of what is left when others have dropped out."""
        return self.collude / (1 - self.dropouts)

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

    def check(self, federation: Exposure) -> None:
        """Also refuse what is not a sum of bounded summands, and what can't be.

        Raises:
            PrivacyError: says which.
        """
        super().check(federation)
        name = name_of(type(federation.strategy))
        if self.noise_multiplier and not LEAST_NOISE <= self.noise_multiplier <= MOST_NOISE:
            raise PrivacyError(
                f"FP7054 noise_multiplier={self.noise_multiplier:g} is beyond what a grid can hold; give {self.name} "
                f"one from {LEAST_NOISE:g} to {MOST_NOISE:g}"
            )
        if not federation.even:
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
        self.sums().check_colluding(federation.clients if federation.start else self.most(federation))
        if self.dropouts >= 1 - self.threshold and self.dropouts:
            raise PrivacyError(
                f"FP7059 dropouts={self.dropouts:g} would leave fewer clients than the masks' "
                f"threshold={self.threshold:g} takes; their sum must be below 1"
            )
        if self.unit == "rows" and federation.method.privacy == "refused":
            method = name_of(type(federation.method))
            raise PrivacyError(
                f"FP7060 {self.name} can't find gradients per example of the PEFT method {method}; take lora"
            )
        if self.unit == "rows" and type(federation.strategy).submitted is not Strategy.submitted:
            raise PrivacyError(
                f"FP7061 {name} lets clients choose what they submit, and sums of gradients are sent whole"
            )

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

    def signal_to_noise(self, federation: Exposure, share: float, entries: int) -> float:
        """Less where some tell their noise: that of the others has to hide all, and theirs is added."""
        unknown = max(1 - self.known, 1e-6)  # none at all is refused by `check`
        return math.sqrt(unknown) * super().signal_to_noise(federation, share, entries)

    def training_signal(self, federation: Exposure) -> float:
        """Less where not all take part: cohorts are known, so that who is drawn most often is what is paid for."""
        known = self.share(federation) * math.sqrt(federation.rounds / self.often(federation))
        return known * super().training_signal(federation)

    def audible(self, federation: Exposure) -> float:
        """Less where the head alone is trained, and least on whitened features."""
        if federation.whitened:
            return AUDIBLE_WHITENED
        return AUDIBLE_HEAD if federation.head_alone else super().audible(federation)

    def planned_training(self, federation: Exposure, pace: Pace | None = None) -> Training | None:
        """By what is added up: clients, or rows; with a fine grid, since sums of all are long."""
        mechanism = replace(self, bits=FINE) if self.bits == COARSE else self
        if self.unit == "clients":
            return planned_for_clients(mechanism, federation, pace)
        if federation.whitened:
            return planned_for_whitened(replace(mechanism, whiten=True), federation, pace)
        rate = 1.0 if federation.head_alone else ONE_NOISE_RATE
        return planned_for_rows(mechanism, federation, pace, ONE_NOISE, rate=rate)

    # ------------------------------------------------------------------------------------------------------- what costs

    def units(self, federation: Exposure) -> int:
        """Rows, or clients, of the whole sum."""
        return self.total(federation) if self.unit == "rows" else federation.clients

    def total(self, federation: Exposure) -> int:
        """Training rows of all clients: as the setting says, or as they are; what depends on it is told to all."""
        return int(federation.rows.sum()) if self.rows is None else self.rows

    def share(self, federation: Exposure) -> float:
        """With which a client is in a round."""
        return federation.cohort / federation.clients

    def often(self, federation: Exposure) -> int:
        """How often a client is planned to take part: hardly any is drawn more often."""
        chance = UNPLANNED / federation.clients
        return max(1, int(binom.ppf(1 - chance, federation.rounds, self.share(federation))))

    def rate(self, federation: Exposure) -> float:
        """With which a unit is in a round that its client is in: alike for the rows of all, so that none costs more."""
        if self.unit == "clients":
            return 1.0
        return min(1.0, federation.batch_size * federation.clients / self.total(federation))

    def planned(self, federation: Exposure) -> list[tuple[float, int]]:
        """The account that spends most."""
        return [(self.rate(federation), self.often(federation))]

    def charges(self, federation: Exposure, cohort: Sequence[int], noise: float) -> Charges:
        """One release of each client, as the server sees it."""
        event = self.grid(federation, noise).event(self.rate(federation), known=self.known)
        return dict.fromkeys(cohort, (event, 1))

    def begun(self, federation: Exposure, noise: float) -> Charges:
        """What the start costs: one release of each client."""
        event = self.start_grid(federation, noise).event(1.0, known=self.known)
        return dict.fromkeys(range(federation.clients), (event, 1))

    def to_all(self, federation: Exposure, noise: float, start: float | None, starts: int, rounds: int) -> Events:
        """What so many starts and rounds have told those who see the models alone, of who it has told most."""
        rate, share = self.rate(federation), self.share(federation)
        told: Events = {}
        if start is not None and starts:
            told = {self.start_grid(federation, start).event(1.0): starts}
        if not rounds:
            return told
        grid = self.grid(federation, noise)
        # With dropouts the noise of a cohort tells its size, and who knows the others whether the client is in it.
        amplified = self.unit == "clients" and not self.dropouts and not self._decides(federation, rounds)
        event = grid.event(share) if amplified else grid.event(rate, share)
        return together(told, {event: rounds})

    def _decides(self, federation: Exposure, rounds: int) -> bool:
        """Whether in some round a client may make just enough for a sum: then that there is one tells of the client."""
        chance = rounds * binom.pmf(FEWEST - 1, federation.clients - 1, self.share(federation))
        return bool(chance > self.delta(federation) / 1000)

    # -------------------------------------------------------------------------------------------------- how much noise

    def grid(self, federation: Exposure, noise: float) -> Grid:
        """Of rounds whose noise has at least z = `noise`.

        Raises:
            PrivacyError: the integers are too small for it.
        """
        clients = self.most(federation)
        signal = self.clip * (self.summands(federation) if self.unit == "rows" else clients)
        return self._grid(noise, self.clip, self.bits, clients, federation.trained, signal)

    def start_grid(self, federation: Exposure, noise: float) -> Grid:
        """Of the sum before round 1."""
        size = federation.start_entries
        return self._grid(noise, 1.0, STATISTICS_BITS, federation.clients, (size, size), float(self.units(federation)))

    def _grid(self, noise: float, clip: float, bits: int, clients: int, sizes: tuple[int, int], signal: float) -> Grid:
        if not noise:
            raise PrivacyError(f"FP7063 {self.name} without noise protects nothing; give it a noise_multiplier above 0")
        return widest_grid(noise, clip, bits, clients, math.floor(self.dropouts * clients), sizes, signal)

    def most(self, federation: Exposure) -> int:
        """Clients that a cohort hardly exceeds."""
        return int(binom.ppf(1 - 1e-6, federation.clients, self.share(federation)))

    def summands(self, federation: Exposure) -> float:
        """Expected in a round's sum: rows, or clients."""
        if self.unit == "clients":
            return float(federation.cohort)
        return self.rate(federation) * self.total(federation) * self.share(federation)

    def multiplier(self, federation: Exposure) -> float:
        """The noise multiplier: as given, or the smallest that keeps every account within epsilon as planned."""
        if self.noise_multiplier is not None:
            return self.noise_multiplier
        start = self.start_noise(federation)
        if start is not None and not self.trains(federation):
            return start
        before = {} if start is None else {self.start_grid(federation, start).event(1.0, known=self.known): 1}
        [(rate, count)] = self.planned(federation)
        return self._smallest(
            federation,
            lambda z: together(before, {self.grid(federation, z).event(rate, known=self.known): count}),
            f"{count} rounds",
        )

    def start_noise(self, federation: Exposure) -> float | None:
        """As every mechanism's, by what sums on a grid cost."""
        if not federation.start:
            return None
        share = self.start_share(federation)
        if self.epsilon is None:
            return self.noise_multiplier
        if not share:
            return super().start_noise(federation)
        whole = self._smallest(
            federation, lambda z: {self.start_grid(federation, z).event(1.0, known=self.known): 1}, "a private start"
        )
        return whole / math.sqrt(share)

    def _smallest(self, federation: Exposure, spent: Callable[[float], Events], what: str) -> float:
        """The smallest noise multiplier, to 0.2 %, with which this is within the budget."""
        assert self.epsilon is not None
        delta, budget = self.delta(federation), self.epsilon
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

    def sums_of(self, federation: Exposure, noise: float, start: float | None) -> SharedNoise:
        """How sums are formed, with the noise in them."""
        trains = start is None or self.trains(federation)
        return replace(
            self.sums(),
            rate=self.rate(federation),
            expected=self.summands(federation),
            first=None if start is None else self.start_grid(federation, start),
            later=self.grid(federation, noise) if trains else None,
        )

    # -------------------------------------------------------------------------------------------------- before round 1

    def start_signal(self, federation: Exposure) -> float:
        """One for each row, or client."""
        return float(self.units(federation))

    def start_deviation(self, federation: Exposure, noise: float) -> float:
        """One noise for the whole sum."""
        return noise

    def start_summand(self, statistics: State) -> State:
        """Sums of bounded rows as they are, or all of a client's clipped to norm 1; noise is not told of here."""
        statistics = statistics if self.unit == "rows" else bounded_block(statistics)
        return {name: tensor for name, tensor in statistics.items() if name != VARIANCE}

    def start_released(self, statistics: State, noise: float, key: RunKey, ids: tuple[int, ...]) -> State:
        """For the probe, which draws one Gaussian noise for the sum: as it is summed."""
        return statistics if self.unit == "rows" else bounded_block(statistics)

    def start_summed(self, total: State, noise: float, key: RunKey, attempt: int) -> State:
        """For the probe: sum + z gauss."""
        return noisy(total, noise, key.stream("start noise", attempt))


part = DistributedDP

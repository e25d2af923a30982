"""User-level DP at the server (DP-FedAvg, McMahan et al., arXiv 1710.06963): hides that a client took part at all.

    every client joins a round with probability q, by secret coins; an empty cohort takes its step like any other
    step = (sum_k clip(d_k, C) + z C gauss) / (q N)

d_k is the strategy's contribution of a client's decoded update (`LinearStrategy.contribution`), clipped as a whole. The
server is trusted; its release, the next global adapter, is private. Weights are equal. The denominator is the expected
number of clients, because the real number is private. Only linear rules work: gathering rules read raw factors.

With noise=banded clients take turns in known cohorts of q N instead. The noise of rounds is related so that little of
it is left in their sum (DP-FTRL; `fedpeft.privacy.server_noise`). Nothing is amplified then: each client pays for each
of its rounds.

Adaptive clipping (Andrew et al., arXiv 1905.03871), with `quantile` gamma, lets C follow the quantile of the norms:

    b = 1/2 + (sum_k (1[|d_k| <= C] - 1/2) + s_b gauss) / (q N);   C <- C exp(-eta (b - gamma))

The sum then has noise z_sum = (z^-2 - (2 s_b)^-2)^-1/2 with this round's C. So both releases together cost as much as
one with z, which is charged. The indicators are centered: without that their sensitivity would be 1, not 1/2.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import ClassVar

import numpy as np
import torch
from scipy.linalg import solve_triangular

from fedpeft.aggregation.aggregator import AggregationResult, Aggregator
from fedpeft.aggregation.server_optimizer import OptimizerState, Pace
from fedpeft.aggregation.shared_sums import is_plain_sum, list_shared_sums
from fedpeft.aggregation.strategy import LinearStrategy, Strategy, count_round_types
from fedpeft.aggregation.update import Fold, Update, check_made
from fedpeft.errors import PrivacyError
from fedpeft.parts import name_of, setting
from fedpeft.parts.families import SERVER_NOISES, strategies
from fedpeft.peft.adapter import Layout, compute_norm
from fedpeft.privacy.abilities import ServerRound
from fedpeft.privacy.accountant import Event, noise_for
from fedpeft.privacy.exposure import Exposure
from fedpeft.privacy.ledger import POPULATION, Charges
from fedpeft.privacy.mechanism import HALF, CohortForm, Mechanism
from fedpeft.privacy.noise import draw_gaussian
from fedpeft.privacy.server_noise import (
    ServerNoise,
    compute_correlated_noise,
    compute_noise_variance,
    count_turns,
    extend_chain,
    remember_chain,
)
from fedpeft.privacy.start_release import StartRelease
from fedpeft.privacy.training_plans import LEAST_SIGNAL_HEAD, MOST_ASKED, Training, plan_for_clients


class NoisySum:
    """Aggregator that clips each update, sums, adds noise, and then applies the strategy and the server optimizer.

    Args:
        at: the round.
        expected: q N, which the sum is divided by.
        noise: z of the sum.
        adapt: the rule that moves the clipping norm; None: it stays.
        factor: the matrix F that relates the noise of rounds; None: the noise of each round is independent.
    """

    def __init__(
        self,
        at: ServerRound,
        expected: float,
        noise: float,
        adapt: Adaptation | None = None,
        factor: np.ndarray | None = None,
    ) -> None:
        """Start with an empty sum over the tensors that the round releases."""
        assert isinstance(at.strategy, LinearStrategy)
        self.at, self.strategy = at, at.strategy
        self.expected, self.noise, self.adapt, self.factor = expected, noise, adapt, factor
        released = self.strategy.list_trained(at.layout, at.round) - self.strategy.list_private(at.layout)
        names = [name for name in at.layout.names if name in released]
        self.total = Fold({name: torch.zeros(at.layout.shapes[name], dtype=torch.float64) for name in names})
        self.centred = 0.0

    def add(self, update: Update) -> None:
        """Add clip(d_k, C)."""
        contribution = self.strategy.contribution(update, self.at.state, self.at.layout)
        check_made(self.strategy, contribution, self.at.state, self.total.sums)
        length = compute_norm(contribution)
        self.total.add(contribution, min(1.0, self.at.clip / length) if length else 1.0)
        self.centred += 0.5 if length <= self.at.clip else -0.5

    def finish(self, memory: OptimizerState) -> AggregationResult:
        """Return the next state, after the noisy mean, the server optimizer's step and the strategy's post-processing.

        The result also contains the optimizer state and the next clipping norm.
        """
        at, deviation = self.at, self.noise * self.at.clip
        chain = [(at.round, at.attempt)] if self.factor is None else extend_chain(memory, at.round, at.attempt)
        if self.factor is None:
            stream = at.key.stream("server noise", at.round, at.attempt)
            drawn = {name: draw_gaussian(stream, total) for name, total in self.total.sums.items()}
        else:
            drawn = compute_correlated_noise(self.factor, chain, at.key, self.total.sums)
        direction = {
            name: ((total + deviation * drawn[name]) / self.expected).to(at.state[name].dtype)
            for name, total in self.total.sums.items()
        }
        clip = at.clip
        if self.adapt is not None:
            clip = self.adapt.next(clip, self.centred, float(stream.standard_normal()), self.expected)
        related = 1.0 if self.factor is None else compute_noise_variance(self.factor, chain)
        optimizer = at.optimizer.correct_for_noise(related * (deviation / self.expected) ** 2)
        after, memory = optimizer.step(at.state, direction, memory)
        memory = memory if self.factor is None else remember_chain(memory, chain)
        return AggregationResult(self.strategy.finish(at.state, after, at.layout, at.round), memory, clip=clip)


@dataclass(frozen=True)
class Adaptation:
    """The rule by which the clipping norm follows a quantile of the norms.

    Attributes:
        quantile: gamma, above 0, at most 1.
        rate: eta, above 0.
        count_noise: s_b, in clients.
    """

    quantile: float
    rate: float
    count_noise: float

    def sum_noise(self, noise: float) -> float:
        """Return z of the sum, with which sum and count together cost as much as one release with `noise`."""
        return (noise**-2 - (2 * self.count_noise) ** -2) ** -0.5 if noise else 0.0

    def next(self, clip: float, centred: float, draw: float, expected: float) -> float:
        """Return C of the next round.

        Args:
            clip: C of this round.
            centred: sum_k (1[|d_k| <= C] - 1/2).
            draw: a standard normal number.
            expected: q N.
        """
        share = 0.5 + (centred + self.count_noise * draw) / expected
        return clip * math.exp(-self.rate * (share - self.quantile))


@dataclass(frozen=True)
class UserDP(Mechanism):
    """A noisy sum of clipped updates of Poisson-sampled clients."""

    quantile: float = setting(
        0.0, "adaptive clipping: clip follows this quantile of the norms; 0: fixed", low=0, high=1
    )
    clip_rate: float = setting(0.2, "adaptive clipping: eta (paper: 0.2)", above=0)
    count_noise: float | None = setting(
        None, "adaptive clipping: s_b, noise on the number of clipped clients; none: q N / 20 (paper)", above=0
    )

    noise: str = setting(
        "independent",
        "noise of rounds: independent; or banded(bands=8): related, and clients take turns in known cohorts",
        nested=SERVER_NOISES,
    )

    privacy_unit: ClassVar[str] = "client"
    noises_updates: ClassVar[bool] = False
    start_release: ClassVar[StartRelease] = StartRelease(by_clients=False, clips_clients=True)

    def __post_init__(self) -> None:
        """Check that `noise` names a server noise.

        Raises:
            ConfigError: there is no such server noise; the message lists those that exist.
        """
        SERVER_NOISES.build(self.noise)

    @cached_property
    def relation(self) -> ServerNoise:
        """The relation between the noise of rounds."""
        return SERVER_NOISES.build(self.noise)

    @property
    def turns(self) -> bool:
        """Whether the noise requires that clients take turns."""
        return self.relation.turns

    @property
    def cohort_form(self) -> CohortForm:
        """Secret draws, unless clients take turns."""
        return CohortForm.TURNS if self.turns else CohortForm.SECRET

    def asks_all(self, exposure: Exposure) -> bool:
        """Return whether there are at most `MOST_ASKED` clients that do not take turns.

        With fewer clients in a round, the lost signal exceeds the noise that amplification by secret coins saves.
        """
        return not self.turns and exposure.clients <= MOST_ASKED

    @property
    def neighbours(self) -> str:  # type: ignore[override]
        """The neighboring relation, in words.

        If clients take turns, everybody knows whose turn it is, but not what is added then.
        """
        return f"one client, with all its data, {'or none in its place' if self.turns else 'more or less'}"

    @property
    def sampling(self) -> str:  # type: ignore[override]
        """The assumption about sampling: secret coins, or none."""
        if self.turns:
            return "none: clients take turns in known cohorts, and nothing is amplified"
        return "clients join each round by independent secret coins (Poisson)"

    def check(self, exposure: Exposure) -> None:
        """Reject rules that are not a plain sum, uneven chances, and noise that does not fit the cohorts.

        Raises:
            PrivacyError: the message names the setting and the remedy.
        """
        super().check(exposure)
        strategy = exposure.strategy
        name = name_of(type(strategy))
        sums = list_shared_sums(exposure.layout)
        take = _format_choices(sums)
        if not is_plain_sum(type(strategy)):
            raise PrivacyError(
                f"FP7067 user_dp needs a strategy that adds up clients' contributions with equal weights, and {name} "
                f"does not; {take}, or protect the updates themselves with dp_sgd or local_dp"
            )
        if strategy.list_private(exposure.layout):
            raise PrivacyError(
                f"FP7068 {name} leaves tensors with clients, and user_dp does not protect their evaluation on clients' "
                f"own examples; {take}"
            )
        if not exposure.even:
            raise PrivacyError(
                "FP7069 user_dp needs the same chance of being drawn for all clients; leave out participation"
            )
        self.relation.check(self._separation(exposure))
        if self.turns and self.quantile:
            raise PrivacyError(
                f"FP7070 quantile needs cohorts that are drawn at random, but with noise={self.noise} clients "
                "take turns; leave quantile or noise out of user_dp"
            )
        if self.turns and not _is_steady(strategy, exposure.layout):
            steady = [n for n in sums if _is_steady(strategies.build(n), exposure.layout)]
            raise PrivacyError(
                f"FP7071 noise={self.noise} cancels noise of earlier rounds, but {name} changes the trained "
                f"tensors, or their meaning, from round to round; {_format_choices(steady)}, or leave noise out"
            )

    def units(self, exposure: Exposure) -> int:
        """Return the number of clients."""
        return exposure.clients

    def rate(self, exposure: Exposure) -> float:
        """Return q, the probability with which a client joins a round."""
        return exposure.cohort / exposure.clients

    def _separation(self, exposure: Exposure) -> int:
        return count_turns(exposure.clients, exposure.cohort)

    def training_signal(self, exposure: Exposure) -> float:
        """Return the signal-to-noise ratio of training, reduced if not all clients are asked.

        Fewer clients reduce the noise by less than they reduce the signal.
        """
        whole = super().training_signal(exposure)
        if exposure.cohort == exposure.clients:
            return whole
        assert self.epsilon is not None
        delta, rounds = self.delta(exposure), exposure.rounds
        start = {Event(noise_for(self.epsilon, delta, 1.0, 1) / math.sqrt(HALF), 1.0): 1}
        of_all = noise_for(self.epsilon, delta, 1.0, rounds, start)
        [(rate, releases)] = self.plan_releases(exposure)
        noise = noise_for(self.epsilon, delta, rate, releases, start)
        return whole * self.rate(exposure) * of_all / (noise * self._added_up(exposure))

    def _added_up(self, exposure: Exposure) -> float:
        """Return the norm of the noise of all rounds together, relative to that of independent noise."""
        factor, ones = self.noise_factor(exposure), np.ones(exposure.rounds)
        if factor is None:
            return 1.0
        return float(np.linalg.norm(solve_triangular(factor, ones, trans="T", lower=True)) / np.linalg.norm(ones))

    def least_signal(self, exposure: Exposure) -> float:
        """Return the least `training_signal`, lower if the head alone is trained."""
        return LEAST_SIGNAL_HEAD if exposure.head_alone else super().least_signal(exposure)

    def plan_training(self, exposure: Exposure, pace: Pace | None = None) -> Training:
        """Return a plan with one step of a client on all of its examples (`fedpeft.privacy.training_plans`)."""
        return plan_for_clients(self, exposure, pace)

    def plan_releases(self, exposure: Exposure) -> list[tuple[float, int]]:
        """Return one release for each round, or for each turn of a client."""
        if self.turns:
            return [(1.0, math.ceil(exposure.rounds / self._separation(exposure)))]
        return [(self.rate(exposure), exposure.rounds)]

    def charges(self, exposure: Exposure, cohort: Sequence[int], noise: float) -> Charges:
        """Return one release of the population, whoever joined, or one of each client whose turn it is."""
        if self.turns:
            return dict.fromkeys(cohort, (Event(noise, 1.0), 1))
        return {POPULATION: (Event(noise, self.rate(exposure)), 1)}

    def noise_factor(self, exposure: Exposure) -> np.ndarray | None:
        """Return the matrix F of the setting `noise`, (rounds, rounds); None: the noise is independent."""
        return self.relation.factor(exposure.rounds, self._separation(exposure))

    def aggregator(self, at: ServerRound, exposure: Exposure) -> Aggregator:
        """Return the noisy sum."""
        if not self.quantile:
            return NoisySum(at, exposure.cohort, at.noise, factor=self.noise_factor(exposure))
        adapt = Adaptation(self.quantile, self.clip_rate, self.count_noise or exposure.cohort / 20)
        return NoisySum(at, exposure.cohort, adapt.sum_noise(at.noise), adapt)

    def start_charges(self, exposure: Exposure, noise: float) -> Charges:
        """Return one release of all clients."""
        return dict.fromkeys(range(exposure.clients) if self.turns else [POPULATION], (Event(noise, 1.0), 1))

    def multiplier(self, exposure: Exposure) -> float:
        """Return the noise multiplier as in the base class, and check that adaptive clipping has s_b > z / 2.

        Raises:
            PrivacyError: s_b is too small.
        """
        noise = super().multiplier(exposure)
        least = self.count_noise or exposure.cohort / 20
        if self.quantile and least <= noise / 2:
            raise PrivacyError(
                f"FP7072 adaptive clipping with noise multiplier {noise:.3g} needs count_noise above {noise / 2:.3g}, "
                f"got {least:.3g}; raise count_noise or the cohort"
            )
        return noise


def _is_steady(strategy: Strategy, layout: Layout) -> bool:
    """Return whether all rounds train the same tensors with the same meaning."""
    return count_round_types(strategy, layout) == 1 and not strategy.new_factors


def _format_choices(names: Sequence[str]) -> str:
    """Return an advice that lists what to take, from at least one name."""
    *others, last = names
    return f"use {', '.join(others)} or {last}" if others else f"use {last}"


part = UserDP

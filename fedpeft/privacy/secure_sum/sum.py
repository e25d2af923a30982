"""The settings of secure sums."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from fedpeft.errors import PrivacyError
from fedpeft.parts import name_of, setting
from fedpeft.parts.families import MECHANISMS, SUMS
from fedpeft.parts.spec import parse_spec
from fedpeft.privacy.mechanism import Mechanism
from fedpeft.privacy.secure_sum.cohorts import FEWEST, check_cohort
from fedpeft.privacy.secure_sum.collusion import explain_excess
from fedpeft.privacy.secure_sum.integers import FEWEST_LEVELS, Integers, check_fits, levels
from fedpeft.privacy.secure_sum.neighbours import Terms, degree
from fedpeft.privacy.sum_mechanism import SumMechanism


@dataclass(frozen=True)
class SecureSum:
    """A way to add up updates so that nobody sees a single one. Subclasses are frozen dataclasses."""

    neighbours: int = setting(100, "neighbors of each client, which share its masks and keep shares of its keys", low=2)
    threshold: float = setting(
        0.67, "share of a client's neighbors that must stay, or the sum is void; more tolerates more colluding clients",
        low=0.5, below=1,
    )  # fmt: skip
    bits: int = setting(16, "bits of the integers that are added up, modulo 2^bits", low=6, high=32)
    norm: float | None = setting(
        None, "rough norm of an update in round 1, from which later ones follow; none: steps of the learning rate "
        "in each entry",
        above=0,
    )  # fmt: skip
    headroom: float = setting(4.0, "clipping norm of weighted updates over the last round's mean norm", low=1)

    noisy: ClassVar[bool] = False
    """Whether clients add noise that hides everything they send."""

    assumed_colluding: ClassVar[float] = 0.0
    """Share of a sum's clients that the settings assume to collude with the server."""

    def check(self, cohort: int) -> None:
        """Reject cohorts that are too small to hide one client, or too large for the integers.

        Raises:
            PrivacyError: the message contains the legal size.
        """
        check_cohort(self.name, cohort)
        check_fits(cohort, self.bits)

    def check_lies(self) -> None:
        """Reject a threshold with which a server that sends different messages to clients could read one of them.

        Raises:
            PrivacyError: the message contains the legal thresholds.
        """
        if self.threshold < 2 / 3:
            raise PrivacyError(
                f"FP7081 with threshold={self.threshold:g} a server that sends different messages to clients could "
                f"unmask one of them; real clients take part in {self.name} with a threshold of 2/3 or more, such as "
                "0.67"
            )

    def terms(self, clients: int) -> Terms:
        """Return the terms that decide how many colluding clients a sum of `clients` clients tolerates."""
        return Terms(degree(clients, self.neighbours), self.threshold, self.bits, 0, b"")

    def check_colluding(self, largest: int) -> None:
        """Reject sums of at most `largest` clients in which the assumed colluding clients could read another client.

        Raises:
            PrivacyError: the message contains the first such size, and the remedy.
        """
        for clients in range(FEWEST, largest + 1) if self.assumed_colluding else ():
            if excess := explain_excess(self.terms(clients), clients, self.assumed_colluding):
                raise PrivacyError(f"FP7130 {excess}; lower collude, or raise threshold or the number of neighbors")

    @property
    def name(self) -> str:
        """The name on the command line."""
        return name_of(type(self))

    def least(self, clients: int) -> int:
        """Return the fewest of `clients` clients' vectors that may be summed; 0: the masks' threshold alone decides."""
        return 0

    def variance(self, clients: int, round_number: int) -> float:
        """Return the variance of the noise in each entry of a sum of `clients` clients."""
        return 0.0

    def grid_digest(self, round_number: int) -> bytes:
        """Return a digest of what clients of one sum must have in common beside the settings above; empty: nothing."""
        return b""

    def fits(self, clients: int, bits: int) -> bool:
        """Return whether a sum of `clients` clients has enough steps in `bits` bits."""
        return levels(clients, bits) >= FEWEST_LEVELS

    def integers(self, clients: int, bits: int, size: int, numbers: int, clip: float, round_number: int) -> Integers:
        """Return how the contributions of a round's sum become integers; see `Integers`. Round 0 is before round 1."""
        return Integers(clients, bits, size, numbers, clip)


def parse_privacy(text: str) -> Mechanism | SecureSum:
    """Parse the value of `--privacy`.

    Raises:
        ConfigError: the mechanism or a setting is unknown.
    """
    return SUMS.build(text) if parse_spec(text).name in SUMS.names else MECHANISMS.build(text)


def sums_in(privacy: str) -> SecureSum | None:
    """Return the secure sums that a value of `--privacy` implies; None: there are none.

    Raises:
        ConfigError: the mechanism or a setting is unknown.
    """
    return sums_under(parse_privacy(privacy) if privacy else None)


def sums_under(private: Mechanism | SecureSum | None) -> SecureSum | None:
    """Return the secure sums of a mechanism, or the secure sum itself; None: there are none."""
    if isinstance(private, Mechanism):
        return private.sums() if isinstance(private, SumMechanism) else None
    return private

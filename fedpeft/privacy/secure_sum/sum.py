"""What is said of secure sums in a run's settings."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from fedpeft.errors import PrivacyError
from fedpeft.families import SUMS as SUMS
from fedpeft.parts import name_of, setting
from fedpeft.privacy.mechanism import MECHANISMS, Mechanism
from fedpeft.privacy.secure_sum.cohorts import FEWEST, check_cohort
from fedpeft.privacy.secure_sum.collusion import explain_excess
from fedpeft.privacy.secure_sum.integers import FEWEST_LEVELS, Integers, check_fits, levels
from fedpeft.privacy.secure_sum.neighbours import Terms, degree
from fedpeft.privacy.sum_mechanism import SumMechanism
from fedpeft.spec import parse_spec


@dataclass(frozen=True)
class SecureSum:
    """How updates are added up where nobody may see one. Subclasses are frozen dataclasses."""

    neighbours: int = setting(100, "of each client: they share its masks, and keep shares of its keys", low=2)
    threshold: float = setting(
        0.67, "share of its neighbors that must stay, or the sum is void; higher ones tolerate more colluding clients",
        low=0.5, below=1,
    )  # fmt: skip
    bits: int = setting(16, "of the integers that are added up, modulo 2^bits", low=6, high=32)
    norm: float | None = setting(
        None, "roughly that of an update in round 1; none: steps of the learning rate in each entry; later ones follow",
        above=0,
    )  # fmt: skip
    headroom: float = setting(4.0, "weighted updates are clipped to so many times their last round's mean norm", low=1)

    noisy: ClassVar[bool] = False
    """Whether clients add noise, and all that they tell is hidden by it."""

    assumed_colluding: ClassVar[float] = 0.0
    """Share of a sum's clients that the settings assume to collude with the server."""

    def check(self, cohort: int) -> None:
        """Refuse sums of so few clients that one could be told from the others, or so many that they don't fit.

        Raises:
            PrivacyError: says which.
        """
        check_cohort(self.name, cohort)
        check_fits(cohort, self.bits)

    def check_lies(self) -> None:
        """Refuse a threshold with which a server that tells clients different things could read one.

        Raises:
            PrivacyError: says which is legal.
        """
        if self.threshold < 2 / 3:
            raise PrivacyError(
                f"FP7081 with threshold={self.threshold:g} a server that tells clients different things could take the "
                f"masks off one of them; real clients take part in {self.name} with a threshold of 2/3 or more, such "
                "as 0.67"
            )

    def terms(self, clients: int) -> Terms:
        """Return what decides how many colluding clients a sum of so many clients tolerates."""
        return Terms(degree(clients, self.neighbours), self.threshold, self.bits, 0, b"")

    def check_colluding(self, largest: int) -> None:
        """Raise if in a sum of at most `largest` clients the assumed colluding clients could read another.

        Raises:
            PrivacyError: names the first such size, and what is legal.
        """
        for clients in range(FEWEST, largest + 1) if self.assumed_colluding else ():
            if excess := explain_excess(self.terms(clients), clients, self.assumed_colluding):
                raise PrivacyError(excess)

    @property
    def name(self) -> str:
        """As on the command line."""
        return name_of(type(self))

    def least(self, clients: int) -> int:
        """Of so many clients' vectors, those without which there must be no sum; masks have a threshold by itself."""
        return 0

    def variance(self, clients: int, round_number: int) -> float:
        """Of the noise in each entry of the sum of so many clients."""
        return 0.0

    def grid_digest(self, round_number: int) -> bytes:
        """What clients of one sum must have in common beside the settings above; empty: nothing."""
        return b""

    def fits(self, clients: int, bits: int) -> bool:
        """Whether a sum of so many clients has enough steps in so many bits."""
        return levels(clients, bits) >= FEWEST_LEVELS

    def integers(self, clients: int, bits: int, size: int, numbers: int, clip: float, round_number: int) -> Integers:
        """How the contributions of a round's sum become integers; see `Integers`, round 0: before round 1."""
        return Integers(clients, bits, size, numbers, clip)


def parse_privacy(text: str) -> Mechanism | SecureSum:
    """What `--privacy` means.

    Raises:
        ConfigError: unknown mechanism or setting.
    """
    return SUMS.build(text) if parse_spec(text).name in SUMS.names else MECHANISMS.build(text)


def sums_in(privacy: str) -> SecureSum | None:
    """How sums are formed under what `--privacy` says; None: there are none.

    Raises:
        ConfigError: unknown mechanism or setting.
    """
    return sums_under(parse_privacy(privacy) if privacy else None)


def sums_under(private: Mechanism | SecureSum | None) -> SecureSum | None:
    """Return how sums are formed under a mechanism or as a secure sum; None: there are none."""
    if isinstance(private, Mechanism):
        return private.sums() if isinstance(private, SumMechanism) else None
    return private

"""The plan of a round: its clients, and the terms on which the server asks them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from fedpeft.communication.messages import Kind


def get_no_digest() -> str:
    """Return the digest of a plan that was made for no state."""
    return ""


@dataclass(frozen=True)
class RoundPlan:
    """The plan of one round.

    Attributes:
        number: the round, from 1; 0 is the preparation.
        cohort: ids of the clients that are asked, ascending.
        attempt: counts repetitions of a private round with other inputs; each has its own noise and charge.
        spent: clients that were drawn, but whose privacy budget is spent.
        kind: the task of the clients: `train`, or `prepare` before round 1.
        bits_share: share of their usual bits that the clients' updates take, above 0 and at most 1; below 1 only for
            codecs whose precision can be set (`Codec.set_bits`).
        steps: local steps by client, for clients that deviate from their profile.
        expected_cohort: mean size of a secret cohort; None: the cohort is public.
        steps_without_updates: whether the server steps even if no update is accepted. A secret cohort needs this, since
            a missing step would disclose that the only update was lost.
        digest: returns a digest of everything that the outcome of the round depends on.
    """

    number: int
    cohort: list[int]
    attempt: int = 0
    spent: tuple[int, ...] = ()
    kind: Kind = "train"
    bits_share: float = 1.0
    steps: Mapping[int, int] = field(default_factory=dict)
    expected_cohort: int | None = None
    steps_without_updates: bool = False
    digest: Callable[[], str] = field(default=get_no_digest, compare=False)

    @property
    def secret(self) -> bool:
        """Whether nobody may learn who takes part, nor how many clients do; such a cohort may be empty."""
        return self.expected_cohort is not None

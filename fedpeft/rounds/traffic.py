"""Bytes of a round's messages, and the running totals of a run."""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace


@dataclass(frozen=True)
class Traffic:
    """Totals over a round's messages.

    Attributes:
        uplink_bytes: bytes from clients to the server.
        downlink_bytes: bytes from the server to clients.
        base_bytes: part of `downlink_bytes` that brings clients' bases up to date.
        uplink_parameters: number of adapter parameters in all updates.
    """

    uplink_bytes: int = 0
    downlink_bytes: int = 0
    base_bytes: int = 0
    uplink_parameters: int = 0


@dataclass(frozen=True)
class Counters:
    """Running totals of a run, as in `Traffic`.

    Attributes:
        prepare_bytes: part of `uplink_bytes` before round 1 and between tasks.
        rejected: number of refused updates.
        round_seconds: seconds of all rounds.
    """

    uplink_bytes: int = 0
    downlink_bytes: int = 0
    prepare_bytes: int = 0
    base_bytes: int = 0
    uplink_parameters: int = 0
    rejected: int = 0
    round_seconds: float = 0.0

    def after(self, traffic: Traffic, rejected: int, seconds: float) -> Counters:
        """Return the totals with one more round."""
        more = asdict(traffic) | {"rejected": rejected, "round_seconds": seconds}
        return replace(self, **{name: getattr(self, name) + value for name, value in more.items()})

"""Bytes of a round's messages, and the running totals of a run."""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace


@dataclass(frozen=True)
class Traffic:
    """What a round's messages come to.

    `base_bytes` is the part of `downlink_bytes` that brings clients' bases up to date, `uplink_parameters` counts the
    adapters' parameters of all updates.
    """

    uplink_bytes: int = 0
    downlink_bytes: int = 0
    base_bytes: int = 0
    uplink_parameters: int = 0


@dataclass(frozen=True)
class Counters:
    """Running totals of a run, as in `Traffic`; `prepare_bytes` are those of `uplink_bytes` before round 1 and between
    tasks, `rejected` the updates left out."""

    uplink_bytes: int = 0
    downlink_bytes: int = 0
    prepare_bytes: int = 0
    base_bytes: int = 0
    uplink_parameters: int = 0
    rejected: int = 0
    round_seconds: float = 0.0

    def after(self, traffic: Traffic, rejected: int, seconds: float) -> Counters:
        """With one more round."""
        more = asdict(traffic) | {"rejected": rejected, "round_seconds": seconds}
        return replace(self, **{name: getattr(self, name) + value for name, value in more.items()})

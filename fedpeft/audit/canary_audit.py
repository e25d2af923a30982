"""Settings of an audit with canaries."""

from __future__ import annotations

from dataclasses import dataclass

from fedpeft.parts import setting


@dataclass(frozen=True)
class CanaryAudit:
    """Settings of an audit."""

    privacy: str = setting("", "mechanism: user_dp(noise_multiplier=4), dp_sgd(...), local_dp(...)")
    rounds: int = setting(10, "number of rounds", low=1)
    rate: float = setting(1.0, "sampling rate q of clients or examples", above=0, high=1)
    steps: int = setting(1, "local steps per round, for dp_sgd", low=1)
    strategy: str = setting("fedit", "aggregation strategy")
    codec: str = setting("fp32", "codec of the updates")
    canaries: int = setting(1000, "number of canaries; a coin decides which are in the data", low=20)
    seed: int = setting(0, "seed of the coins", low=0)

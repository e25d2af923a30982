"""Predicted energy and carbon of clients, from watts, seconds and bytes that profiles declare.

    training   watts_train x steps x step_seconds
    idle       watts_idle x (seconds of the slowest in the round - own)
    traffic    joule_per_byte x bytes, up and down
    site       all of it x PUE
    grams      joules / 3.6e6 x intensity(hour),   intensity (1 + swing cos(2 pi (hour - peak) / 24))

The accounting follows Qiu et al., A First Look into the Carbon Footprint of Federated Learning, JMLR 2023. The
seconds of a step are declared and not measured, so that a run with a seed is the same on every machine.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass

from fedpeft.parts import setting
from fedpeft.wiring.measurement import Measurement
from fedpeft.wiring.profiles import Profile

JOULES_PER_KWH = 3.6e6
JOULES_PER_WH = 3600.0
DAY = 24.0


@dataclass(frozen=True)
class EnergySettings(Measurement):
    """The settings of `--measure energy`."""

    watts: float = setting(0.0, "power of a client while it trains; 0: as in its profile", low=0)
    idle_watts: float = setting(0.0, "power of a client while it waits for the slowest of its round", low=0)
    step_seconds: float = setting(1.0, "duration of a local step on a client whose profile gives none", above=0)
    joule_per_byte: float = setting(0.0, "joules per byte of traffic, both ways", low=0)
    pue: float = setting(1.0, "power usage effectiveness: joules of the site for each joule of the machines", low=1)
    intensity: float = setting(0.0, "grams of CO2 per kWh; 0: grams are not reported", low=0)
    lean: bool = setting(False, "local steps follow the battery: half of the steps at half of the charge")
    round_hours: float = setting(1.0, "hours from one round to the next, for batteries and the time of day", above=0)


@dataclass(frozen=True)
class EnergyUse:
    """Joules of one client in one round, including the site's overhead."""

    train: float
    idle: float
    up: float
    down: float

    @property
    def joules(self) -> float:
        """The total in joules."""
        return self.train + self.idle + self.up + self.down

    def to_dict(self) -> dict[str, float]:
        """Return the joules by cause, for a JSON line."""
        return asdict(self)


@dataclass(frozen=True)
class EnergyModel:
    """The energy model of a run; `given` fills in what profiles leave open."""

    given: EnergySettings

    def get_watts(self, profile: Profile) -> float:
        """Return the watts of a client that trains."""
        return profile.watts_train or self.given.watts

    def get_seconds(self, profile: Profile, steps: int) -> float:
        """Return the seconds of local training."""
        return steps * (profile.step_seconds or self.given.step_seconds)

    def predict_joules(self, profile: Profile, steps: int, up: int, down: int) -> float:
        """Return the joules that a round takes from the client's battery, without waiting and the site's overhead."""
        per_byte = profile.joule_per_byte or self.given.joule_per_byte
        return self.get_watts(profile) * self.get_seconds(profile, steps) + per_byte * (up + down)

    def compute_spent(
        self, profile: Profile, steps: int, slowest: float, up: int, down: int, measured: float = 0.0
    ) -> EnergyUse:
        """Return the energy of a client's round.

        Args:
            profile: the client's profile.
            steps: local steps.
            slowest: seconds of the slowest client of the round.
            up: bytes that the client sends.
            down: bytes that the client receives.
            measured: joules of training that the client has measured; 0: predict them.
        """
        own = self.get_seconds(profile, steps)
        per_byte = (profile.joule_per_byte or self.given.joule_per_byte) * self.given.pue
        return EnergyUse(
            train=(measured or self.get_watts(profile) * own) * self.given.pue,
            idle=(profile.watts_idle or self.given.idle_watts) * max(0.0, slowest - own) * self.given.pue,
            up=per_byte * up,
            down=per_byte * down,
        )

    def get_hour(self, round_number: int) -> float:
        """Return the hour of the day, 0 to 24, at which a round begins; round 1 begins at midnight."""
        return (round_number - 1) * self.given.round_hours % DAY

    def get_intensity(self, profile: Profile, round_number: int) -> float:
        """Return the grams of CO2 per kWh at the time of a round; 0: no value is given."""
        mean = profile.intensity or self.given.intensity
        return mean * (
            1
            + profile.intensity_swing * math.cos(2 * math.pi * (self.get_hour(round_number) - profile.peak_hour) / DAY)
        )

    def compute_grams(self, profile: Profile, round_number: int, joules: float) -> float:
        """Return the grams of CO2 that `joules` cause in a round."""
        return joules / JOULES_PER_KWH * self.get_intensity(profile, round_number)


def add_up(spent: Mapping[int, EnergyUse]) -> EnergyUse:
    """Return the sum of all clients' energy."""
    own = spent.values()
    return EnergyUse(*(sum(getattr(s, name) for s in own) for name in ("train", "idle", "up", "down")))

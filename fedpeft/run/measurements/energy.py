"""Energy: joules and grams of CO2 of clients, from declared watts; and what this machine has measured."""

from __future__ import annotations

from dataclasses import dataclass

from fedpeft.parts import setting
from fedpeft.run.measurement import Measurement


@dataclass(frozen=True)
class Energy(Measurement):
    """What clients' work and traffic takes (`fedpeft.run.energy`); a profile's own numbers stand in front of these."""

    watts: float = setting(0.0, "of a client while it trains; 0: as its profile says", low=0)
    idle_watts: float = setting(0.0, "of a client while it waits for the slowest of its round", low=0)
    step_seconds: float = setting(1.0, "that a local step takes on a client, where its profile says nothing", above=0)
    joule_per_byte: float = setting(0.0, "of traffic, both ways", low=0)
    pue: float = setting(1.0, "power usage effectiveness: what the site takes for each joule of the machines", low=1)
    intensity: float = setting(0.0, "grams of CO2 per kWh; 0: grams are not told", low=0)
    lean: bool = setting(False, "local steps follow the battery: of a client at half of its charge, half of them")
    round_hours: float = setting(1.0, "hours from one round to the next, for batteries and the time of day", above=0)


part = Energy

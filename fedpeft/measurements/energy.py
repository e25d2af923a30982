"""Energy: joules and grams of CO2 of clients, from declared watts, and this machine's own measurement."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from fedpeft.errors import ConfigError, PrivacyError
from fedpeft.wiring.energy import EnergySettings
from fedpeft.wiring.measurement import ScoredRun
from fedpeft.wiring.profiles import list_distinct

if TYPE_CHECKING:
    from fedpeft.wiring.setup import Setup


@dataclass(frozen=True)
class Energy(EnergySettings):
    """The energy of clients' work and traffic (`fedpeft.wiring.energy`).

    A profile's own numbers override these settings.
    """

    def check(self, setup: Setup) -> None:
        """Reject clients without known watts, and reduced work if privacy counts steps."""
        if not self.watts and not all(profile.watts_train for profile in list_distinct(setup.profiles)):
            raise ConfigError(
                "FP1320 energy needs the power of clients: set energy(watts=...), or watts_train in every table of "
                "--clients"
            )
        if self.lean and setup.mechanism is not None:
            raise PrivacyError(
                "FP7097 energy(lean=True) changes the number of local steps, which epsilon counts; leave lean out"
            )

    def compute(self, run: ScoredRun, answers: dict[str, Any]) -> Mapping[str, Any] | None:
        """Sum up the records, unless the cohort is secret."""
        from fedpeft.rounds.energy import summarize_energy

        if run.secret:
            return None
        return summarize_energy(run.records.read("clients.jsonl"), run.records.read("rounds.jsonl"), self.pue)

    @classmethod
    def lines(cls, section: Mapping[str, Any]) -> dict[str, str]:
        """Return the energy of the clients and of this machine."""
        grams = "" if section.get("grams") is None else f", {section['grams']:.3g} g of CO2"
        lines = {"energy of the clients": f"{section['joules'] / 1e3:.3g} kJ{grams}"}
        if section.get("dropped"):
            lines["turns lost to empty batteries"] = str(section["dropped"])
        if section.get("measured") is not None:
            lines["energy of this machine in the rounds"] = f"{section['measured'] / 1e3:.3g} kJ"
        return lines


part = Energy

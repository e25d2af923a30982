"""Which measurements and samplers a run can have: what has no answer, or would be unprotected, is refused."""

from __future__ import annotations

from typing import TYPE_CHECKING

from fedpeft.errors import ConfigError, PrivacyError
from fedpeft.parts import name_of
from fedpeft.wiring.energy import EnergySettings
from fedpeft.wiring.profiles import list_distinct

if TYPE_CHECKING:
    from fedpeft.wiring.setup import Setup


def check_measured(setup: Setup) -> None:
    """Refuse measurements and samplers that do not suit the run.

    Raises:
        ConfigError, PrivacyError: says what, and what to do.
    """
    setup.measured.check(setup)
    _check_sampler(setup)


def _check_sampler(setup: Setup) -> None:
    """Refuse samplers that would choose by what nobody knows, or that privacy can't be accounted for."""
    rule, profiles = setup.sampler, list_distinct(setup.profiles)
    name = name_of(type(rule)) if rule is not None else ""
    by_energy = rule is not None and rule.needs_energy
    if setup.measured.get(EnergySettings) is None and (by_energy or any(profile.battery_wh for profile in profiles)):
        what = f"the sampler {name}" if by_energy else "a client's battery"
        raise ConfigError(f"FP1321 {what} needs the energy of clients; add energy(watts=...) to --measure")
    if rule is not None and setup.is_protected:
        raise PrivacyError(
            f"FP7096 {name} chooses clients by their properties, and privacy needs clients that are drawn uniformly; "
            "give --cohort a number or a fraction"
        )
    if setup.secure_sum is not None and setup.secure_sum.noisy and any(p.battery_wh for p in profiles):
        raise PrivacyError(
            "FP7098 a client that drops out for its battery would withhold its share of the noise; leave battery_wh "
            "out of --clients"
        )

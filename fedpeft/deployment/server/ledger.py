"""The privacy engine of a server of real clients: its own noise, the clients' noise, or shares of one noise."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from fedpeft.deployment.server.privacy_plan import compute_exposure
from fedpeft.errors import PrivacyError
from fedpeft.privacy.accounts import CommonAccounts, DeclaredAccounts, SumAccounts
from fedpeft.privacy.declared_terms import DeclaredTerms
from fedpeft.privacy.engine import PrivacyEngine, make_engine
from fedpeft.privacy.exposure import Exposure
from fedpeft.privacy.noise_sources import DrawnNoise, NoiseShares, settle_declared_levels, settle_levels
from fedpeft.privacy.secure_sum.neighbours import degree
from fedpeft.privacy.sum_mechanism import SumMechanism
from fedpeft.wiring.setup import Setup


def make_server_engine(
    setup: Setup,
    rows: int,
    folder: Path,
    identity: str,
    declared: Callable[[], Mapping[int, DeclaredTerms]],
    steps: Callable[[int], int],
    under_way: Callable[[int], Sequence[int]],
) -> PrivacyEngine | None:
    """Return the engine of a served run; None: nothing is protected.

    Args:
        setup: the parts of the run.
        rows: number of a client's examples; 0: only the client itself has it.
        folder: the run's folder.
        identity: what a round's outcome depends on beside the key, in any form.
        declared: returns the privacy terms that each client has declared, by id.
        steps: returns the local steps that the server asks of a client, by id; 0: the client's own number.
        under_way: see `NoiseShares`.

    Raises:
        PrivacyError: settings that would not protect.
    """
    mechanism, seed = setup.mechanism, setup.config.seed
    if mechanism is None:
        return None
    exposure = compute_exposure(setup, rows)
    if isinstance(mechanism, SumMechanism):
        _check_neighbours(mechanism, exposure)
        mechanism.check_start(exposure)
        levels = settle_levels(mechanism, exposure)
        accounts = SumAccounts(CommonAccounts(mechanism, exposure, levels), mechanism.rate(exposure), declared)
        shares = NoiseShares(mechanism, exposure, levels, under_way)
        return PrivacyEngine(mechanism, exposure, folder, identity, seed, accounts=accounts, noise_source=shares)
    if mechanism.noises_updates:
        each_step = steps if mechanism.per_example else lambda _: 0
        noise = DrawnNoise(mechanism, settle_declared_levels(mechanism, exposure), by_clients=True)
        own = DeclaredAccounts(declared, each_step)
        return PrivacyEngine(mechanism, exposure, folder, identity, seed, accounts=own, noise_source=noise)
    return make_engine(mechanism, exposure, folder, identity, seed)


def _check_neighbours(mechanism: SumMechanism, exposure: Exposure) -> None:
    """Refuse cohorts in which a client does not see all others, because it counts on their noise.

    Raises:
        PrivacyError: names the number of neighbors that is needed.
    """
    most = exposure.clients if exposure.start else mechanism.most(exposure)
    if degree(most, mechanism.mask_neighbours) < most - 1:
        of_cohort = "name a smaller --cohort (a plan asks all clients if none is named)"
        fewer = "fewer --clients: all are asked for their start" if exposure.start else of_cohort
        raise PrivacyError(
            f"FP7024 in a sum of {most} clients each would see {mechanism.mask_neighbours} others, and real clients "
            f"count only on the noise of those that they see; give {mechanism.name} mask_neighbours={most - 1}, or "
            f"{fewer}"
        )

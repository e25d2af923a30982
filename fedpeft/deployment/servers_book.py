"""The ledger that a server of real clients keeps: of its own noise, or a second book of noise that clients add."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from fedpeft.deployment.server_plan import exposure_of
from fedpeft.errors import PrivacyError
from fedpeft.privacy.engine import PrivacyEngine
from fedpeft.privacy.exposure import Exposure
from fedpeft.privacy.mechanisms.distributed_dp import DistributedDP
from fedpeft.privacy.remote_engine import SecondBook, Terms
from fedpeft.privacy.secure_sum.neighbours import degree
from fedpeft.privacy.summed_book import SummedBook
from fedpeft.run.setup import Setup


def servers_book(
    setup: Setup,
    rows: int,
    folder: Path,
    identity: str,
    declared: Callable[[], Mapping[int, Terms]],
    steps: Callable[[int], int],
    under_way: Callable[[int], Sequence[int]],
) -> PrivacyEngine | None:
    """The server's ledger; None: nothing is protected.

    Args:
        setup: the run's.
        rows: of a client; 0: each knows its own number only.
        folder: the run's.
        identity: what a round's outcome depends on beside the key, in any form.
        declared: what each client has said of its privacy, by id.
        steps: local steps that the server asks of a client, by id; 0: the client's own number.
        under_way: see `SummedBook`.

    Raises:
        PrivacyError: settings that would not protect.
    """
    config, mechanism = setup.config, setup.mechanism
    if mechanism is None:
        return None
    exposure = exposure_of(setup, rows)
    if isinstance(mechanism, DistributedDP):
        _check_neighbours(mechanism, exposure)
        mechanism.check_start(exposure)
        return SummedBook(mechanism, exposure, folder, identity, config.seed, declared, under_way)
    if mechanism.noises_updates:
        return SecondBook(mechanism, exposure, folder, identity, config.seed, declared, steps)
    return PrivacyEngine(mechanism, exposure, folder, identity, config.seed)


def _check_neighbours(mechanism: DistributedDP, exposure: Exposure) -> None:
    """Refuse cohorts in which a client does not see all others: it counts on their noise."""
    most = exposure.clients if exposure.start else mechanism.most(exposure)
    if degree(most, mechanism.mask_neighbours) < most - 1:
        of_cohort = "name a smaller --cohort (a plan asks all clients if none is named)"
        fewer = "fewer --clients: all are asked for their start" if exposure.start else of_cohort
        raise PrivacyError(
            f"FP7024 of {most} clients that a sum can have each would see {mechanism.mask_neighbours}, and real "
            f"clients count on the noise of those alone whom they see; give {mechanism.name} "
            f"mask_neighbours={most - 1}, or {fewer}"
        )

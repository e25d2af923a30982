"""The ledger that a real client keeps, with its own limits, if a mechanism's noise is drawn on its machine."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from fedpeft.deployment.options import EdgeOptions
from fedpeft.errors import PrivacyError
from fedpeft.privacy.abilities import is_whitened
from fedpeft.privacy.client_protection import (
    ClientProtection,
    limit_mechanism,
    make_client_engine,
    plan_participations,
)
from fedpeft.privacy.exposure import Exposure
from fedpeft.privacy.lifetime_ledger import LifetimeLedger
from fedpeft.privacy.secure_sum.contribution import count_tensor_entries
from fedpeft.privacy.sum_mechanism import SumMechanism
from fedpeft.rounds.preparation import get_noised_shapes
from fedpeft.wiring.config import RunConfig
from fedpeft.wiring.sampling import compute_cohort_size
from fedpeft.wiring.setup import Setup


def make_client_protection(
    setup: Setup, told: RunConfig, options: EdgeOptions, rows: int, identity: str, places: tuple[Path, Path, Path]
) -> ClientProtection | None:
    """Return the client's own protection; None: no noise is drawn here.

    Args:
        setup: follows what the client takes of the server's settings.
        told: these settings, without the client's choices.
        options: the client's choices.
        rows: number of examples that it trains on.
        identity: what an answer depends on beside them, in any form.
        places: folder of its state in this federation, folder of the ledgers of all runs, file of its examples.

    Raises:
        PrivacyError: a limit of the client can't be kept, or the settings would not protect it.
    """
    given = setup.mechanism
    if options.collude and setup.secure_sum is None:
        raise PrivacyError(
            "FP7120 --collude is about clients of secure sums, and this federation has none; leave it out"
        )
    if given is None or not given.protects or not (given.noises_updates or isinstance(given, SumMechanism)):
        if options.max_epsilon is not None:
            how = f"{told.privacy} is applied by the server" if given is not None else "it has no --privacy"
            raise PrivacyError(
                f"FP7017 this federation does not protect your updates on this machine ({how}), so --max-epsilon can't "
                "be kept; leave it out if you trust the server, or ask for dp_sgd, local_dp or distributed_dp"
            )
        return None
    if options.max_epsilon is not None:
        if given.test_noise:
            raise PrivacyError(
                "FP7018 this federation asks for test_noise, which protects nobody, so --max-epsilon can't be "
                "kept; leave it out, or join a federation without test_noise"
            )
        if given.raw_metrics:
            raise PrivacyError(
                "FP7019 this federation asks for raw_metrics, losses on your examples, which no epsilon covers, so "
                "--max-epsilon can't be kept; leave it out if you trust the server with them"
            )
    exposure = _exposure(setup, told, rows)
    units = given.units(exposure)
    if given.privacy_unit == "training row" and units < rows:
        raise PrivacyError(
            f"FP7020 the server states that all clients have {units} examples together (rows={units}), and this one "
            f"alone has {rows}: its examples would be protected at a delta for fewer; ask whoever runs the server for "
            "another number"
        )
    own = limit_mechanism(given, units, options.max_epsilon, options.max_delta)
    folder, ledgers, file = places
    lifetime = LifetimeLedger(ledgers, file, own.privacy_unit, options.max_epsilon)
    if isinstance(own, SumMechanism):
        own = own.assume_colluding(options.collude)
    return ClientProtection(make_client_engine(own, given, exposure, folder, identity, told.seed), lifetime)


def _exposure(setup: Setup, told: RunConfig, rows: int) -> Exposure:
    """Return the federation as if all clients were like this one; shared noise is as the settings describe it."""
    assert setup.mechanism is not None
    clients, summed = int(told.clients), isinstance(setup.mechanism, SumMechanism)
    cohort = compute_cohort_size(told.cohort, clients)

    def fill_clients(value: int) -> NDArray[np.int64]:
        return np.full(clients, value, np.int64)

    return Exposure(
        strategy=setup.strategy,
        method=setup.method,
        layout=setup.layout,
        rows=fill_clients(rows),
        steps=fill_clients(setup.training.steps_for(rows)),
        participations=fill_clients(plan_participations(told.rounds, cohort / clients)),
        batch_size=told.batch_size if summed else setup.config.batch_size,
        rounds=told.rounds,
        cohort=cohort if summed else 1,
        even=True,
        start=setup.has_private_start,
        start_entries=count_tensor_entries(get_noised_shapes(setup)) if setup.has_private_start and summed else 0,
        trained=setup.trained_entries,
        whitened=setup.whitened_directions if is_whitened(setup.mechanism) else 0,
    )

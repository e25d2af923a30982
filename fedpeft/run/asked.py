"""What a run's measurements ask of its clients."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from fedpeft.run.setup import Setup


def asks_clients(setup: Setup) -> bool:
    """Whether clients are asked about held-out rows of theirs at the end, in sums."""
    calibration = setup.measured.calibration
    return calibration is not None and (
        calibration.rows == "clients" or (calibration.rows == "auto" and not setup.facts.judged)
    )


def compares_clients(setup: Setup) -> bool:
    """Whether each round's updates are compared with each other; under privacy only what is released is looked at."""
    protected = setup.secure_sum is not None or setup.mechanism is not None
    return setup.measured.disagreement is not None and not protected

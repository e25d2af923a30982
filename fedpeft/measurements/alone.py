"""A baseline without federation: each client trains alone, on its own examples."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from fedpeft.errors import ConfigError, PrivacyError
from fedpeft.parts import setting
from fedpeft.wiring.measurement import Measurement, ScoredRun, TrainedRun

if TYPE_CHECKING:
    from fedpeft.wiring.setup import Setup


@dataclass(frozen=True)
class Alone(Measurement):
    """The same adapter, also trained by single clients on their own examples (`fedpeft.simulation.alone`)."""

    clients: int = setting(4, "number of clients, evenly from those with the fewest examples to the most", low=1)

    simulated: ClassVar[bool] = True

    in_quality: ClassVar[bool] = True

    def check(self, setup: Setup) -> None:
        """Reject adapters that privacy would not cover, and tasks that arrive one after another."""
        if setup.mechanism is not None or setup.secure_sum is not None:
            raise PrivacyError(
                "FP7092 clients that train alone would leave unprotected adapters in the run's folder; leave alone out "
                "of --measure, or take it in a run of the same settings without --privacy"
            )
        if setup.facts.tasks is not None:
            raise ConfigError(
                "FP1312 alone trains on all of a client's examples at once, but this run has tasks; leave it out of "
                "--measure"
            )

    def ask(self, run: TrainedRun) -> dict[str, Any]:
        """Train clients alone, and save their adapters."""
        from fedpeft.simulation.alone import train_alone

        assert run.simulation is not None
        return {"accuracies": train_alone(run.simulation, self.clients)}

    def compute(self, run: ScoredRun, answers: dict[str, Any]) -> Mapping[str, Any] | None:
        """Return the mean accuracy of the clients."""
        from fedpeft.simulation.alone import score_of_alone

        assert run.simulation is not None
        return {"alone_accuracy": score_of_alone(run.simulation, answers["accuracies"])}


part = Alone

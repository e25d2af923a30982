"""A baseline without federation: the same adapter trained on all clients' examples together."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from fedpeft.wiring.measurement import Measurement, ScoredRun, TrainedRun


@dataclass(frozen=True)
class Pooled(Measurement):
    """The same adapter, also trained on the pooled examples, for comparison."""

    simulated: ClassVar[bool] = True

    in_quality: ClassVar[bool] = True

    def ask(self, run: TrainedRun) -> dict[str, Any]:
        """Train the adapter on the pooled examples, and save it."""
        from fedpeft.simulation.pooled import train_pooled_adapter

        assert run.simulation is not None
        return {"centralised_learning_rate": train_pooled_adapter(run.simulation, run.state)}

    def compute(self, run: ScoredRun, answers: dict[str, Any]) -> Mapping[str, Any] | None:
        """Score the adapter on the test examples."""
        from fedpeft.simulation.pooled import score_of_pooled

        assert run.simulation is not None
        score = score_of_pooled(run.simulation)
        return answers | {"centralised_accuracy": score.accuracy, "centralised_loss": score.loss}


part = Pooled

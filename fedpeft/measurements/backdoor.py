"""Backdoor: how often the trigger of `--attack backdoor` leads to its target class.

Each evaluated round has the share on validation examples of other classes, `trigger_success` in rounds.jsonl, beside
the accuracy on clean ones. The section `backdoor` of `trust` in summary.json has the share for the saved model, on test
examples of other classes with the trigger (`success`) and without it (`without_trigger`).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from fedpeft.clients.attack import PlantsTrigger
from fedpeft.errors import ConfigError
from fedpeft.parts import setting
from fedpeft.wiring.measurement import Measurement, ScoredRun

if TYPE_CHECKING:
    from fedpeft.rounds.features import RunParts
    from fedpeft.rounds.hooks import RoundHook
    from fedpeft.wiring.setup import Setup


@dataclass(frozen=True)
class Backdoor(Measurement):
    """Share of the examples of other classes that an attack's trigger leads to the target class."""

    rows: int = setting(0, "the most test examples, always the same; 0: all", low=0)

    simulated: ClassVar[bool] = True
    of_kept_state: ClassVar[bool] = True

    def check(self, setup: Setup) -> None:
        """Refuse a run whose attack, if it has one, has no trigger."""
        if not isinstance(setup.attack, PlantsTrigger):
            raise ConfigError(
                "FP1524 backdoor measures the trigger of an attack, and this run has none; add --attack backdoor, or "
                "--attack 'backdoor(fraction=0)' for a run without attackers"
            )

    def attach(self, run: RunParts) -> RoundHook | None:
        """Score the trigger in each round that is evaluated."""
        from fedpeft.rounds.backdoor import BackdoorHook

        return None if run.model.score_trigger is None else BackdoorHook(run.model.score_trigger)

    def compute(self, run: ScoredRun, answers: dict[str, Any]) -> Mapping[str, Any] | None:
        """Score the saved model on test examples with the trigger."""
        from fedpeft.simulation.robustness import evaluate_trigger

        assert run.simulation is not None
        assert isinstance(run.setup.attack, PlantsTrigger)
        run.simulation.observer.phase("backdoor: test rows with the trigger", 1)
        return evaluate_trigger(run.setup.attack, run.setup, run.simulation.rows, self.rows, run.folder)

    @classmethod
    def lines(cls, section: Mapping[str, Any]) -> dict[str, str]:
        """Return the share of test examples that the trigger leads to the target class, beside that without it."""
        shares = f"{section['without_trigger']:.4f} -> {section['success']:.4f}"
        return {
            f"predicted as {section['target']} with the trigger": f"{shares} of {section['rows']:,} other test rows"
        }


part = Backdoor

"""Ensemble: the mean prediction of the last global states, a model that is less certain if they differ."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from fedpeft.errors import ConfigError
from fedpeft.parts import setting
from fedpeft.wiring.measurement import Measurement, ScoredRun

if TYPE_CHECKING:
    from fedpeft.rounds.features import RunParts
    from fedpeft.rounds.hooks import RoundHook
    from fedpeft.wiring.setup import Setup


@dataclass(frozen=True)
class Ensemble(Measurement):
    """The last `last` global states together on the test examples (`fedpeft.simulation.ensemble`)."""

    last: int = setting(3, "number of states, those after the last rounds", low=2, high=100)

    simulated: ClassVar[bool] = True

    def check(self, setup: Setup) -> None:
        """Reject tasks without classes, and states that share a changed base."""
        if setup.facts.task != "classification":
            raise ConfigError("FP1513 ensemble needs classes; leave it out of --measure")
        if setup.strategy.fills_base:
            raise ConfigError(
                f"FP1316 {setup.config.strategy} moves a part of the adapter into the base, which an ensemble's "
                "states share; use flexlora"
            )

    def attach(self, run: RunParts) -> RoundHook:
        """Keep the last states on the disk."""
        from fedpeft.rounds.ensemble import STATES, EnsembleHook

        return EnsembleHook(run.store.records.folder / STATES, self.last)

    def compute(self, run: ScoredRun, answers: dict[str, Any]) -> Mapping[str, Any] | None:
        """Score the states on the test examples, alone and together."""
        from fedpeft.rounds.ensemble import STATES
        from fedpeft.simulation.ensemble import evaluate_ensemble

        assert run.simulation is not None
        run.simulation.observer.phase("ensemble of the last states: test examples", 1)
        return evaluate_ensemble(run.setup, run.simulation.rows, run.folder / STATES)

    @classmethod
    def lines(cls, section: Mapping[str, Any]) -> dict[str, str]:
        """Return the scores of the last state, and of all states together."""
        last, together = section["last"], section["together"]
        names = {"error": "calibration error", "loss": "loss (nats)", "accuracy": "accuracy"}
        return {
            f"the last {len(section['rounds'])} states together: {name}": f"{last[key]:.4f} -> {together[key]:.4f}"
            for key, name in names.items()
        }


part = Ensemble

"""Robustness: the accuracy under typos, synonyms, small movements of embeddings, or corrupted images."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from fedpeft.errors import ConfigError
from fedpeft.parts import setting
from fedpeft.wiring.measurement import Measurement, ScoredRun

if TYPE_CHECKING:
    from fedpeft.wiring.setup import Setup


@dataclass(frozen=True)
class Robustness(Measurement):
    """The finished classifier on changed test examples (`fedpeft.trust.corruption`), in the worst of some draws."""

    rows: int = setting(300, "number of test examples, always the same", low=1)
    draws: int = setting(5, "draws of each change; an example counts with its worst", low=1, high=100)
    attack: bool = setting(True, "for texts: also move embeddings along the gradient (fedpeft.trust.embedding_attack)")

    simulated: ClassVar[bool] = True

    def check(self, setup: Setup) -> None:
        """Reject tasks without classes."""
        if setup.facts.task != "classification":
            raise ConfigError("FP1313 robustness needs classes; leave it out of --measure")
        if setup.facts.kind == "clip":
            raise ConfigError("FP1734 robustness changes texts and images, and no clips; leave it out of --measure")

    def compute(self, run: ScoredRun, answers: dict[str, Any]) -> Mapping[str, Any] | None:
        """Score the saved model on changed test examples."""
        from fedpeft.simulation.robustness import evaluate_robustness

        assert run.simulation is not None
        run.simulation.observer.phase("robustness: test examples that were changed", 1)
        return evaluate_robustness(self, run.setup, run.simulation.rows, run.folder)

    @classmethod
    def lines(cls, section: Mapping[str, Any]) -> dict[str, str]:
        """Return the accuracy on unchanged examples, and under the strongest change of each type in the worst draws."""
        if not (clean := section.get("clean")):
            return {}
        strongest = {kind: points[-1] for kind, points in section.items() if isinstance(points, list)}
        return {
            f"{kind} at {point['strength']:g}, worst draws": f"{clean['accuracy']:.4f} -> {point['worst']:.4f}"
            for kind, point in strongest.items()
        }


part = Robustness

"""Clones: whether the model still finds a function after its names were changed and its statements reordered."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from fedpeft.errors import ConfigError
from fedpeft.models.abilities import ComparesExamples
from fedpeft.parts import setting
from fedpeft.wiring.measurement import Measurement, ScoredRun

if TYPE_CHECKING:
    from fedpeft.wiring.setup import Setup


@dataclass(frozen=True)
class Clones(Measurement):
    """Search of each function's clone among those of all test examples (`fedpeft.data.code_clones`)."""

    rows: int = setting(300, "number of test examples that are searched, always the same", low=2)

    simulated: ClassVar[bool] = True

    def check(self, setup: Setup) -> None:
        """Reject examples that are not documents."""
        if not (isinstance(setup.task, ComparesExamples) and setup.facts.kind == "text"):
            raise ConfigError(
                "FP1314 clones needs --dataset code_search, whose documents it searches; leave clones out of --measure"
            )

    def compute(self, run: ScoredRun, answers: dict[str, Any]) -> Mapping[str, Any] | None:
        """Rank each function's clone among all."""
        from fedpeft.simulation.retrieval import measure_clone_search

        assert run.simulation is not None
        run.simulation.observer.phase("clones of the test examples' functions", 1)
        return measure_clone_search(self, run.setup, run.simulation.rows, run.folder)

    @classmethod
    def lines(cls, section: Mapping[str, Any]) -> dict[str, str]:
        """Return the shares that are ranked first."""
        shares = "; ".join(f"{name} {section[name]['first']:.4f}" for name in ("result", "frozen", "words"))
        return {f"clones of {section['rows']} functions, ranked first": shares}


part = Clones

"""What a simulation's page of trust holds: asked of clients while they are there, and of the test rows afterwards."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from fedpeft.data.rows import Raters
from fedpeft.run.final_score import FinalScore
from fedpeft.run.records import Records
from fedpeft.run.setup import Setup
from fedpeft.server.ensemble import STATES
from fedpeft.server.progress import Progress
from fedpeft.server.rounds import Server
from fedpeft.server.trusted import named, of_clients_rows, of_energy, of_updates
from fedpeft.simulation.ensemble import ensemble
from fedpeft.simulation.laplace import laplace
from fedpeft.simulation.retrieval import cloned
from fedpeft.simulation.robustness import robustness
from fedpeft.simulation.simulation import Simulation
from fedpeft.trust.calibration import before_and_after, compared
from fedpeft.trust.question import Question
from fedpeft.trust.raters import against_raters


class Trust:
    """Of one run.

    Args:
        raters: of the test rows, where several people have rated each.

    Attributes:
        found: by name, for summary.json.
        temperature: that clients' rows say; None: they were not asked.
    """

    def __init__(self, setup: Setup, raters: Raters | None = None) -> None:
        self.setup, self.raters = setup, raters
        self.found: dict[str, Any] = {}
        self.temperature: float | None = None

    def ask_clients(self, server: Server, progress: Progress) -> None:
        """What only clients know, while they are there."""
        found = of_clients_rows(server, progress)
        if found is not None:
            self.found["calibration"], self.temperature = found, found["temperature"]

    def doubt(self, server: Server, simulation: Simulation, progress: Progress) -> None:
        """How uncertain the kept adapter is, while clients are there."""
        if self.setup.measured.laplace is None:
            return
        simulation.observer.phase("Laplace: Kronecker factors of all clients, and test rows", 1)
        state, _ = progress.result
        self.found["laplace"] = laplace(self.setup.measured.laplace, server.questions(progress), state, simulation.rows)

    def look_into(self, simulation: Simulation, progress: Progress) -> None:
        """What the kept adapter has learned, where clients disagreed, and what a direction is worth."""
        evaluate = simulation.workers.evaluate if len(simulation.rows.validation) else None
        found = of_updates(
            self.setup,
            progress,
            Records(simulation.folder),
            None if evaluate is None else lambda edited: evaluate(edited, 0),
        )
        self.found |= named(disagreement=found) or {}

    def spoil(self, simulation: Simulation) -> None:
        """What the last states say together, and what changes of the test rows leave of the saved model."""
        if self.setup.measured.ensemble is not None:
            simulation.observer.phase("ensemble of the last states: test rows", 1)
            self.found["ensemble"] = ensemble(self.setup, simulation.rows, simulation.folder / STATES)
        if self.setup.measured.clones is not None:
            simulation.observer.phase("clones of the test rows' functions", 1)
            self.found["clones"] = cloned(self.setup.measured.clones, self.setup, simulation.rows, simulation.folder)
        asked = self.setup.measured.robustness
        if asked is not None:
            simulation.observer.phase("robustness: test rows that were changed", 1)
            self.found["robustness"] = robustness(asked, self.setup, simulation.rows, simulation.folder)

    def asks(self, temperature: float) -> Sequence[Question]:
        """What is asked of the test rows."""
        asked = self.setup.measured.calibration
        return () if asked is None else before_and_after(temperature, asked.bins)

    def scored(self, score: FinalScore, records: Records, secret: bool) -> dict[str, Any] | None:
        """With what the test rows have answered, and what the records say; None: nothing was asked.

        `secret`: who took part is nobody's business, and so is what they used.
        """
        self.found |= named(energy=of_energy(self.setup, records, secret)) or {}
        asked = self.setup.measured.calibration
        if asked is not None:
            test = compared(score.answers, before_and_after(score.temperature, asked.bins))
            told = self.found.get("calibration", {"temperature": score.temperature})
            self.found["calibration"] = {**told, "test": test}
            if self.raters is not None:
                scores = score.scores
                found = against_raters(self.raters, scores.predicted, scores.confidence, scores.scaled, asked.bins)
                self.found["calibration"] |= {} if found is None else {"raters": found}
        return self.found or None

"""The base class of measurements: what is measured of a run beside its accuracy.

A measurement is a part with its whole behavior: settings, checks, hook in the round loop, questions to clients,
computation and lines of a report. A run calls its methods in the order in which they stand here.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Any, ClassVar, Final, Protocol, runtime_checkable

from fedpeft.parts import name_of
from fedpeft.wiring.section_lines import section_lines

if TYPE_CHECKING:
    from pathlib import Path

    from fedpeft.data.rows import Dataset, Rows
    from fedpeft.peft.adapter import State
    from fedpeft.reporting.final_score import FinalScore
    from fedpeft.reporting.observer import Metrics
    from fedpeft.reporting.records import Records
    from fedpeft.rounds.features import RunParts
    from fedpeft.rounds.hooks import RoundHook
    from fedpeft.rounds.progress import ServerState
    from fedpeft.rounds.rounds import Server
    from fedpeft.simulation.simulation import Simulation
    from fedpeft.trust.question import Question
    from fedpeft.wiring.setup import Setup


@dataclass(frozen=True)
class NewRun:
    """A run before training.

    Attributes:
        setup: the parts of the run.
        validation: returns the server's validation examples; there may be none.
        dataset: all data; None: the clients are real.
        say: tells the user a sentence.
    """

    setup: Setup
    validation: Callable[[], Rows]
    dataset: Dataset | None
    say: Callable[[str], None]


@dataclass(frozen=True)
class TrainedRun:
    """A run after its last round: the clients are still connected.

    Attributes:
        setup: the parts of the run.
        state: the server state.
        records: the record files.
        server: asks clients.
        evaluate: evaluates a state on validation examples; None: the server has none.
        simulation: trains and scores on this machine; None: the clients are real.
    """

    setup: Setup
    state: ServerState
    records: Records
    server: Server
    evaluate: Callable[[State], Metrics] | None = None
    simulation: Simulation | None = None


@dataclass(frozen=True)
class DisclosedRun:
    """A scored run, as far as every run discloses it, with privacy or without.

    Attributes:
        setup: the parts of the run.
        adapter: the kept global state, tensors by name.
        rounds: the lines of rounds.jsonl.
        test: the server's test examples; None: it has none.
        score: the score of the saved adapter on them, `score.scores` per example; None: there are none.
    """

    setup: Setup
    adapter: State
    rounds: Sequence[Mapping[str, Any]]
    test: Rows | None
    score: FinalScore | None


@dataclass(frozen=True)
class ScoredRun(DisclosedRun):
    """A run after the final score.

    Attributes:
        folder: the run folder; it contains the saved adapter.
        records: the record files.
        begun: what the measurement's `begin` returned.
        secret: whether nobody may learn who took part.
        simulation: scores on this machine; None: the clients are real.
        kept_round: the round whose state was kept; 0: the start.
    """

    folder: Path
    records: Records
    begun: Any = None
    secret: bool = False
    simulation: Simulation | None = None
    kept_round: int | None = None

    def note_phase(self, name: str) -> None:
        """Show the user of a simulation what begins."""
        if self.simulation is not None:
            self.simulation.observer.phase(name, 1)

    def disclose(self) -> DisclosedRun:
        """Return what a measurement of a user's own receives in a run with privacy."""
        return DisclosedRun(**{field.name: getattr(self, field.name) for field in fields(DisclosedRun)})


DISCLOSED: Final = ("check", "begin", "test_questions", "compute", "lines")
"""Methods that a user's measurement may override under `--privacy`."""


class Measurement:
    """One measurement. Subclasses are frozen dataclasses; their fields are the user's settings."""

    simulated: ClassVar[bool] = False
    """Whether it needs examples that only a simulation has."""

    of_kept_state: ClassVar[bool] = False
    """Whether its section describes the kept state, so that the section states which one it is; only for built-in ones.
    """

    in_quality: ClassVar[bool] = False
    """Whether `compute` returns fields of `fedpeft.reporting.summary.Quality` and no section; only for built-in
    ones.
    """

    @property
    def name(self) -> str:
        """The name on the command line."""
        return name_of(type(self))

    def check(self, setup: Setup) -> None:
        """Refuse a run that it cannot measure, or must not.

        Raises:
            ConfigError, PrivacyError: states what does not fit, and what to do.
        """

    def asks_clients(self, setup: Setup) -> bool:
        """Return whether clients answer questions about held-out examples, which they do not train on."""
        return False

    def attach(self, run: RunParts) -> RoundHook | None:
        """Return the measurement's hook in the round loop; None: it has none."""
        return None

    def ask(self, run: TrainedRun) -> dict[str, Any]:
        """Return what only clients, or workers that train, can answer; `temperature` also scales the final score."""
        return {}

    def test_questions(self, temperature: float) -> Sequence[Question]:
        """Return questions about the test examples, which the final score answers."""
        return ()

    def compute(self, run: ScoredRun, answers: dict[str, Any]) -> Mapping[str, Any] | None:
        """Return the section of summary.json and of the report: JSON values by label; None: there is none.

        Args:
            run: the scored run.
            answers: what `ask` returned.
        """
        return answers or None

    @classmethod
    def lines(cls, section: Mapping[str, Any]) -> dict[str, str]:
        """Return the lines of console, report and model card about the section of a finished run.

        Only built-in measurements are asked. The section of a user's own has a line for each number.
        """
        return section_lines({name_of(cls): section})


@runtime_checkable
class LoadsInputs(Protocol):
    """A measurement that loads something before training; it has this ability if it defines the method."""

    def begin(self, run: NewRun) -> Any:
        """Load what the measurement needs; what cannot be loaded is refused here."""

"""The measurements of a run: what `--measure` names.

    --measure "validation(every=4, keep=best, patience=5) + pooled + forgetting(dataset=reuters_r8)"

Validation is always part of a run; if `--measure` does not name it, it has its default settings.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from typing import TYPE_CHECKING, Any, TypeVar

from fedpeft.errors import ConfigError, PrivacyError
from fedpeft.parts import format_part, list_overrides
from fedpeft.parts.families import MEASUREMENTS
from fedpeft.parts.spec import split_outside_parentheses
from fedpeft.wiring.measurement import DISCLOSED, LoadsInputs, Measurement, NewRun, ScoredRun, TrainedRun
from fedpeft.wiring.section_lines import compute_section, guard, section_lines
from fedpeft.wiring.validation import Validation

if TYPE_CHECKING:
    from fedpeft.trust.question import Question
    from fedpeft.wiring.setup import Setup

KEPT = "kept_round"
"""Entry of a section that describes the kept state: the round of this state; 0: the start."""

M = TypeVar("M")
T = TypeVar("T")


@dataclass(frozen=True)
class Measurements:
    """The measurements of a run. The text form round-trips through `parse_measure`."""

    parts: tuple[Measurement, ...] = ()

    def __str__(self) -> str:
        """Return the text of `--measure`."""
        return " + ".join(map(format_part, self.parts))

    def get(self, kind: type[M]) -> M | None:
        """Return the measurement of a class; None: the run has none."""
        return next((part for part in self.parts if isinstance(part, kind)), None)

    @property
    def validation(self) -> Validation:
        """The evaluation between rounds."""
        return self.get(Validation) or Validation()

    @property
    def simulation_only(self) -> tuple[str, ...]:
        """The names of those that need examples that only a simulation has."""
        return tuple(part.name for part in self.parts if part.simulated)

    def check(self, setup: Setup) -> None:
        """Refuse measurements that the run does not suit, or that its privacy does not allow.

        Raises:
            ConfigError, PrivacyError: states which one, and what to do.
        """
        for part in self.parts:
            refused = [name for name in list_overrides(part, Measurement) if name not in DISCLOSED]
            if setup.is_protected and refused and not is_built_in(part):
                raise PrivacyError(
                    f"FP7127 the measurement {part.name} overrides {', '.join(refused)}; under --privacy "
                    f"{setup.config.privacy} a measurement of your own may override {', '.join(DISCLOSED)} only, so "
                    f"leave {part.name} out of --measure, or leave out --privacy"
                )
            part.check(setup)

    def asks_clients(self, setup: Setup) -> bool:
        """Return whether a measurement asks clients about held-out examples."""
        return any(part.asks_clients(setup) for part in self.parts)

    def begin(self, run: NewRun) -> dict[str, Any]:
        """Return what the measurements load before training, by name.

        In a run with privacy, a measurement of a user's own does not receive the dataset, which contains the clients'
        examples.
        """
        hidden = replace(run, dataset=None) if run.setup.is_protected else run
        return {
            part.name: part.begin(run if is_built_in(part) else hidden)
            for part in self.parts
            if isinstance(part, LoadsInputs)
        }


def is_built_in(part: Measurement) -> bool:
    """Return whether a measurement is one of fedpeft's own."""
    return part.name in MEASUREMENTS.own_names and type(part) is MEASUREMENTS.part(part.name)


@dataclass
class Findings:
    """What the measurements of a run find.

    Attributes:
        setup: the parts of the run.
        begun: what the measurements loaded before training, by name.
        answers: the answers of clients and workers, by measurement.
        sections: sections of summary.json, by measurement.
        quality: fields of `fedpeft.reporting.summary.Quality`.
        say: tells the user about a measurement that has failed.
        failed: names of a user's measurements that have failed, and have no section.
    """

    setup: Setup
    begun: Mapping[str, Any]
    say: Callable[[str], None]
    answers: dict[str, dict[str, Any]] = field(default_factory=dict)
    sections: dict[str, Any] = field(default_factory=dict)
    quality: dict[str, Any] = field(default_factory=dict)
    failed: set[str] = field(default_factory=set)

    def ask(self, run: TrainedRun) -> None:
        """Ask clients and workers, while they are connected."""
        for part in self.setup.measured.parts:
            answers = self._guard(part, partial(part.ask, run))
            self.answers[part.name] = {} if answers is None else answers

    @property
    def temperature(self) -> float | None:
        """The temperature that clients' examples give; None: no measurement has asked them."""
        return next((found["temperature"] for found in self.answers.values() if "temperature" in found), None)

    def list_questions(self, temperature: float) -> list[Question]:
        """Return the questions about the test examples, in the order of the measurements.

        They are about logits of classes, so a language model has none.
        """
        found: list[Question] = []
        if not self.setup.task.targets:
            return found
        for part in self.setup.measured.parts:
            found += self._guard(part, partial(part.test_questions, temperature)) or ()
        return found

    def _guard(self, part: Measurement, work: Callable[[], T]) -> T | None:
        """Return the result of a step of a measurement; None: the step of a user's own has failed."""
        if is_built_in(part):
            return work()
        result = guard(part.name, work, self.say)
        if result is None:
            self.failed.add(part.name)
        return result

    def compute(self, run: ScoredRun) -> None:
        """Compute the sections; in a run with privacy, a measurement of a user's own receives a `DisclosedRun`."""
        for part in self.setup.measured.parts:
            if part.name in self.failed:
                continue
            answers, whole = self.answers.get(part.name, {}), replace(run, begun=self.begun.get(part.name))
            if is_built_in(part):
                section = part.compute(whole, answers)
            else:
                given: Any = whole.disclose() if self.setup.is_protected else whole
                section = compute_section(part.name, partial(part.compute, given, answers), self.say)
            if section is not None and part.in_quality and is_built_in(part):
                self.quality |= section
            elif section is not None:
                stated = part.of_kept_state and is_built_in(part) and run.kept_round is not None
                self.sections[part.name] = {**section, KEPT: run.kept_round} if stated else section


def parse_measure(text: str) -> Measurements:
    """Return the measurements that `text` names, joined by "+".

    Raises:
        ConfigError: unknown measurement or setting, value out of range, or the same measurement twice.
    """
    if not text.strip():
        return Measurements()
    parts = tuple(MEASUREMENTS.build(spec) for spec in split_outside_parentheses(text, "+"))
    names = [part.name for part in parts]
    if twice := {name for name in names if names.count(name) > 1}:
        raise ConfigError(f"FP1006 {text!r} names {', '.join(sorted(twice))} twice; name it once")
    return Measurements(parts)


def trust_lines(summary: Mapping[str, Any]) -> dict[str, str]:
    """Return the lines about the sections of `--measure` in a summary.json; empty: it has none.

    A measurement from outside, whose plugin may be absent, has a line for each number of its section. The first line
    names the sections that describe the start, because no round was better.
    """
    lines: dict[str, str] = {}
    sections = summary.get("trust") or {}
    if of_start := [name for name in sections if name in MEASUREMENTS.own_names and sections[name].get(KEPT) == 0]:
        lines["measured state"] = f"the start, before any training, which the run kept ({', '.join(of_start)})"
    for name, section in sections.items():
        known = name in MEASUREMENTS.own_names
        lines |= MEASUREMENTS.part(name).lines(section) if known else section_lines({name: section})
    return lines

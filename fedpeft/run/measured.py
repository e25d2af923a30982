"""What is measured of a run: validation on the way, references, and what tuning has cost.

    --measure "validation(every=4, keep=best, patience=5) + pooled + forgetting(dataset=reuters_r8)"

Validation is always there; where it is not named, it has its defaults.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypeVar

from fedpeft.errors import ConfigError
from fedpeft.parts import part_text
from fedpeft.run.measurement import MEASUREMENTS, Measurement
from fedpeft.run.measurements.alone import Alone
from fedpeft.run.measurements.calibration import Calibration
from fedpeft.run.measurements.clones import Clones
from fedpeft.run.measurements.disagreement import Disagreement
from fedpeft.run.measurements.energy import Energy
from fedpeft.run.measurements.ensemble import Ensemble
from fedpeft.run.measurements.evaluate import Evaluate
from fedpeft.run.measurements.forgetting import Forgetting
from fedpeft.run.measurements.laplace import Laplace
from fedpeft.run.measurements.pooled import Pooled
from fedpeft.run.measurements.robustness import Robustness
from fedpeft.run.measurements.validation import Validation
from fedpeft.spec import split_outside_parentheses

M = TypeVar("M", bound=Measurement)


@dataclass(frozen=True)
class Measured:
    """The measurements of a run. The text form round-trips through `parse_measure`."""

    parts: tuple[Measurement, ...] = ()

    def __str__(self) -> str:
        return " + ".join(map(part_text, self.parts))

    def _of(self, kind: type[M]) -> M | None:
        return next((part for part in self.parts if isinstance(part, kind)), None)

    @property
    def validation(self) -> Validation:
        """On the way."""
        return self._of(Validation) or Validation()

    @property
    def pooled(self) -> bool:
        """Whether the same adapter is also trained on the pooled rows."""
        return self._of(Pooled) is not None

    @property
    def alone(self) -> Alone | None:
        """Single clients on their own rows; None: none trains alone."""
        return self._of(Alone)

    @property
    def second(self) -> str:
        """Text of the data set that base and result are scored on as well; empty: none."""
        return found.dataset if (found := self._of(Forgetting)) else ""

    @property
    def calibration(self) -> Calibration | None:
        """Of the finished classifier; None: as a run always tells it, by its error before and after scaling."""
        return self._of(Calibration)

    @property
    def disagreement(self) -> Disagreement | None:
        """Of clients, and what the adapter has learned; None: nobody looks."""
        return self._of(Disagreement)

    @property
    def energy(self) -> Energy | None:
        """Of clients; None: nobody counts."""
        return self._of(Energy)

    @property
    def laplace(self) -> Laplace | None:
        """Of the adapter; None: it is taken to be certain."""
        return self._of(Laplace)

    @property
    def robustness(self) -> Robustness | None:
        """Of the result; None: it is asked as the rows are."""
        return self._of(Robustness)

    @property
    def clones(self) -> Clones | None:
        """Of functions; None: nobody looks for them."""
        return self._of(Clones)

    @property
    def ensemble(self) -> Ensemble | None:
        """Of the last states; None: the result is one of them."""
        return self._of(Ensemble)

    @property
    def evaluate(self) -> Evaluate | None:
        """Questions to the global model on the way; None: it is not asked."""
        return self._of(Evaluate)

    @property
    def simulated(self) -> tuple[str, ...]:
        """The names of those that need rows that only a simulation has."""
        return tuple(part.name for part in self.parts if part.simulated)


def parse_measure(text: str) -> Measured:
    """The measurements that `text` names, joined by "+".

    Raises:
        ConfigError: unknown measurement or setting, value out of range, the same one twice, or one that nothing reads.
    """
    if not text.strip():
        return Measured()
    parts = tuple(MEASUREMENTS.build(spec) for spec in split_outside_parentheses(text, "+"))
    names = [part.name for part in parts]
    if twice := {name for name in names if names.count(name) > 1}:
        raise ConfigError(f"FP1006 {text!r} names {', '.join(sorted(twice))} twice; once is enough")
    known = tuple(MEASUREMENTS.part(name) for name in MEASUREMENTS.own_names)
    if unread := [part.name for part in parts if not isinstance(part, known)]:
        raise ConfigError(
            f"FP1374 nothing measures {', '.join(unread)}: one of your own is made from the class of one of fedpeft's "
            f"({', '.join(MEASUREMENTS.own_names)}); numbers of your own are what a task's `measures` gives"
        )
    return Measured(parts)

"""Exposure: how well the finished language model knows secrets that were planted in its training data.

    --dataset "planted(of='shakespeare')" --measure exposure

`fedpeft.trust.exposure` defines it, and its bound under differential privacy.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from fedpeft.data.secrets import PlantsSecrets
from fedpeft.errors import ConfigError
from fedpeft.parts import setting
from fedpeft.wiring.measurement import Measurement, ScoredRun

if TYPE_CHECKING:
    from fedpeft.wiring.setup import Setup


@dataclass(frozen=True)
class Exposure(Measurement):
    """The mean exposure of the planted secrets in bits, beside that in the base without adapter."""

    references: int = setting(
        255, "other secrets that each is ranked among; exposure is at most log2(references + 1)", low=1, high=100_000
    )

    simulated: ClassVar[bool] = True
    of_kept_state: ClassVar[bool] = True

    def check(self, setup: Setup) -> None:
        """Reject runs without planted secrets, and more references than there are secrets."""
        if not isinstance(setup.dataset, PlantsSecrets):
            raise ConfigError(
                "FP1585 exposure needs planted secrets, and this dataset has none; use --dataset "
                "\"planted(of='shakespeare')\", with your own dataset in the quotes"
            )
        planted = setup.dataset.secrets
        if self.references > planted.space - planted.count:
            raise ConfigError(
                f"FP1586 exposure(references={self.references}) needs as many other secrets, and {planted.length} of "
                f"{len(planted.symbols)} symbols leave {planted.space - planted.count}; plant longer secrets"
            )

    def compute(self, run: ScoredRun, answers: dict[str, Any]) -> Mapping[str, Any] | None:
        """Rank the secrets in the saved model and in its base."""
        from fedpeft.simulation.language import evaluate_exposure

        assert run.simulation is not None
        planted, protection = run.setup.dataset, run.simulation.protection
        assert isinstance(planted, PlantsSecrets)
        run.note_phase("exposure: planted secrets in the base and in the saved model")
        claims = None if protection is None else protection.summary()
        spent = None if claims is None else (float(claims["epsilon"]), float(claims["dp_delta"]))
        return evaluate_exposure(self, planted.secrets, run.setup, run.folder, spent)

    @classmethod
    def lines(cls, section: Mapping[str, Any]) -> dict[str, str]:
        """Return the mean exposure beside that of the base, and its bounds."""
        bound = section["bound"]
        most = f"at most {section['most']:.2f} can be measured"
        allowed = "no privacy limits it" if bound is None else f"its privacy allows a mean of {bound:.2f}"
        return {
            f"exposure of {section['secrets']} secrets, mean bits": f"{section['exposure']:.2f}; base "
            f"{section['base']:.2f}; {section['unexposed']:.2f} expected of unknown secrets",
            "bound of exposure, bits": f"{allowed}; {most}",
        }


part = Exposure

"""Forgetting: base and result are scored on a second dataset, which shows what tuning has cost."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from fedpeft.errors import ConfigError
from fedpeft.models.abilities import ComparesExamples, DescribesImages
from fedpeft.parts import setting
from fedpeft.parts.families import DATASETS
from fedpeft.wiring.measurement import Measurement, NewRun, ScoredRun

if TYPE_CHECKING:
    from fedpeft.wiring.setup import Setup


@dataclass(frozen=True)
class Forgetting(Measurement):
    """The scores on a second dataset, before and after tuning."""

    dataset: str = setting(
        dataclasses.MISSING,
        "the second dataset, such as reuters_r8, or in quotes 'file:PATH' and 'tiny(seed=1)'",
        nested=DATASETS,
    )

    simulated: ClassVar[bool] = True

    in_quality: ClassVar[bool] = True

    def check(self, setup: Setup) -> None:
        """Reject tasks that have neither classes nor next tokens of texts."""
        if setup.task.targets in ("numbers", "labels"):
            what = "numbers" if setup.task.targets == "numbers" else "several labels each"
            raise ConfigError(
                f"FP1345 forgetting needs classes or next tokens, and these examples have {what}; leave it out"
            )
        if isinstance(setup.task, DescribesImages):
            raise ConfigError(
                "FP1303 forgetting needs a model that reads only texts, and captioning reads images; leave it out of "
                "--measure"
            )
        if isinstance(setup.task, ComparesExamples):
            raise ConfigError("FP1315 forgetting needs classes or next tokens, and pairs have neither; leave it out")

    def begin(self, run: NewRun) -> Any:
        """Load the second dataset."""
        from fedpeft.simulation.forgetting import load_second_task

        assert run.dataset is not None
        return load_second_task(self.dataset, run.dataset)

    def compute(self, run: ScoredRun, answers: dict[str, Any]) -> Mapping[str, Any] | None:
        """Score base and result on the second dataset."""
        from fedpeft.simulation.forgetting import measure_forgetting

        assert run.simulation is not None
        run.simulation.observer.phase(f"forgetting: {run.begun.name} on the base and on the result", 1)
        key = run.simulation.workers.work.model_key
        return {"forgetting": measure_forgetting(run.setup, run.begun, run.folder, key).to_dict()}


part = Forgetting

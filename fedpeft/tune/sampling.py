"""The samplers, which draw trials, and the pruners, which end some of them early. All come from optuna.

TPE: Bergstra et al., Algorithms for Hyper-Parameter Optimization, NeurIPS 2011. Asynchronous successive halving: Li et
al., arXiv 1810.05934. Hyperband: Li et al., arXiv 1603.06560. Hyperband runs several successive halvings, of which some
begin later; a trial's number determines its halving.

A trial passes a rung if it is among the best 1 / `reduction` of the trials that have reached it. Rungs lie at rounds
`first`, `first * reduction`, `first * reduction ** 2`, ...
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

import optuna
from optuna.distributions import BaseDistribution
from optuna.pruners import BasePruner, HyperbandPruner, NopPruner, SuccessiveHalvingPruner
from optuna.samplers import BaseSampler, RandomSampler, TPESampler
from optuna.trial import FrozenTrial

from fedpeft.machine import seeds

if TYPE_CHECKING:
    from optuna.study import Study

PRUNERS: Mapping[str, Callable[[int, int, int], BasePruner]] = {
    "hyperband": lambda first, most, reduction: HyperbandPruner(
        min_resource=first, max_resource=most, reduction_factor=reduction
    ),
    "halving": lambda first, _, reduction: SuccessiveHalvingPruner(min_resource=first, reduction_factor=reduction),
    "none": lambda *_: NopPruner(),
}
"""Pruner factories by name; they take the round of the first rung, the most rounds and the reduction."""

SAMPLERS: Mapping[str, Callable[[int, int], BaseSampler]] = {
    "tpe": lambda seed, startup: TPESampler(seed=seed, n_startup_trials=startup),
    "random": lambda seed, _: RandomSampler(seed=seed),
}
"""Sampler factories by name; they take a seed and the number of trials to draw at random."""

NEVER_TRAINED = "never trained"
"""Attribute of a trial that was drawn and not trained, with the reason as its value."""


class SeededSampler(BaseSampler):
    """A sampler whose draws depend only on the search's seed, the trial's number and the parameter's name.

    optuna's samplers use one stream of random numbers, which restarts in a new process. An interrupted search would
    then draw other trials than an uninterrupted one.
    """

    def __init__(self, name: str, seed: int, startup: int) -> None:
        """Hold the sampler's name, the seed, and the number of trials to draw at random."""
        self.name, self.seed, self.startup = name, seed, startup

    def _create_sampler(self, study: Study, trial: FrozenTrial, parameter: str) -> BaseSampler:
        others = study.get_trials(deepcopy=False)
        unknown = sum(NEVER_TRAINED in other.user_attrs for other in others)  # they have no value to learn from
        seed = seeds.derive_seed(self.seed, f"trial {parameter}", trial.number) % 2**32
        return SAMPLERS[self.name](seed, self.startup + unknown)

    def infer_relative_search_space(self, study: Study, trial: FrozenTrial) -> dict[str, BaseDistribution]:
        """Return the search space that the seeded sampler of this trial infers."""
        space: dict[str, BaseDistribution] = self._create_sampler(study, trial, "").infer_relative_search_space(
            study, trial
        )
        return space

    def sample_relative(
        self, study: Study, trial: FrozenTrial, search_space: dict[str, BaseDistribution]
    ) -> dict[str, Any]:
        """Return the parameters that the seeded sampler of this trial draws together."""
        drawn: dict[str, Any] = self._create_sampler(study, trial, "").sample_relative(study, trial, search_space)
        return drawn

    def sample_independent(
        self, study: Study, trial: FrozenTrial, param_name: str, param_distribution: BaseDistribution
    ) -> Any:
        """Return the value that the seeded sampler of this trial and parameter draws."""
        return self._create_sampler(study, trial, param_name).sample_independent(
            study, trial, param_name, param_distribution
        )


optuna.logging.set_verbosity(optuna.logging.WARNING)

"""Who takes part in a round: `--cohort 0.1` draws alike, `--cohort "eafl(0.1)"` goes by what is known of clients.

A sampler that looks at batteries, the grid or losses sees them through a `View`. Its choice is a function of that, the
seed and the round, so a run that is continued chooses as one that was never interrupted.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import ClassVar, Protocol

import numpy as np
from numpy.typing import NDArray

from fedpeft.errors import ConfigError
from fedpeft.machine import seeds
from fedpeft.parts import setting
from fedpeft.parts.families import SAMPLERS
from fedpeft.parts.spec import parse_spec

Size = int | float | str

ALL_UP_TO = 20
"""Most clients of whom `--cohort auto` asks all in each round."""

AUTO_SHARE = 0.1
"""Share of more clients that `--cohort auto` asks."""

AUTO_LEAST = 10
"""Fewest of them that it asks: the mean of fewer updates is noisy."""


def compute_cohort_size(setting: Size, clients: int) -> int:
    """Return the number of clients that a round asks.

    Args:
        setting: a whole number is a count, a float a fraction of the clients. "all" is everyone, "auto" is everyone up
            to `ALL_UP_TO` clients and else a share. A sampler's text has a size of its own.
        clients: how many there are.

    Raises:
        ConfigError: it asks for no client, or for more than there are; or the text is none.
    """
    if setting == "auto":
        return clients if clients <= ALL_UP_TO else max(AUTO_LEAST, round(AUTO_SHARE * clients))
    if isinstance(setting, str) and setting != "all" and setting.isascii() and "(" in setting:
        setting = build_aware_sampler(setting).size  # type: ignore[union-attr]
    if setting == "all":
        return clients
    if isinstance(setting, float) and 0 < setting <= 1:
        return max(1, round(setting * clients))
    if isinstance(setting, int) and 1 <= setting <= clients:
        return setting
    raise ConfigError(
        f"FP1506 cohort={setting} is not legal; give a fraction of the clients (above 0.0, at most 1.0), a "
        f"whole number from 1 to the number of clients ({clients}), auto, all, or a sampler such as eafl(0.1)"
    )


class View(Protocol):
    """What a server knows of its clients before a round; arrays are in the order of ids."""

    @property
    def weights(self) -> NDArray[np.float64]:
        """Chances of being drawn, relative to each other, (clients,)."""
        ...

    @property
    def levels(self) -> NDArray[np.float64]:
        """Joules in each battery, (clients,); infinite: plugged in."""
        ...

    @property
    def capacities(self) -> NDArray[np.float64]:
        """Joules that each battery holds, (clients,); infinite: plugged in."""
        ...

    @property
    def uses(self) -> NDArray[np.float64]:
        """Joules that a round is predicted to take of each client, (clients,)."""
        ...

    @property
    def seconds(self) -> NDArray[np.float64]:
        """Predicted seconds of local training, (clients,)."""
        ...

    @property
    def losses(self) -> NDArray[np.float64]:
        """Each client's training loss of its last round, (clients,); not a number: it has not taken part."""
        ...

    @property
    def rows(self) -> NDArray[np.float64]:
        """Number of examples of each client, (clients,); not a number: not known yet."""
        ...

    def get_intensity(self, round_number: int) -> NDArray[np.float64]:
        """Grams of CO2 per kWh where each client is, (clients,)."""
        ...


@dataclass(frozen=True)
class AwareSampler(ABC):
    """Chooses by what is known of clients. Subclasses are frozen dataclasses; their fields are the user's settings."""

    argument: ClassVar[str] = "size"

    needs_energy: ClassVar[bool] = True
    """Whether a run has to say energy(...) in --measure; False: it looks at no joules, seconds or grams of a `View`."""

    size: int | float = setting(0.1, "clients per round: a fraction (0.1) or a number (20)", above=0)

    @abstractmethod
    def choose(self, view: View, size: int, seed: int, round_number: int) -> list[int]:
        """At most `size` ids, ascending; fewer where not so many can take part."""


def build_aware_sampler(cohort: Size) -> AwareSampler | None:
    """Return the sampler that `--cohort` names; None: auto, a number, a fraction or all.

    Raises:
        ConfigError: the text names an unknown sampler, or a setting is not legal.
    """
    if not isinstance(cohort, str) or cohort in ("auto", "all"):
        return None
    if parse_spec(cohort).name not in SAMPLERS.names and "(" not in cohort:
        return None  # for `compute_cohort_size`, which says what is legal
    return SAMPLERS.build(cohort)


def find_able_clients(view: View) -> NDArray[np.int64]:
    """Return the ids of the clients whose batteries hold the predicted energy of a round."""
    return np.flatnonzero(view.levels >= view.uses)


def draw_clients(
    among: NDArray[np.int64], weights: NDArray[np.float64], size: int, seed: int, round_number: int
) -> list[int]:
    """Draw `size` of these ids without replacement, or return all of them; ascending."""
    if len(among) <= size:
        return sorted(among.tolist())
    chances = weights[among] / weights[among].sum()
    return sorted(
        seeds.create_generator(seed, "cohort", round_number).choice(among, size, replace=False, p=chances).tolist()
    )


def select_best(
    scores: NDArray[np.float64], among: NDArray[np.int64], size: int, seed: int, round_number: int
) -> list[int]:
    """Return the `size` ids with the largest scores, ascending; ties are drawn at random."""
    shuffled = seeds.create_generator(seed, "cohort", round_number).permutation(among)
    chosen: list[int] = shuffled[np.argsort(-scores[shuffled], kind="stable")][:size].tolist()
    return sorted(chosen)

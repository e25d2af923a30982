"""What is wrong with settings by themselves, before torch, rows or a model are loaded.

Nothing here imports torch, so a mistake is told within a second. What is checked here is checked again where it is
used; `fedpeft.run.catalogue.check_parts` checks the parts' own settings, still before any row is read.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from fedpeft.aggregation.elsewhere import ELSEWHERE
from fedpeft.clients.local_work import LOCAL_WORK
from fedpeft.config import RunConfig
from fedpeft.parts import Family
from fedpeft.privacy.secure_sum.cohorts import check_cohort
from fedpeft.run.grid import GRIDS
from fedpeft.run.measured import parse_measure
from fedpeft.run.sampling import cohort_size
from fedpeft.spec import parse_spec, split_outside_parentheses

NAMES: Mapping[str, Family[Any]] = {
    "partition": Family("fedpeft.data.partitions", "partition"),
    "head": Family("fedpeft.aggregation.heads", "head"),
    "strategy": Family("fedpeft.strategies", "strategy", elsewhere=ELSEWHERE),
    "server_optimizer": Family("fedpeft.aggregation.server_optimizers", "server optimizer"),
    "safeguard": Family("fedpeft.aggregation.safeguards", "safeguard"),
    "drift": Family("fedpeft.clients.corrections", "drift correction"),
    "optimizer": Family("fedpeft.clients.optimizers", "local optimizer"),
    "attack": Family("fedpeft.clients.attacks", "attack"),
    "privacy": Family("fedpeft.privacy.mechanisms", "privacy mechanism"),
}
"""Where the parts of a setting are, without the class that they are made from, which needs torch."""

SUMS: Family[Any] = Family("fedpeft.privacy.sums", "secure sum")
"""What `--privacy` may name, too."""


def check(config: RunConfig) -> None:
    """Refuse unknown parts, a cohort that the clients can't form, and a secure sum of too few.

    Raises:
        ConfigError, PrivacyError: says what is legal.
    """
    for name, family in NAMES.items():
        for text in split_outside_parentheses(getattr(config, name), "+"):
            if text.strip() not in ("", "auto"):
                _check_name(family, text)
    LOCAL_WORK.build(config.local_work)
    GRIDS.build(config.grid)
    parse_measure(config.measure)
    if isinstance(config.clients, int) and config.clients:
        size = cohort_size(config.cohort, config.clients)
        if config.privacy and (name := parse_spec(config.privacy).name) in SUMS.names:
            check_cohort(name, size)


def _check_name(family: Family[Any], text: str) -> None:
    """Refuse a text whose part is unknown; `name:argument` is left to the family, which has more to say of it."""
    spec = family.parsed(text)
    if spec.argument is None and not (family is NAMES["privacy"] and spec.name in SUMS.names):
        family.check_name(spec.name)

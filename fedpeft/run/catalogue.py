"""Which flag takes which parts, and what a configuration uses of parts from outside."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import tomli_w

from fedpeft import plugins
from fedpeft.aggregation.head_start import HEADS
from fedpeft.aggregation.safeguard import SAFEGUARDS
from fedpeft.aggregation.server_optimizer import SERVER_OPTIMIZERS
from fedpeft.aggregation.strategy import strategies
from fedpeft.clients.attack import ATTACKS
from fedpeft.clients.drift import CORRECTIONS
from fedpeft.communication.precision_rule import PRECISION_RULES
from fedpeft.communication.steps import codecs
from fedpeft.config import RunConfig
from fedpeft.data.partition import PARTITIONS
from fedpeft.data.rows import DATASETS
from fedpeft.errors import ConfigError
from fedpeft.models.base_model import MODELS
from fedpeft.models.task import TASKS
from fedpeft.parts import Family
from fedpeft.peft.family import PEFT_METHODS
from fedpeft.privacy.mechanism import MECHANISMS

FAMILIES: dict[str, tuple[Family[Any], ...]] = {
    "dataset": (DATASETS,),
    "partition": (PARTITIONS,),
    "model": (MODELS,),
    "peft": (PEFT_METHODS,),
    "head": (HEADS,),
    "strategy": (strategies,),
    "server-optimizer": (SERVER_OPTIMIZERS,),
    "safeguard": (SAFEGUARDS,),
    "codec": (codecs, PRECISION_RULES),
    "privacy": (MECHANISMS,),
    "attack": (ATTACKS,),
}
"""The flags of `python -m fedpeft.simulate` whose values are parts."""

ALL: tuple[Family[Any], ...] = (*(family for families in FAMILIES.values() for family in families), TASKS, CORRECTIONS)
"""Every family; a task is what a data set asks for, and has no flag; nor have corrections of drift."""


def use(given: Iterable[str | Mapping[str, Any]], beside: Path | None = None) -> None:
    """Load plugins, and see that all their parts have a name of their own.

    Raises:
        ConfigError: a plugin can't be loaded, or a name is taken already.
    """
    plugins.use(given, beside)
    for family in ALL:
        family.outside()
    for flag, families in FAMILIES.items():
        names = [name for family in families for name in family.names]
        for name in names:
            if names.count(name) > 1:
                raise ConfigError(f"--{flag} would have two parts called {name!r}: give the plugin's another name")


def used(config: RunConfig) -> list[plugins.Plugin]:
    """The plugins that a configuration needs: those that were named, and the packages whose parts stand in it.

    Raises:
        ConfigError: one can't be loaded.
    """
    in_it = {
        origin: None
        for flag, families in FAMILIES.items()
        for word in re.findall(r"\w+", getattr(config, flag.replace("-", "_")))
        for family in families
        if (origin := family.outside().get(word))
    }
    return list(dict.fromkeys([*plugins.named(), *in_it]))


def to_toml(config: RunConfig) -> str:
    """A run's config.toml: its settings, and where its parts from outside came from."""
    records = [plugin.record for plugin in used(config)]
    return config.to_toml() + ("\n" + tomli_w.dumps({"plugin": records}) if records else "")

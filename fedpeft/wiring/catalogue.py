"""Flags that take parts, and the plugins that a configuration uses."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import tomli_w

from fedpeft.errors import ConfigError
from fedpeft.models.base_model import check_model
from fedpeft.parts import Family, plugins
from fedpeft.parts.families import (
    ATTACKS,
    CORRECTIONS,
    DATASETS,
    GRIDS,
    HEADS,
    HOOKS,
    LOCAL_OPTIMIZERS,
    LOCAL_WORK,
    MEASUREMENTS,
    MECHANISMS,
    MODELS,
    PARTITIONS,
    PEFT_METHODS,
    PRECISION_RULES,
    SAFEGUARDS,
    SAMPLERS,
    SERVER_NOISES,
    SERVER_OPTIMIZERS,
    SUMS,
    TASKS,
    codecs,
    strategies,
)  # fmt: skip
from fedpeft.parts.spec import split_outside_parentheses
from fedpeft.wiring.config import FORMAT, RunConfig
from fedpeft.wiring.measurements import parse_measure
from fedpeft.wiring.sampling import build_aware_sampler

if TYPE_CHECKING:
    from fedpeft.rounds.user_hook import UserHook
    from fedpeft.wiring.setup import Setup


@dataclass(frozen=True)
class Flag:
    """A flag whose value is a part, or several.

    Attributes:
        families: the families of the parts.
        parse: returns the parts of a text; by default one part of the first family.
        joined: the separator of several parts; empty: there is one part.
        check: refuses a text without importing a part; by default `Family.check` of each part.
        optional: whether the text may be empty, which means no part.
    """

    families: tuple[Family[Any], ...]
    parse: Callable[[Any], Any] | None = None
    joined: str = ""
    check: Callable[[str], None] | None = None
    optional: bool = False

    def parse_value(self, text: Any) -> Any:
        """Return the parts that a text describes; None: the text is empty and may be.

        Raises:
            ConfigError: unknown part or setting, wrong type, value out of range.
        """
        if self.optional and not text:
            return None
        return (self.parse or self.families[0].build)(text)

    def check_early(self, text: Any) -> None:
        """Refuse unknown parts and illegal settings, without importing a part.

        Raises:
            ConfigError: as `parse_value`.
        """
        if not isinstance(text, str) or text.strip() in ("", "auto"):
            return
        if self.check is not None:
            self.check(text)
            return
        for part in split_outside_parentheses(text, self.joined.strip()) if self.joined else [text]:
            named = (family for family in self.families if family.parse_text(part).name in family.names)
            next(named, self.families[0]).check(part)


def _parse_drift(text: str) -> Any:
    from fedpeft.clients.drift import parse_drift

    return parse_drift("" if text == "auto" else text)


def _parse_uplink(text: str) -> Any:
    from fedpeft.communication.uplink import parse_uplink

    return parse_uplink(text)


def _parse_privacy(text: str) -> Any:
    from fedpeft.privacy.secure_sum.sum import parse_privacy

    return parse_privacy(text)


def parse_hooks(text: str) -> tuple[UserHook, ...]:
    """Return the hooks that `text` names, joined by "+".

    Raises:
        ConfigError: unknown hook or setting, value out of range, or the same hook twice.
    """
    hooks = tuple(HOOKS.build(spec) for spec in split_outside_parentheses(text, "+")) if text.strip() else ()
    names = [hook.name for hook in hooks]
    if twice := sorted({name for name in names if names.count(name) > 1}):
        raise ConfigError(f"FP1512 --hook {text!r} names {', '.join(twice)} twice; name each hook once")
    return hooks


def _check_cohort(text: str) -> None:
    """Check a sampler's text; other texts are left to `compute_cohort_size`."""
    build_aware_sampler(text)


FLAGS: Mapping[str, Flag] = {
    "cohort": Flag((SAMPLERS,), build_aware_sampler, check=_check_cohort),
    "dataset": Flag((DATASETS,)),
    "partition": Flag((PARTITIONS,), lambda text: None if text == "auto" else PARTITIONS.build(text)),
    "model": Flag((MODELS,), check=check_model),
    "peft": Flag((PEFT_METHODS,), lambda text: None if text == "auto" else PEFT_METHODS.build(text), joined=" + "),
    "head": Flag((HEADS,), lambda text: None if text == "auto" else HEADS.build(text)),
    "strategy": Flag((strategies,)),
    "server-optimizer": Flag((SERVER_OPTIMIZERS,)),
    "safeguard": Flag((SAFEGUARDS,), lambda text: None if text == "auto" else SAFEGUARDS.build(text)),
    "drift": Flag((CORRECTIONS,), _parse_drift, joined=" + "),
    "local-work": Flag((LOCAL_WORK,)),
    "optimizer": Flag((LOCAL_OPTIMIZERS,)),
    "codec": Flag((codecs, PRECISION_RULES), _parse_uplink, joined=" | ", check=codecs.check),
    "privacy": Flag((MECHANISMS, SUMS, SERVER_NOISES), _parse_privacy, optional=True),
    "attack": Flag((ATTACKS,), optional=True),
    "grid": Flag((GRIDS,)),
    "measure": Flag((MEASUREMENTS,), parse_measure, joined=" + "),
    "hook": Flag((HOOKS,), parse_hooks, joined=" + "),
}
"""The flags of `fedpeft simulate` whose values are parts."""

FAMILIES: Mapping[str, tuple[Family[Any], ...]] = {name: flag.families for name, flag in FLAGS.items()}
"""The families of each flag's parts."""


def find_flag(setting: str) -> Flag | None:
    """Return the flag whose parts a setting of `RunConfig` takes; None: its value is not a part."""
    return FLAGS.get("codec" if setting == "downlink" else setting.replace("_", "-"))


def build_part(config: RunConfig, name: str) -> Any:
    """Return the parts that the setting `name` of a configuration describes (`Flag.parse_value`)."""
    return FLAGS[name.replace("_", "-")].parse_value(getattr(config, name))


ALL: tuple[Family[Any], ...] = (*(family for families in FAMILIES.values() for family in families), TASKS)
"""Every family. Tasks have no flag: the dataset names its task."""


def use(given: Iterable[str | Mapping[str, Any]], beside: Path | None = None) -> None:
    """Load plugins, and check that all their parts have unique names.

    Raises:
        ConfigError: a plugin can't be loaded, or a name is taken already.
    """
    plugins.use(given, beside)
    for family in ALL:
        family.find_outside_parts()
    for flag, families in FAMILIES.items():
        names = [name for family in families for name in family.names]
        for name in names:
            if names.count(name) > 1:
                raise ConfigError(
                    f"FP1297 --{flag} would have two parts called {name!r}: give the plugin's another name"
                )


def find_used_plugins(config: RunConfig) -> list[plugins.Plugin]:
    """Return the plugins that a configuration needs: named ones, and packages whose parts it names.

    Raises:
        ConfigError: one can't be loaded.
    """
    in_it = {
        origin: None
        for flag, families in FAMILIES.items()
        for word in re.findall(r"\w+", str(getattr(config, flag.replace("-", "_"))))
        for family in families
        if (origin := family.find_outside_parts().get(word))
    }
    return list(dict.fromkeys([*plugins.list_named(), *in_it]))


READ: Mapping[str, tuple[Family[Any], ...]] = {
    **FAMILIES,
    "downlink": FAMILIES["codec"],
    "measure": (MEASUREMENTS, DATASETS),
}
"""The families whose parts a setting's text can contain, including parts inside another part's text."""


def find_used_parts(config: RunConfig, **more: str) -> dict[str, plugins.Plugin]:
    """Return the plugins' parts that a configuration names, as `group.name`, each with its plugin.

    Args:
        config: the settings.
        more: resolved values: `task`, and `model` if the dataset names it.

    Raises:
        ConfigError: a plugin can't be loaded.
    """
    texts = [(str(getattr(config, flag.replace("-", "_"))), families) for flag, families in READ.items()]
    texts += [(more.get("task", ""), (TASKS,)), (more.get("model", ""), (MODELS,))]
    found: dict[str, plugins.Plugin] = {}
    for text, families in texts:
        for family in families:
            words, outside = re.findall(r"\w+", text), family.find_outside_parts()
            found |= {f"{family.group}.{word}": outside[word] for word in words if word in outside}
    return found


def format_toml(config: RunConfig, parts: Mapping[str, plugins.Plugin] | None = None) -> str:
    """Return the content of a run's config.toml: its settings and its plugins.

    Args:
        config: the settings.
        parts: the plugins' parts that the run uses (`find_used_parts`); None: all parts of the named plugins.
    """
    records = [
        record for plugin in find_used_plugins(config) if (record := _record(plugin, parts))["parts"] or parts is None
    ]
    return (
        tomli_w.dumps({"format": FORMAT})
        + config.to_toml()
        + ("\n" + tomli_w.dumps({"plugin": records}) if records else "")
    )


def format_setup_toml(setup: Setup) -> str:
    """Return the content of the config.toml of a run, with the plugins' parts that it uses."""
    parts = find_used_parts(setup.config, task=setup.facts.task, model=setup.model_name)
    return format_toml(setup.config, parts)


def _record(plugin: plugins.Plugin, parts: Mapping[str, plugins.Plugin] | None) -> dict[str, Any]:
    """Return the record of a plugin with those of `parts` that are its own; of objects in Python, all parts."""
    if parts is None or plugin.source == plugins.IN_PYTHON:
        return plugin.record
    return plugin.record | {"parts": sorted(name for name, origin in parts.items() if origin == plugin)}

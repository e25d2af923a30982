"""A study's TOML file and its grid of runs: every combination of the axes' values, with every seed.

A file looks like this:

    name = "communication"
    question = "How many bytes does a point of accuracy cost?"
    preset = "small"                      # the default preset; its results lie beside the file
    baseline = {codec = "fp32"}           # the values that each point is compared with
    margin = 1.0                          # percentage points for "no worse by more than"
    seconds_per_run = 60                  # time estimate until runs have been measured
    seeds = [0, 1, 2, 3, 4]

    [base]                                # settings of every run: the flags of fedpeft simulate
    clients = 100

    [axes]
    codec = ["fp32", "bf16"]              # an axis is a setting with its values ...
    work = [                              # ... or a name with labeled groups of settings
        {label = "1 pass", local_work = "epochs(1.0)", rounds = 10},
        {label = "5 passes", local_work = "epochs(5.0)", rounds = 2},
    ]

    [presets.small]                       # replaces seeds, margin, seconds_per_run, keys of base, whole axes
    seeds = [0, 1]
    base = {clients = 20}
"""

from __future__ import annotations

import dataclasses
import hashlib
import itertools
import json
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fedpeft.errors import ConfigError
from fedpeft.parts import check_settings, setting, suggest_legal
from fedpeft.parts.families import TASKS
from fedpeft.wiring import early_checks
from fedpeft.wiring.config import RunConfig, build_config, read_toml, use_plugins

if TYPE_CHECKING:
    from fedpeft.models.task import Targets
    from fedpeft.wiring.run_spec import RunSpec

SETTINGS = tuple(f.name for f in dataclasses.fields(RunConfig))

REPLACED_BY_A_PRESET = ("seeds", "margin", "seconds_per_run", "base", "axes", "baseline")

TABLES = ("seeds", "base", "axes", "baseline", "presets", "plugin")


@dataclass(frozen=True)
class Value:
    """One value of an axis: its label and the settings that it stands for."""

    label: str
    settings: Mapping[str, Any]


@dataclass(frozen=True)
class PlannedRun:
    """One run of the grid."""

    point: Mapping[str, str]
    config: RunConfig

    @property
    def name(self) -> str:
        """The name of the run's folder: readable, and unique per configuration."""
        plain = json.dumps(dataclasses.asdict(self.config), sort_keys=True)
        words = re.sub(r"[^A-Za-z0-9.]+", "-", "-".join(self.point.values())).strip("-")[:60]
        return f"{words}-seed{self.config.seed}-{hashlib.sha256(plain.encode()).hexdigest()[:8]}"

    @property
    def title(self) -> str:
        """A readable title: the labels and the seed."""
        return ", ".join([*self.point.values(), f"seed {self.config.seed}"])

    @property
    def shared_work(self) -> tuple[Any, ...]:
        """A key of shared work; of runs with equal keys, only one tokenizes and computes frozen features."""
        c = self.config
        return c.dataset, c.model, c.tokens, c.dtype, c.peft, c.grid


@dataclass(frozen=True)
class Study:
    """A study's file with one chosen preset.

    `precision` replaces `dtype = auto`; if empty, the machine decides.
    """

    path: Path
    name: str
    question: str
    preset: str
    default_preset: str
    base: Mapping[str, Any]
    axes: Mapping[str, tuple[Value, ...]]
    seeds: tuple[int, ...]
    baseline: Mapping[str, str]
    margin: float
    seconds_per_run: float | None
    precision: str = ""

    @property
    def folder(self) -> Path:
        """The default results folder: the study's own, or a subfolder named after a preset that is not the default."""
        beside = self.path.parent
        return beside if self.preset == self.default_preset else beside / self.preset

    def plan_runs(self) -> list[PlannedRun]:
        """Return every run, ordered by seed: all points of the first seed come first.

        Raises:
            ConfigError: a setting is unknown or illegal, or two runs would be the same.
        """
        from fedpeft.wiring.auto_defaults import resolve_auto

        planned: dict[RunConfig, PlannedRun] = {}
        targets = cache(_get_targets)
        for point, where, given in self._iterate_settings():
            if self.precision and given.dtype == "auto":
                given = dataclasses.replace(given, dtype=self.precision)
            spec = parse_parts(given, where)
            config = resolve_auto(spec).config
            if config != resolve_auto(spec, "labels").config:  # the type of targets matters, so the data must be read
                config = resolve_auto(spec, targets(given.dataset)).config
            if config in planned:
                raise ConfigError(
                    f"FP1422 {self.path}: {planned[config].title} and {', '.join(point.values())} are the same run; "
                    "give each value of an axis different settings"
                )
            planned[config] = PlannedRun(point, config)
        return list(planned.values())

    def check(self) -> None:
        """Refuse illegal settings before torch is imported (`fedpeft.wiring.early_checks`).

        Raises:
            ConfigError: a setting is illegal. The message names the first run that has it.
        """
        for _, where, given in self._iterate_settings():
            check_early(given, where)

    def _iterate_settings(self) -> Iterator[tuple[dict[str, str], str, RunConfig]]:
        """Yield each run's point, its place for error messages, and its settings as the file gives them.

        Raises:
            ConfigError: a setting is unknown, or its value has the wrong type or is out of range.
        """
        for seed in self.seeds:
            for values in itertools.product(*self.axes.values()):
                settings = dict(self.base)
                for value in values:
                    settings |= value.settings
                point = dict(zip(self.axes, (v.label for v in values), strict=True))
                where = f"{self.path}: {', '.join(f'{a}={label}' for a, label in point.items()) or 'base'}"
                yield point, where, build_config({"workers": 1, **settings, "seed": seed}, where)


def _get_targets(dataset: str) -> Targets:
    """Return the type of a dataset's targets; classes if the dataset's part does not name a task."""
    from fedpeft.data.rows import read_task

    task = read_task(dataset)
    return "classes" if task is None else TASKS.build(task).targets


def check_early(config: RunConfig, where: str) -> None:
    """Refuse illegal settings before torch is imported (`fedpeft.wiring.early_checks`).

    `where` names the place of the settings in error messages.

    Raises:
        ConfigError: one is not.
    """
    with _add_place_to_errors(where):
        early_checks.check(config)


@contextmanager
def _add_place_to_errors(where: str) -> Iterator[None]:
    """Add the place of the settings to the message of a ConfigError."""
    try:
        yield
    except ConfigError as error:
        raise ConfigError(f"FP1074 {where}: {error}") from error


def parse_parts(config: RunConfig, where: str) -> RunSpec:
    """Return the parts that settings describe; `where` names the place of the settings in messages.

    Raises:
        ConfigError: a text describes no part.
    """
    from fedpeft.wiring.run_spec import parse_run

    with _add_place_to_errors(where):
        return parse_run(config)


@dataclass(frozen=True)
class StudyKeys:
    """The top-level keys of a study's file."""

    name: str = setting("", "name of the study; the folder's name if it is empty")
    question: str = setting("", "question that the study answers")
    preset: str = setting("", "preset that runs if none is named")
    seconds_per_run: float = setting(0.0, "measured seconds per run; 0: unknown", low=0)
    margin: float = setting(1.0, "percentage points of accuracy", above=0)


def read_study(path: Path, preset: str | None = None) -> Study:
    """Read a study's file and choose one of its presets; None chooses the default preset.

    Raises:
        ConfigError: a key, axis, value or preset is illegal. The message names the file.
    """
    content = read_toml(path)
    use_plugins(content, path)
    presets = _get_table(path, "presets", content.pop("presets", {}))
    default = str(content.get("preset", ""))
    chosen = default if preset is None else preset
    if chosen and chosen not in presets:
        raise ConfigError(
            f"FP1423 {path} has no preset {chosen!r}; "
            f"{suggest_legal(chosen, presets) if presets else 'it has none at all'}"
        )
    content = _apply_preset(path, content, chosen, presets)
    seeds = content.pop("seeds", None)
    base = _get_table(path, "base", content.pop("base", {}))
    axes = {name: _parse_axis(path, name, v) for name, v in _get_table(path, "axes", content.pop("axes", {})).items()}
    baseline = {a: str(v) for a, v in _get_table(path, "baseline", content.pop("baseline", {})).items()}
    legal = {f.name for f in dataclasses.fields(StudyKeys)}
    for key in content:
        if key not in legal:
            raise ConfigError(f"FP1424 {path} has an unknown key {key!r}; {suggest_legal(key, {*legal, *TABLES})}")
    keys = StudyKeys(**check_settings(str(path), StudyKeys, content))
    _check_seeds(path, seeds)
    _check_conflicts(path, base, axes)
    _check_baseline(path, baseline, axes)
    return Study(
        path=path,
        name=keys.name or path.resolve().parent.name,
        question=keys.question,
        preset=chosen,
        default_preset=default,
        base=base,
        axes=axes,
        seeds=tuple(seeds),
        baseline=baseline or {name: values[0].label for name, values in axes.items()},
        margin=keys.margin,
        seconds_per_run=keys.seconds_per_run or None,
    )


def _get_table(path: Path, name: str, value: Any) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise ConfigError(f"FP1425 {path}: {name} must be a table ([{name}]), got {value!r}")
    return value


def _apply_preset(path: Path, content: dict[str, Any], chosen: str, presets: Mapping[str, Any]) -> dict[str, Any]:
    if not chosen:
        return content
    changes = _get_table(path, f"presets.{chosen}", presets[chosen])
    merged = dict(content)
    for key, value in changes.items():
        if key not in REPLACED_BY_A_PRESET:
            raise ConfigError(
                f"FP1426 {path}: preset {chosen} can't set {key!r}; {suggest_legal(key, REPLACED_BY_A_PRESET)}"
            )
        if key in ("base", "axes"):
            merged[key] = _get_table(path, key, merged.get(key, {})) | _get_table(
                path, f"presets.{chosen}.{key}", value
            )
        else:
            merged[key] = value
    return merged


def _parse_axis(path: Path, name: str, values: Any) -> tuple[Value, ...]:
    if not isinstance(values, list):
        raise ConfigError(f"FP1427 {path}: axis {name!r} must be a list of values, got {values!r}")
    if not values:
        raise ConfigError(
            f"FP1428 {path}: axis {name!r} has no values, so the grid is empty; add values, or remove the axis"
        )
    parsed = tuple(_parse_value(path, name, value) for value in values)
    labels = [value.label for value in parsed]
    for label in labels:
        if labels.count(label) > 1:
            raise ConfigError(f"FP1429 {path}: axis {name!r} has the value {label!r} twice; name it once")
    return parsed


def _parse_value(path: Path, name: str, value: Any) -> Value:
    if not isinstance(value, dict):
        if name not in SETTINGS:
            raise ConfigError(
                f"FP1430 {path}: unknown axis {name!r}; an axis is a setting, or its values are tables with a label "
                f'({{label = "...", setting = ...}}); {suggest_legal(name, SETTINGS)}'
            )
        return Value(str(value), {name: value})
    settings = dict(value)
    label = settings.pop("label", None)
    if not isinstance(label, str) or not label:
        raise ConfigError(
            f'FP1431 {path}: a value of axis {name!r} has no label; write {{label = "...", setting = ...}}'
        )
    for key in settings:
        if key not in SETTINGS:
            raise ConfigError(
                f"FP1432 {path}: {label!r} of axis {name!r} sets an unknown {key!r}; {suggest_legal(key, SETTINGS)}"
            )
    return Value(label, settings)


def _check_seeds(path: Path, seeds: Any) -> None:
    if not isinstance(seeds, list) or not seeds:
        raise ConfigError(
            f"FP1433 {path}: seeds must be a list with at least one whole number, e.g. seeds = [0, 1, 2, 3, 4]"
        )
    if any(not isinstance(s, int) or isinstance(s, bool) or s < 0 for s in seeds) or len(set(seeds)) < len(seeds):
        raise ConfigError(f"FP1434 {path}: seeds must be different whole numbers of at least 0, got {seeds}")


def _check_conflicts(path: Path, base: Mapping[str, Any], axes: Mapping[str, tuple[Value, ...]]) -> None:
    """Check that every setting has one place: base, one axis, or, for the seed, `seeds`."""
    for key in base:
        if key not in SETTINGS:
            raise ConfigError(f"FP1435 {path}: [base] has an unknown setting {key!r}; {suggest_legal(key, SETTINGS)}")
    places = dict.fromkeys(base, "[base]")
    if "seed" in places or any("seed" in v.settings for values in axes.values() for v in values):
        raise ConfigError(f"FP1436 {path}: seed is set by seeds, not in [base] or an axis")
    for name, values in axes.items():
        for key in dict.fromkeys(key for value in values for key in value.settings):
            if key in places:
                raise ConfigError(
                    f"FP1437 {path}: {key} is set by both {places[key]} and axis {name!r}; leave it in one"
                )
        places |= {key: f"axis {name!r}" for value in values for key in value.settings}


def _check_baseline(path: Path, baseline: Mapping[str, str], axes: Mapping[str, tuple[Value, ...]]) -> None:
    for name, label in baseline.items():
        if name not in axes:
            raise ConfigError(
                f"FP1438 {path}: the baseline names an unknown axis {name!r}; {suggest_legal(name, axes)}"
            )
        labels = [value.label for value in axes[name]]
        if label not in labels:
            raise ConfigError(
                f"FP1439 {path}: axis {name!r} has no value {label!r} for the baseline; {suggest_legal(label, labels)}"
            )

"""Settings that are now part of others: what their old names and values are today.

One table serves three: a user who gives an old name is told what to write instead, run folders and results of before
are read as they were meant, and `experiments/rewrite_settings.py` rewrites files.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from fedpeft.spec import parse_spec, split_outside_parentheses, written

Settings = Mapping[str, Any]
"""By name with underscores."""


@dataclass(frozen=True)
class Merge:
    """Settings that have become part of another.

    Attributes:
        new: the setting that says it now.
        old: the former ones, and their defaults.
        text: the value of `new`, from the former settings and what `new` itself was.
        before: what `new` was by default, where it existed.
    """

    new: str
    old: Settings
    text: Callable[[Settings], Any]
    before: Any = None


def with_settings(part: str, **more: Any) -> str:
    """The text of a part, `name` or `name(key=value)`, with more settings."""
    added = ", ".join(f"{name}={written(value)}" for name, value in more.items())
    if not added:
        return part
    if not part.rstrip().endswith(")"):
        return f"{part}({added})"
    inside = part.rstrip()[:-1].rstrip()
    return f"{inside}{added})" if inside.endswith("(") else f"{inside}, {added})"


def _changed(settings: Settings, old: Settings, **names: str) -> dict[str, Any]:
    """Those of the former settings that are not as by default, by the names that they have in the part."""
    return {new: settings[name] for name, new in names.items() if settings[name] != old[name]}


def _drift(s: Settings) -> str:
    parts = [f"fedprox(mu={float(s['proximal'])!r})"] if s["proximal"] else []
    return " + ".join([*parts, *(name for name in ("scaffold", "label_shift") if s[name])])


def _local_work(s: Settings) -> str:
    if not s["local_steps"]:
        return f"epochs({float(s['local_epochs'])!r})"
    return f"steps(count={s['local_steps']}, walk=False)"  # each round drew its rows anew


def _optimizer(s: Settings) -> str:
    return with_settings(s["optimizer"], **_changed(s, OPTIMIZER, head_rate="head_rate", schedule="schedule"))


def _strategy(s: Settings) -> str:
    return with_settings(s["strategy"], **_changed(s, WEIGHTING, weighting="weighting"))


def _privacy(s: Settings) -> str:
    return with_settings(s["privacy"], at_budget="sit_out") if s["stop_at_budget"] and s["privacy"] else s["privacy"]


def _grid(s: Settings) -> str:
    return with_settings(s["grid"], **_changed(s, GRID, executor="executor", ray_address="address"))


def _measure(s: Settings) -> str:
    names = {"keep": "keep", "early_stopping": "patience", "public_validation": "public"}
    validation = with_settings("validation", every=s["evaluate_every"], **_changed(s, MEASURE, **names))
    pooled = ["pooled"] if s["centralised"] else []
    return " + ".join(
        [validation, *pooled, *([with_settings("forgetting", dataset=s["forgetting"])] if s["forgetting"] else [])]
    )


DRIFT: Settings = {"proximal": 0.0, "scaffold": False, "label_shift": False}
OPTIMIZER: Settings = {"head_rate": 0.1, "schedule": "linear"}
WEIGHTING: Settings = {"weighting": "auto"}
GRID: Settings = {"executor": "batched", "ray_address": ""}
MEASURE: Settings = {
    "evaluate_every": 4,
    "keep": "auto",
    "early_stopping": 0,
    "public_validation": False,
    "centralised": False,
    "forgetting": "",
}

MERGES = (
    Merge("clients", {"profiles": ""}, lambda s: s["profiles"] or s["clients"], 100),
    Merge("strategy", WEIGHTING, _strategy, "fedit"),
    Merge("drift", DRIFT, _drift),
    Merge("local_work", {"local_epochs": 1.0, "local_steps": 0}, _local_work),
    Merge("optimizer", OPTIMIZER, _optimizer, "adamw(warmup=8)"),
    Merge("privacy", {"stop_at_budget": False}, _privacy, ""),
    Merge("grid", GRID, _grid, "cohort"),
    Merge("measure", MEASURE, _measure),
)
"""All of them."""

FORMER: Mapping[str, Merge] = {name: merge for merge in MERGES for name in merge.old}
"""By the former name."""

DEFAULTS: Settings = {name: value for merge in MERGES for name, value in merge.old.items()}
"""Of the former settings."""

ALWAYS = frozenset({"local_epochs", "local_steps", "schedule", "executor", "head_rate", "weighting"})
"""Every run of before wrote all settings into its config.toml, and these were among them from the first version on."""


BLOCKS = frozenset(
    (
        "adalora",
        "bitfit",
        "bottleneck",
        "dora",
        "ia3",
        "lora",
        "lora_fa",
        "lora_sb",
        "prefix",
        "prefix_tuning",
        "qlora",
        "rslora",
        "vera",
    )
)
"""PEFT methods that were in the two uppermost blocks where nothing was said."""


def in_two_blocks(peft: str) -> str:
    """The text of a PEFT method, or of several joined by +, that says so."""
    parts = [part.strip() for part in split_outside_parentheses(peft, "+")]
    specs = [parse_spec(part) for part in parts]
    return " + ".join(
        with_settings(part, layers=2) if spec.name in BLOCKS and "layers" not in spec.settings else part
        for part, spec in zip(parts, specs, strict=True)
    )


def translated(settings: Settings) -> dict[str, Any]:
    """The settings with today's names; those that are not given are as they were by default."""
    made = {name: value for name, value in settings.items() if name not in FORMER}
    for merge in MERGES:
        if merge.old.keys() & settings.keys():
            made[merge.new] = merge.text({merge.new: merge.before, **merge.old, **settings})
    return made | ({"peft": in_two_blocks(made["peft"])} if "peft" in made else {})


def of_a_run(settings: Settings) -> bool:
    """Whether these are all settings of a run of before, as its folder keeps them."""
    return settings.keys() >= ALWAYS


def sentence(settings: Settings, flags: bool = False) -> str:
    """What to write instead of the former settings among `settings`; empty: there are none.

    `flags`: whether they are of a command line.
    """
    told = [_told(merge, settings, flags) for merge in MERGES if merge.old.keys() & settings.keys()]
    return "; ".join(told)


def _told(merge: Merge, settings: Settings, flags: bool) -> str:
    given = [name for name in merge.old if name in settings]
    what = f"{_listed(_name(name, flags) for name in given)} {'are' if len(given) > 1 else 'is'} now"
    value = merge.text({merge.new: merge.before, **merge.old, **settings})
    if value == "" or (merge.before is not None and all(settings[name] == merge.old[name] for name in given)):
        return f"{what} part of {_name(merge.new, flags)}, and needs not be given for what it says"
    if flags:
        return f'{what} --{merge.new.replace("_", "-")} "{value}"'
    return f'{what} {merge.new} = "{value}"'


def _name(name: str, flags: bool) -> str:
    return "--" + name.replace("_", "-") if flags else name


def _listed(names: Iterable[str]) -> str:
    *most, last = names
    return f"{', '.join(most)} and {last}" if most else last


def flags_in(arguments: Sequence[str]) -> dict[str, Any]:
    """The former settings that a command line gives, and today's that they are part of, with their values."""
    found: dict[str, Any] = {}
    known = FORMER.keys() | {merge.new for merge in MERGES}
    for word, following in zip(arguments, [*arguments, ""][1:], strict=True):
        if not word.startswith("--"):
            continue
        flag, equals, value = word[2:].partition("=")
        name = flag.replace("-", "_")
        if name.startswith("no_") and isinstance(DEFAULTS.get(name[3:]), bool):
            found[name[3:]] = False
        elif name in known:
            found[name] = _read(value if equals else following, DEFAULTS.get(name, ""))
    return found if found.keys() & FORMER.keys() else {}


def _read(text: str, default: Any) -> Any:
    """A word of the command line as a value like the default; one that can't be read so, as it stands."""
    if isinstance(default, bool):
        return text not in ("False", "false", "0")
    try:
        return type(default)(text)
    except ValueError:
        return text

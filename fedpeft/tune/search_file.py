"""A search's TOML file: settings of every trial, the searched values, and the search method.

A file looks like this:

    name = "rates"                         # default: the file's name
    question = "Which rate and rank suit R8?"
    trials = 40                            # trained trials; --trials overrides it
    objective = "loss"                     # on validation examples, at the round that a run keeps: loss or accuracy
    sampler = "tpe"                        # tree-structured Parzen estimator, or random
    startup = 10                           # trials that are drawn at random before tpe begins
    pruner = "hyperband"                   # ends trials at rungs: hyperband, halving or none
    first = 0                              # round of the first rung; 0: the first validated round
    reduction = 3                          # each rung is this many times as far; one trial in so many passes it
    seed = 0                               # seed of the search; [base] sets the seed of the trials
    budget = {parameters = 30_000}         # parameters, bytes of an update, joules or grams, one or more of them:
                                           # trials over it are never trained; see `Budget`
    price = {joules = 1e-4}                # what a unit costs, in the objective: see `Price`

    [base]                                 # settings of every trial: the flags of fedpeft simulate
    rounds = 9
    peft = "lora(rank={rank}, alpha={alpha})"

    [search]
    learning_rate = {low = 1e-4, high = 1e-2, log = true}   # a setting with a range: low, high, and log or step ...
    strategy = ["fedit", "flexlora"]                        # ... or a list of values
    rank = [2, 4, 8]                       # another name, which appears in braces in [base] or in listed values
    alpha = {low = 8, high = 64, step = 8}

    [hybrid]                               # replaces peft: see `fedpeft.tune.hybrids`
"""

from __future__ import annotations

import dataclasses
import json
import math
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from itertools import product
from pathlib import Path
from typing import Any

from fedpeft.errors import ConfigError, PrivacyError
from fedpeft.parts import check_settings, setting, suggest_legal
from fedpeft.study.study_file import SETTINGS, check_early, parse_parts
from fedpeft.tune.hybrids import HybridSpace, parse_hybrid_space
from fedpeft.tune.ranges import Choices, Draw, Searched, parse_searched
from fedpeft.tune.sampling import PRUNERS, SAMPLERS
from fedpeft.wiring.catalogue import find_used_plugins
from fedpeft.wiring.config import RunConfig, build_config, read_toml, use_plugins
from fedpeft.wiring.energy import EnergySettings
from fedpeft.wiring.measurements import parse_measure

TABLES = ("budget", "price", "base", "search", "hybrid", "plugin")

OF_STUDIES = ("axes", "seeds", "presets", "baseline")
"""Keys that only a study's file may have."""

FIXED = {
    "rounds": "trials are compared after the same number of rounds",
    "seed": "the best of several seeds is chance",
    "dataset": "losses on different datasets can't be compared",
    "measure": "it defines how trials are compared",
    "workers": "it changes no result",
}
"""Settings that can't be searched, and why."""

PLACE = re.compile(r"\{(\w+)\}")

UNITS = ("parameters", "bytes", "joules", "grams")
"""What a budget limits and a price counts: trained parameters, and bytes of a client's update. Joules and grams of CO2
are those of all clients in all rounds, predicted from the declared watts of `energy`."""

COUNTED = ("parameters", "bytes")
"""The units that are whole numbers."""

OF_ENERGY = ("joules", "grams")
"""The units that need the measurement `energy`."""


def format_amounts(amounts: Mapping[str, float]) -> str:
    """Return amounts by unit as readable text, such as "30,000 parameters and 500 joules"."""
    return " and ".join(f"{amount:,} {unit}" for unit, amount in amounts.items())


@dataclass(frozen=True)
class SearchKeys:
    """The top-level keys of a search's file."""

    name: str = setting("", "name of the search; the file's name if it is empty")
    question: str = setting("", "question that the search answers")
    trials: int = setting(20, "number of trials to train", low=1, high=100_000)
    objective: str = setting("loss", "measure on validation examples", choices=("loss", "accuracy"))
    sampler: str = setting("tpe", "how trials are drawn", choices=tuple(SAMPLERS))
    startup: int = setting(10, "trials that are drawn at random before tpe begins", low=1)
    pruner: str = setting("hyperband", "how trials end at a rung", choices=tuple(PRUNERS))
    first: int = setting(0, "round of the first rung; 0: the first validated round", low=0)
    reduction: int = setting(3, "each rung is this many times as far; one trial in so many passes it", low=2)
    seed: int = setting(0, "seed of the search", low=0)


@dataclass(frozen=True)
class Budget:
    """The largest size of a trial, by unit (`UNITS`); a trial that exceeds one of them is over the budget."""

    most: Mapping[str, float]

    @property
    def identity(self) -> Any:
        """The budget as part of a search's identity."""
        one = [{"unit": unit, "most": most} for unit, most in self.most.items()]
        return one[0] if len(one) == 1 else one

    def __str__(self) -> str:
        """Return the budget as readable text."""
        return format_amounts(self.most)


@dataclass(frozen=True)
class Price:
    """A weighted sum that joins the objective: loss + sum of price x size, or accuracy - the same sum.

    It makes one objective of several. The sizes are those that are known before training, so that a rung compares
    priced values, too.
    """

    of_unit: Mapping[str, float]

    def compute(self, size: Mapping[str, float]) -> float:
        """Return the cost of a trial of this `size` by unit."""
        return sum(price * size[unit] for unit, price in self.of_unit.items())

    def __str__(self) -> str:
        """Return the price as readable text."""
        return " + ".join(f"{price:g} x {unit}" for unit, price in self.of_unit.items())


@dataclass(frozen=True)
class Search:
    """A search's file."""

    path: Path
    keys: SearchKeys
    budget: Budget | None
    base: Mapping[str, Any]
    space: Mapping[str, Searched]
    hybrid: HybridSpace | None
    price: Price | None = None

    @property
    def needs_sizes(self) -> bool:
        """Whether a trial's size matters before it trains."""
        return self.budget is not None or self.price is not None

    @property
    def bounded_units(self) -> set[str]:
        """The units of the budget and of the price."""
        return {*(self.budget.most if self.budget else ()), *(self.price.of_unit if self.price else ())}

    @property
    def objective(self) -> str:
        """Name of the value that trials are compared by."""
        return self.keys.objective if self.price is None else f"priced {self.keys.objective}"

    @property
    def name(self) -> str:
        """The name of the search."""
        return self.keys.name or self.path.stem

    @property
    def folder(self) -> Path:
        """The default results folder: beside the file, with its name."""
        return self.path.with_suffix("")

    @cached_property
    def rounds(self) -> int:
        """The rounds of a trial that ends at no rung."""
        return int(self.base.get("rounds", RunConfig().rounds))

    def get_first_rung(self, every: int) -> int:
        """Return the round of the first rung, if every `every`-th round is validated."""
        return self.keys.first or every

    @property
    def identity(self) -> str:
        """A text that is equal for files of the same search, whatever their number of trials."""
        space = {name: dataclasses.asdict(among) for name, among in self.space.items()}
        first = [list(member.lists) for member in self.hybrid.members] if self.hybrid else []  # also offers "off"
        words = dataclasses.asdict(self.keys)
        kept = {key: value for key, value in words.items() if key not in ("name", "question", "trials")}
        hybrid = self.hybrid and dataclasses.asdict(self.hybrid)
        budget = self.budget and self.budget.identity
        price = [dict(self.price.of_unit)] if self.price else []
        return json.dumps([kept, budget, dict(self.base), space, hybrid, first, *price], sort_keys=True)

    @property
    def plugins(self) -> dict[str, dict[str, Any]]:
        """The records of the plugins that trials may need, by their source."""
        return {
            plugin.source: plugin.record
            for fixed in self._iterate_corners()
            for plugin in find_used_plugins(self.build_corner(fixed))
        }

    def config(self, draw: Draw, depth: int = 0) -> RunConfig | None:
        """Return the run with drawn values; None for a hybrid that would train nothing.

        Args:
            draw: returns a value for a searched name.
            depth: blocks of the base model; only used by a hybrid.

        Raises:
            ConfigError: a value is not legal.
        """
        taken: dict[str, Any] = {}

        def fill_places(text: Any) -> Any:
            return PLACE.sub(lambda place: str(value(place[1])), text) if isinstance(text, str) else text

        def value(name: str) -> Any:
            if name not in taken:
                taken[name] = draw(name, self.space[name])
            return taken[name]

        settings = {"workers": 1, "measure": "validation(every=1)", **self.base}
        settings = {name: fill_places(text) for name, text in settings.items()}
        settings |= {name: fill_places(value(name)) for name in self.space if name in SETTINGS}
        if self.hybrid is not None:
            text = self.hybrid.text(draw, depth)
            if text is None:
                return None
            settings["peft"] = text
        return build_config(settings, str(self.path))

    def build_corner(self, fixed: Mapping[str, Any], depth: int = 1) -> RunConfig:
        """Return the run with the values in `fixed`, and the first legal value of all others.

        Raises:
            ConfigError: a value is not legal.
        """
        config = self.config(lambda name, among: fixed.get(name, among.ends[0]), depth)
        assert config is not None  # the first values of a hybrid switch on all methods in all blocks
        return config

    def list_models(self) -> dict[str, RunConfig]:
        """Return the base models that trials may have, by name, each with a run that uses it."""
        names = ["model"] if "model" in self.space else []
        texts = self.space["model"].ends if names else (self.base.get("model"),)
        names += sorted({place for text in texts for place in _find_places(text)})
        corners = [dict(zip(names, values, strict=True)) for values in product(*(self.space[n].ends for n in names))]
        return {config.model: config for config in map(self.build_corner, corners)}

    def lengths(self) -> set[int]:
        """Return the lengths in tokens that trials may have."""
        return {self.build_corner(fixed).tokens for fixed in self._iterate_corners()}

    def check(self) -> None:
        """Check that every value of the search is legal beside the others.

        Raises:
            ConfigError: a value is illegal.
            PrivacyError: the trials use a privacy mechanism.
        """
        for fixed in self._iterate_corners():
            check_early(self.build_corner(fixed), str(self.path))
        for fixed in self._iterate_corners():
            config = self.build_corner(fixed)
            units = [unit for unit in OF_ENERGY if unit in self.bounded_units]
            if units and parse_measure(config.measure).get(EnergySettings) is None:
                raise ConfigError(
                    f"FP1831 {self.path}: {units[0]} are predicted from declared watts, and no measurement declares "
                    'any; set measure = "validation(every=1) + energy(watts=6)" in [base]'
                )
            mechanism = parse_parts(config, str(self.path)).mechanism
            if mechanism is not None and mechanism.protects:
                raise PrivacyError(
                    f"FP7119 {self.path}: with privacy={config.privacy}, every trial would be a separate release that "
                    "no epsilon here covers; search without privacy on public data, or choose by hand"
                )

    def _iterate_corners(self) -> Iterator[dict[str, Any]]:
        """Yield values that together include each end of each range."""
        yield {}
        for name, among in self.space.items():
            others = [{}] if name in SETTINGS else self._list_values_with(name)
            for other in others:
                for end in among.ends:
                    yield {**other, name: end}

    def _list_values_with(self, name: str) -> list[dict[str, Any]]:
        """Return values of settings that contain the name in braces; one empty dict if [base] does."""
        values: list[dict[str, Any]] = [{}] if any(name in _find_places(text) for text in self.base.values()) else []
        for other, among in self.space.items():
            if isinstance(among, Choices):
                values += [{other: text} for text in among.values if name in _find_places(text)]
        return values


def _find_places(text: Any) -> list[str]:
    return PLACE.findall(text) if isinstance(text, str) else []


def read_search(path: Path) -> Search:
    """Read a search's file.

    Raises:
        ConfigError: a key, range or value is illegal. The message names the file.
        PrivacyError: the trials use a privacy mechanism.
    """
    content = read_toml(path)
    use_plugins(content, path)
    for key in OF_STUDIES:
        if key in content:
            raise ConfigError(
                f"FP1467 {path} has {key}, which belongs to a study (fedpeft study); a search has [search] "
                "with ranges, and one seed in [base]"
            )
    base = _get_table(path, "base", content.pop("base", {}))
    space = {
        name: parse_searched(f"{path}: {name} of [search]", value)
        for name, value in _get_table(path, "search", content.pop("search", {})).items()
    }
    hybrid = parse_hybrid_space(str(path), content.pop("hybrid")) if "hybrid" in content else None
    budget = _parse_budget(path, content.pop("budget")) if "budget" in content else None
    price = _parse_price(path, content.pop("price")) if "price" in content else None
    legal = {f.name for f in dataclasses.fields(SearchKeys)}
    for key in content:
        if key not in legal:
            raise ConfigError(f"FP1424 {path} has an unknown key {key!r}; {suggest_legal(key, {*legal, *TABLES})}")
    keys = SearchKeys(**check_settings(str(path), SearchKeys, content))
    _check_hybrid(path, base, space, hybrid)
    _check_base(path, base)
    _check_space(path, base, space)
    search = Search(path, keys, budget, base, space, hybrid, price)
    search.check()
    if keys.first > search.rounds:
        raise ConfigError(
            f"FP1468 {path}: the first rung, round {keys.first}, is after the last round; set at most {search.rounds}"
        )
    return search


def _get_table(path: Path, name: str, value: Any) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise ConfigError(f"FP1425 {path}: {name} must be a table ([{name}]), got {value!r:.100}")
    return value


def _parse_budget(path: Path, given: Any) -> Budget:
    if not isinstance(given, dict) or not given or not set(given) <= set(UNITS):
        raise ConfigError(
            f"FP1469 {path}: budget must be one or more of {{parameters = 30_000, bytes = 120_000, joules = 500, "
            f"grams = 0.1}}, got {given!r:.100}"
        )
    for unit, most in given.items():
        if unit in COUNTED and (not isinstance(most, int) or isinstance(most, bool) or most < 1):
            raise ConfigError(
                f"FP1470 {path}: a budget of {unit} must be a whole number of at least 1, got {most!r:.100}"
            )
        if not _is_positive(most):
            raise ConfigError(f"FP1832 {path}: a budget of {unit} must be a number above 0, got {most!r:.100}")
    return Budget(given)


def _parse_price(path: Path, given: Any) -> Price:
    if not isinstance(given, dict) or not given or not set(given) <= set(UNITS):
        raise ConfigError(
            f"FP1833 {path}: price must be one or more of {{parameters = 1e-6, bytes = 1e-7, joules = 1e-4, "
            f"grams = 0.1}}, what a unit costs in the objective; got {given!r:.100}"
        )
    for unit, price in given.items():
        if not _is_positive(price):
            raise ConfigError(f"FP1834 {path}: a price of {unit} must be a number above 0, got {price!r:.100}")
    return Price(given)


def _is_positive(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and 0 < value < math.inf


def _check_base(path: Path, base: Mapping[str, Any]) -> None:
    """Check that [base] contains only settings, and that unsearchable settings have no name in braces."""
    for key in base:
        if key not in SETTINGS:
            raise ConfigError(f"FP1435 {path}: [base] has an unknown setting {key!r}; {suggest_legal(key, SETTINGS)}")
        if key in FIXED and (places := _find_places(base[key])):
            raise ConfigError(
                f"FP1472 {path}: {key} can't be searched, so it can't contain {{{places[0]}}}: {FIXED[key]}; write it "
                "without braces"
            )
    if "rounds" in base and (not isinstance(base["rounds"], int) or isinstance(base["rounds"], bool)):
        raise ConfigError(f"FP1480 {path}: rounds must be a whole number, got {base['rounds']!r}")


def _check_space(path: Path, base: Mapping[str, Any], space: Mapping[str, Searched]) -> None:
    """Check that every searched name is a setting or appears in braces, and is set in one place."""
    searched_texts = [
        text
        for name, values in space.items()
        if name in SETTINGS and isinstance(values, Choices)
        for text in values.values
    ]
    used = {place for text in [*base.values(), *searched_texts] for place in _find_places(text)}
    for name in space:
        if name in FIXED:
            raise ConfigError(f"FP1473 {path}: {name} can't be searched: {FIXED[name]}; set it in [base]")
        if name in base:
            raise ConfigError(f"FP1474 {path}: {name} is set by both [base] and [search]; leave it in one")
        if name not in SETTINGS and name not in used:
            raise ConfigError(
                f"FP1475 {path}: [search] has {name!r}, which is neither a setting nor used in braces as {{{name}}}; "
                f"{suggest_legal(name, SETTINGS)}"
            )
        if name in SETTINGS and name in used:
            raise ConfigError(f"FP1476 {path}: {name} is a setting, so {{{name}}} needs another name")
    for name in sorted(used - set(space)):
        raise ConfigError(f"FP1477 {path}: [search] does not define {{{name}}}; {suggest_legal(name, space)}")


def _check_hybrid(
    path: Path, base: Mapping[str, Any], space: Mapping[str, Searched], hybrid: HybridSpace | None
) -> None:
    """Check that the file searches something, and that only [hybrid] searches PEFT methods if it is given."""
    if hybrid is None:
        if not space:
            raise ConfigError(
                f"FP1471 {path} searches no setting: add a setting with its range to [search], or PEFT "
                "methods to [hybrid]"
            )
        return
    for member in hybrid.members:
        if member.name in space and not member.lists:
            raise ConfigError(
                f"FP1478 {path}: [hybrid] uses the name {member.name} to switch that method on, so "
                f"{{{member.name}}} needs another name"
            )
    if "peft" in base or "peft" in space:
        raise ConfigError(f"FP1479 {path}: [hybrid] searches peft; leave it out of [base] and [search]")

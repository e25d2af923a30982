"""AutoPEFT's search space (Zhou et al., arXiv 2301.12132): PEFT methods, their blocks and their sizes.

    [hybrid]
    blocks = "shared"                 # one set of blocks for all methods; "each": one set per method
    [hybrid.lora]                     # a method, with fixed settings (alpha = 16) ...
    rank = [1, 2, 4, 8]               # ... and lists to choose from; the first list also offers "off"
    [hybrid.bitfit]                   # without a list: on or off

In the paper, a hybrid is a vector: a size or off for each type of module, and on or off for each block. This search
does the same with the composable methods of `fedpeft.peft.methods`, joined by `+`. A vector with all methods or all
blocks off trains nothing and does not become a trial. There are two deviations. The user names the methods. And TPE
under a budget (`fedpeft.tune.sizes`) with successive halving replaces the paper's Bayesian optimization of score and
size.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from fedpeft.errors import ConfigError
from fedpeft.parts import suggest_legal
from fedpeft.parts.families import PEFT_METHODS
from fedpeft.parts.spec import Spec
from fedpeft.tune.ranges import Choices, Draw, parse_choices

OFF = "off"

SHARED, EACH = "shared", "each"

BLOCKS = "layers"
"""The setting of methods that selects their blocks."""

PRESENT = Choices((True, False))


@dataclass(frozen=True)
class HybridMember:
    """A method that a hybrid may contain.

    Attributes:
        name: name of the method's part.
        fixed: settings with one value.
        lists: settings to choose, with their values; the first one sets the size of the method.
    """

    name: str
    fixed: Mapping[str, Any]
    lists: Mapping[str, Choices]

    def draw_settings(self, draw: Draw) -> dict[str, Any] | None:
        """Draw the method's settings; None if the method is off."""
        if not self.lists:
            return dict(self.fixed) if draw(self.name, Choices(("on", OFF))) != OFF else None
        drawn = dict(self.fixed)
        for number, (setting, values) in enumerate(self.lists.items()):
            offered = Choices((*values.values, OFF)) if number == 0 else values
            drawn[setting] = draw(f"{self.name}.{setting}", offered)
        return None if OFF in (drawn[setting] for setting in list(self.lists)[:1]) else drawn

    def text(self, settings: Mapping[str, Any], blocks: tuple[int, ...]) -> str:
        """Return the text of the method with these settings and blocks."""
        return str(Spec(self.name, {**settings, BLOCKS: blocks}))

    def iterate_smallest(self) -> Iterator[dict[str, Any]]:
        """Yield the settings that may give the smallest size.

        They combine each value of the first list with the first value of the other lists.
        """
        first = {setting: values.values[0] for setting, values in self.lists.items()}
        size = next(iter(self.lists), None)
        for value in self.lists[size].values if size else [None]:
            yield {**self.fixed, **first, **({size: value} if size else {})}

    def iterate_values(self) -> Iterator[dict[str, Any]]:
        """Yield settings for each value of each list, with the first value of the other lists."""
        smallest = next(self.iterate_smallest())
        for setting, values in self.lists.items():
            yield from ({**smallest, setting: value} for value in values.values)


@dataclass(frozen=True)
class HybridSpace:
    """All hybrids of `members`."""

    members: tuple[HybridMember, ...]
    blocks: str = SHARED

    def text(self, draw: Draw, depth: int) -> str | None:
        """Draw a hybrid for a model of `depth` blocks and return its text; None if it would train nothing."""
        shared = self._draw_blocks(draw, "", depth) if self.blocks == SHARED else None
        texts = []
        for member in self.members:
            settings = member.draw_settings(draw)
            blocks = self._draw_blocks(draw, f"{member.name}.", depth) if shared is None else shared
            if settings is not None and blocks:
                texts.append(member.text(settings, blocks))
        return " + ".join(texts) or None

    def _draw_blocks(self, draw: Draw, before: str, depth: int) -> tuple[int, ...]:
        return tuple(i for i in range(depth) if draw(f"{before}block.{i}", PRESENT))

    def iterate_smallest(self, depth: int) -> Iterator[str]:
        """Yield the texts that include the smallest hybrid: one method in the uppermost block."""
        for member in self.members:
            for settings in member.iterate_smallest():
                yield member.text(settings, (depth - 1,))

    def describe(self) -> dict[str, str]:
        """Return a readable description of the searched values, by name."""
        described: dict[str, str] = {}
        for member in self.members:
            lists = {f"{member.name}.{setting}": str(values) for setting, values in member.lists.items()}
            first = next(iter(lists), member.name)
            described |= lists | {first: f"{lists.get(first, 'on')} | {OFF}"}
        whose = "of all methods" if self.blocks == SHARED else "of each method"
        return described | {"blocks": f"any, {whose}"}


def parse_hybrid_space(where: str, given: Any) -> HybridSpace:
    """Parse the table [hybrid] of a search file; `where` is the file.

    Raises:
        ConfigError: there is no method; a method is unknown, can't be joined or has no blocks; a setting is illegal.
    """
    if not isinstance(given, dict):
        raise ConfigError(f"FP1444 {where}: hybrid must be a table ([hybrid]), got {given!r:.100}")
    content = dict(given)
    blocks = content.pop("blocks", SHARED)
    if blocks not in (SHARED, EACH):
        raise ConfigError(f"FP1445 {where}: blocks of [hybrid] must be {SHARED!r} or {EACH!r}, got {blocks!r}")
    members = tuple(_parse_member(where, name, settings) for name, settings in content.items())
    if not members:
        raise ConfigError(f"FP1446 {where}: [hybrid] names no PEFT method; write [hybrid.lora] with rank = [2, 4, 8]")
    names = [member.name for member in members]
    if len(set(names)) < len(names):
        raise ConfigError(f"FP1447 {where}: [hybrid] names a PEFT method twice: {', '.join(names)}")
    space = HybridSpace(members, blocks)
    try:
        PEFT_METHODS.build(" + ".join(member.text(next(member.iterate_smallest()), (0,)) for member in members))
    except ConfigError as error:
        raise ConfigError(f"FP1448 {where}: [hybrid] {error}") from error
    return space


def _parse_member(where: str, given: str, settings: Any) -> HybridMember:
    here = f"{where}: [hybrid.{given}]"
    if not isinstance(settings, dict):
        raise ConfigError(
            f"FP1449 {where}: {given} of [hybrid] must be a method with a table of settings, got {settings!r}"
        )
    name = PEFT_METHODS.complete_name(given)
    cls = PEFT_METHODS.part(name)
    if not cls.composes or BLOCKS not in inspect.signature(cls).parameters:
        able = [n for n in PEFT_METHODS.own_names if PEFT_METHODS.part(n).composes]
        raise ConfigError(f"FP1450 {here}: {name} can't be one of several methods; {suggest_legal(name, able)}")
    if BLOCKS in settings:
        raise ConfigError(f"FP1451 {here}: the search chooses {BLOCKS}; leave it out")
    lists = {key: parse_choices(f"{here} {key}", v) for key, v in settings.items() if isinstance(v, list)}
    for key, values in lists.items():
        if OFF in values.values:
            raise ConfigError(f"FP1452 {here} {key} contains {OFF!r}, which the first list offers anyway; leave it out")
    member = HybridMember(name, {key: v for key, v in settings.items() if key not in lists}, lists)
    for chosen in member.iterate_values():
        try:
            PEFT_METHODS.build(member.text(chosen, (0,)))
        except ConfigError as error:
            raise ConfigError(f"FP1453 {here} {error}") from error
    return member

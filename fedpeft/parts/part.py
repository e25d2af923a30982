"""Parts and their text form: `name(key=value, ...)`.

Everything pluggable (strategies, codecs, PEFT methods, datasets, partitions, ...) is a *part*: a frozen dataclass
whose fields are its settings, in a file of its own that ends with `part = TheClass`. The file's name is the part's
name. A `Family` is a folder of such files; adding a file adds a part, nothing else is edited. Parts of users' own
files and packages join it under the name that stands there (`fedpeft.parts.plugins`).

Settings are declared with `setting(...)`, which keeps meaning and legal range beside the default; `Family.build`
parses a text, checks names, types and ranges, and reports mistakes in one sentence that names the legal choices.
"""

from __future__ import annotations

import copyreg
import dataclasses
import difflib
import importlib
import inspect
import itertools
import math
import pkgutil
import types
import typing
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import cache, cached_property, partial
from typing import Any, Generic, TypeVar

from fedpeft.errors import ConfigError
from fedpeft.parts import plugins
from fedpeft.parts.declarations import UnreadableError, read
from fedpeft.parts.plugin_promises import hold
from fedpeft.parts.spec import Spec, format_value, make_importable, parse_spec, restore_name

T = TypeVar("T")


@dataclass(frozen=True)
class Bounds:
    """Legal values of a numeric setting: `low`/`high` inclusive, `above`/`below` exclusive; `choices` for any type."""

    low: float | None = None
    high: float | None = None
    above: float | None = None
    below: float | None = None
    choices: tuple[Any, ...] | None = None

    def is_legal(self, value: Any) -> bool:
        """Return whether `value` is legal; None always is, because its type has been checked before."""
        if value is None:
            return True
        if self.choices is not None:
            return value in self.choices
        if not isinstance(value, (int, float)):
            return True
        return (
            (self.low is None or value >= self.low)
            and (self.high is None or value <= self.high)
            and (self.above is None or value > self.above)
            and (self.below is None or value < self.below)
        )

    def __str__(self) -> str:
        """Return the legal values in words."""
        if self.choices is not None:
            return "one of " + ", ".join(repr(c) for c in self.choices)
        words = [
            f"{word} {limit}" if isinstance(limit, int) else f"{word} {limit:g}"
            for word, limit in (
                ("at least", self.low),
                ("above", self.above),
                ("at most", self.high),
                ("below", self.below),
            )
            if limit is not None
        ]
        return " and ".join(words) or "any value"


def setting(  # noqa: PLR0913
    default: Any,
    meaning: str,
    *,
    low: float | None = None,
    high: float | None = None,
    above: float | None = None,
    below: float | None = None,
    choices: tuple[Any, ...] | None = None,
    path: bool = False,
    nested: Family[Any] | None = None,
    check: Callable[[str], object] | None = None,
) -> Any:
    """Return the dataclass field of a user's setting: its default, meaning (with unit) and legal range.

    Args:
        default: `dataclasses.MISSING` for a setting that must be given.
        meaning: the meaning, with the unit.
        low: the smallest legal number.
        high: the largest legal number.
        above: all legal numbers are larger.
        below: all legal numbers are smaller.
        choices: the legal values.
        path: whether the setting may name a file or folder.
        nested: the family of the part that the text, or each text of a tuple, describes.
        check: raises a ConfigError for an illegal text; it does not import torch.
    """
    metadata = {
        "help": meaning,
        "bounds": Bounds(low, high, above, below, choices),
        "path": path,
        "nested": nested,
        "check": check or (nested and nested.check),
    }
    if default is dataclasses.MISSING:
        return dataclasses.field(metadata=metadata)
    return dataclasses.field(default=default, metadata=metadata)


def name_of(part: type) -> str:
    """Return the name of a part's class: the name of its file, or the one that a plugin gives it."""
    return plugins.name_of(part) or restore_name(part.__module__.rpartition(".")[2])


def format_part(part: Any) -> str:
    """Return the text of a part: `name(key=value, ...)` with the settings that differ from their defaults."""
    nested = {f.name: part_text for f in dataclasses.fields(part) if (part_text := _format_nested(part, f))}
    changed = {
        f.name: nested.get(f.name, getattr(part, f.name))
        for f in dataclasses.fields(part)
        if f.init and (f.default is dataclasses.MISSING or getattr(part, f.name) != f.default)
    }
    name = name_of(type(part))
    if not changed:
        return name
    return name + "(" + ", ".join(f"{key}={format_value(value)}" for key, value in changed.items()) + ")"


def list_nested_parts(part: Any) -> list[tuple[Family[Any], Any]]:
    """Return the parts that stand as objects in settings of a part, each with its family."""
    found: list[tuple[Family[Any], Any]] = []
    for field in dataclasses.fields(part):
        family, value = field.metadata.get("nested"), getattr(part, field.name)
        for item in value if isinstance(value, list | tuple) else [value]:
            if family is not None and dataclasses.is_dataclass(item):
                found.append((family, item))
    return found


def _format_nested(part: Any, field: dataclasses.Field[Any]) -> Any:
    """Return the texts of a setting whose parts are objects; None: it has none."""
    value = getattr(part, field.name)
    if field.metadata.get("nested") is None:
        return None
    if isinstance(value, list | tuple) and any(map(dataclasses.is_dataclass, value)):
        return tuple(format_part(item) if dataclasses.is_dataclass(item) else item for item in value)
    return format_part(value) if dataclasses.is_dataclass(value) else None


def list_overrides(part: object, base: type) -> list[str]:
    """Return the methods of `base` that the class of a part overrides, in the order of `base`."""
    methods = [name for name, value in vars(base).items() if not name.startswith("_") and callable(getattr(base, name))]
    return [m for m in methods if inspect.getattr_static(type(part), m) is not inspect.getattr_static(base, m)]


def suggest_legal(word: str, legal: Iterable[str]) -> str:
    """Return a clause for an error message: the closest legal word, if any, and all legal words."""
    names = sorted(legal)
    close = difflib.get_close_matches(word, names, n=1) or difflib.get_close_matches(word.lower(), names, n=1)
    hint = f"did you mean {close[0]!r}? " if close else ""
    return f"{hint}legal: {', '.join(names)}" if names else "none is known: name the file that has it with --plugin"


@cache
def _get_hints(cls: type) -> dict[str, Any]:
    """Return the types of a class's fields, cached because a study builds its parts often."""
    return typing.get_type_hints(cls)


def check_settings(owner: str, cls: type, given: Mapping[str, Any]) -> dict[str, Any]:
    """Check `given` against the fields of the dataclass `cls`: names, types and bounds; return the values converted.

    Raises:
        ConfigError: a name is unknown or missing, a value has the wrong type or lies out of range.
    """
    fields = {f.name: f for f in dataclasses.fields(cls) if f.init}
    hints = _get_hints(cls)
    elsewhere: Mapping[str, str] = getattr(cls, "called_elsewhere", {})
    refused: Mapping[str, str] = getattr(cls, "settled_elsewhere", {})
    for name in itertools.filterfalse(fields.__contains__, given):
        if elsewhere.get(name) in fields:
            raise ConfigError(f"FP1223 {owner} has no setting {name!r}; fedpeft calls it {elsewhere[name]}")
        if name in refused:
            raise ConfigError(f"FP1224 {owner} has no setting {name!r}: {refused[name]}")
        raise ConfigError(
            f"FP1225 {owner} has no setting {name!r}; {suggest_legal(name, fields) if fields else 'it takes none'}"
        )
    values: dict[str, Any] = {}
    for name, field in fields.items():
        if name not in given:
            if field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING:
                meaning = field.metadata.get("help")
                raise ConfigError(f"FP1226 {owner} needs the setting {name}" + (f" ({meaning})" if meaning else ""))
            continue
        values[name] = convert(f"{owner}: {name}", given[name], hints[name], field.metadata.get("bounds", Bounds()))
        if check := field.metadata.get("check"):
            texts = values[name] if isinstance(values[name], tuple) else (values[name],)
            for text in filter(None, texts):
                check(text)
    return values


class TypeMismatchError(TypeError):
    """A setting's value is of another type than the annotated one."""


def convert(label: str, value: Any, annotation: Any, bounds: Bounds = Bounds()) -> Any:
    """`value` as the annotated type (int, float, bool, str, tuple, or a union), within `bounds`, or ConfigError."""
    is_union = typing.get_origin(annotation) in (typing.Union, types.UnionType)
    options: Sequence[Any] = typing.get_args(annotation) if is_union else (annotation,)
    for option in options:
        try:
            result = cast_value(value, option)
        except TypeMismatchError:
            continue
        except OverflowError:
            break
        except TypeError:  # isinstance can't check a Literal, for example
            raise ConfigError(
                f"FP1990 {label} is annotated {option!s:.80}, which can't be checked; annotate int, float, bool, str, "
                "a tuple or a union of these, and give `choices` for words"
            ) from None
        if isinstance(result, float) and not math.isfinite(result):
            raise ConfigError(f"FP1519 {label} must be a finite number, got {value!r}")
        if (typing.get_origin(option) or option) is not tuple and not bounds.is_legal(result):
            raise ConfigError(f"FP1227 {label} must be {bounds}, got {result!r}")
        return result
    if bounds.choices is not None:
        raise ConfigError(f"FP1227 {label} must be {bounds}, got {value!r}")
    legal = " or ".join("none" if o is type(None) else (typing.get_origin(o) or o).__name__ for o in options)
    raise ConfigError(f"FP1227 {label} must be {legal}, got {value!r}")


def cast_value(value: Any, option: Any) -> Any:
    """Return a setting's value as one type: whole numbers become floats, and lists tuples.

    Raises:
        TypeMismatchError: the value is of another type; a bool is not a number.
        OverflowError: a whole number of more than 308 digits can't become a float.
    """
    kind = typing.get_origin(option) or option
    if isinstance(value, bool) and kind is not bool:
        raise TypeMismatchError
    if kind is float and isinstance(value, int | float):
        return float(value)
    if kind is tuple and isinstance(value, list | tuple):
        value = tuple(value)
    if not isinstance(value, kind):
        raise TypeMismatchError
    element = next(iter(typing.get_args(option)), object)
    if kind is tuple and isinstance(element, type) and not all(isinstance(item, element) for item in value):
        raise TypeMismatchError
    return value


def import_class(place: str) -> type:
    """Import the class at `place`, "module.Class"."""
    module, _, name = place.rpartition(".")
    found: type = getattr(importlib.import_module(module), name)
    return found


def is_protocol(cls: Any) -> bool:
    """Return whether a class is a protocol."""
    return bool(getattr(cls, "_is_protocol", False))


class Family(Generic[T]):
    """A folder of parts, with the plugins' parts of the same kind.

    Args:
        package: import name of the folder, e.g. "fedpeft.strategies".
        noun: what one part is called in messages, e.g. "strategy".
        group: the family's name in plugins; by default the name of the folder.
        reserved: words with another meaning in the place of a part's name.
        elsewhere: other projects' names, in small letters, for something with another place here, each with a clause.
        kind: import path of the base class or protocol of the parts, such as
            "fedpeft.aggregation.strategy.Strategy". It is imported when it is needed.
        abilities: module of the protocols that some parts also follow, such as "fedpeft.aggregation.abilities".
    """

    def __init__(
        self,
        package: str,
        noun: str,
        group: str = "",
        reserved: Iterable[str] = (),
        elsewhere: Mapping[str, str] | None = None,
        kind: str = "builtins.object",
        abilities: str = "",
    ) -> None:
        """Register the family's base class for plugins; nothing is imported."""
        self.package = package
        self.noun = noun
        self.group = group or package.rpartition(".")[2]
        self.reserved = frozenset(reserved)
        self.elsewhere = elsewhere or {}
        self._kind, self._abilities = kind, abilities
        plugins.register_base(kind, self.group)

    @cached_property
    def kind(self) -> type:
        """The class that parts are subclasses of, or the protocol that they follow."""
        return import_class(self._kind)

    @cached_property
    def abilities(self) -> tuple[type, ...]:
        """Protocols that some parts also follow."""
        members = vars(importlib.import_module(self._abilities)).values() if self._abilities else ()
        return tuple(cls for cls in members if getattr(cls, "__module__", "") == self._abilities and is_protocol(cls))

    @cached_property
    def own_names(self) -> tuple[str, ...]:
        """The names of the folder's parts, sorted."""
        folder = importlib.import_module(self.package)
        modules = (m.name for m in pkgutil.iter_modules(folder.__path__))
        return tuple(sorted(restore_name(m) for m in modules))

    def find_outside_parts(self) -> dict[str, plugins.Plugin]:
        """Return the plugins' parts by name, each with its plugin.

        Raises:
            ConfigError: a plugin can't be loaded, or names a part as something else is named.
        """
        found = plugins.find_outside_parts(self.group)
        for name, plugin in found.items():
            if self.find_hidden(name):
                raise ConfigError(
                    f"FP1228 {self.noun} {name!r} of {plugin} has a name that fedpeft's own {self.find_hidden(name)!r} "
                    "needs; give it another"
                )
        return found

    def find_hidden(self, name: str) -> str:
        """Return the built-in part or reserved word that a part called `name` would hide; empty: none."""
        return name if name in self.own_names or name in self.reserved else ""

    @property
    def names(self) -> tuple[str, ...]:
        """All parts' names, sorted."""
        return tuple(sorted((*self.own_names, *self.find_outside_parts())))

    def part(self, name: str) -> type[T]:
        """Return the class of the part called `name`; a ConfigError names the closest legal one."""
        self.check_name(name)
        if name in self.own_names:
            module = make_importable(name)
            part: type[T] = importlib.import_module(f"{self.package}.{module}").part
            return part
        plugin = self.find_outside_parts()[name]
        return self._check_class(plugins.load_part(self.group, name, plugin), name, plugin)

    def check_name(self, name: str) -> None:
        """Refuse a name that no part has; no part is imported.

        Raises:
            ConfigError: names the nearest legal one.
        """
        if name in self.own_names or name in self.find_outside_parts():
            return
        if lost := plugins.explain_loss(self.group, name):
            raise ConfigError(f"FP1229 the {self.noun} {name!r} is {lost}")
        if name.lower() in self.elsewhere:
            raise ConfigError(f"FP1230 unknown {self.noun} {name!r}: {self.elsewhere[name.lower()]}")
        where = plugins.explain_absence(self.group, name)
        raise ConfigError(f"FP1231 unknown {self.noun} {name!r}; {suggest_legal(name, self.names)}{where}")

    def _check_class(self, cls: type, name: str, plugin: plugins.Plugin) -> type[T]:
        """Return a plugin's class if it can be a part of this family, else raise ConfigError."""
        kind = self.kind
        if why := self._explain_misfit(cls):
            raise ConfigError(
                f"FP1232 {self.noun} {name!r} of {plugin} can't be used: its class {cls.__qualname__} {why}; move it "
                "to the group of its base class"
            )
        hold(cls, kind, f"the {self.noun} {name} of {plugin}", self.abilities)
        copyreg.pickle(cls, partial(_pickle_part, self.group))
        return cls

    def load_part(self, name: str) -> type[T]:
        """Return the class of a part whose name a peer has chosen.

        Unlike `part`, this imports no installed package, unless a user has named it here.

        Raises:
            ConfigError: the part is unknown, or not in use here.
        """
        outside = self.find_outside_parts().get(name)
        if outside and outside not in plugins.list_named() and not plugins.is_loaded(self.group, name, outside):
            raise ConfigError(
                f"FP1233 the {self.noun} {name!r} belongs to the plugin {outside}, which is not loaded here; name "
                "it with --plugin"
            )
        return self.part(name)

    def parse_text(self, text: str) -> Spec:
        """Return the parsed text of a part that may not exist.

        Raises:
            ConfigError: it has another form.
        """
        return parse_spec(text)

    def replace_paths(self, text: str, change: Callable[[str], str]) -> str:
        """Return the text of a part with `change` applied to each setting that names a file or folder.

        Raises:
            ConfigError: unknown part.
        """
        spec = self.parse_text(text)
        cls: Any = self.part(spec.name)
        paths = {field.name for field in dataclasses.fields(cls) if field.metadata.get("path")}
        nested = {field.name: field.metadata.get("nested") for field in dataclasses.fields(cls)}

        def changed_setting(name: str, value: Any) -> Any:
            if isinstance(value, tuple | list):
                return tuple(changed_setting(name, item) for item in value)
            if isinstance(value, str) and (family := nested.get(name)):
                return family.replace_paths(value, change)
            return change(value) if isinstance(value, str) and name in paths else value

        settings = {name: changed_setting(name, value) for name, value in spec.settings.items()}
        argument, takes = spec.argument, getattr(cls, "argument", "")
        if argument is not None and takes in paths:
            argument = change(argument)
        values = tuple(changed_setting(takes, value) for value in spec.values)
        changed = Spec(spec.name, settings, argument, values)
        return text if changed == spec else str(changed)

    def build(self, text: str | Spec | T) -> T:
        """Return the part that `text` describes, its settings checked; a part is returned as it is.

        Raises:
            ConfigError: unknown part or setting, wrong type, value out of range.
        """
        if not isinstance(text, str | Spec):
            return self._check_object(text)
        spec = self.parse_text(text) if isinstance(text, str) else text
        self._refuse_class(spec)
        cls = self.part(spec.name)
        return cls(**self._parse_settings(spec, cls))

    def check(self, text: str) -> None:
        """Refuse an unknown part, and settings that are not legal, as far as the source of the part tells them.

        No part of our own is imported (`fedpeft.parts.declarations`); the settings of others are left to `build`.

        Raises:
            ConfigError: as `build`.
        """
        spec = self.parse_text(text)
        self._refuse_class(spec)
        self.check_name(spec.name)
        if spec.name not in self.own_names:
            return
        with suppress(UnreadableError):
            self._parse_settings(spec, read(f"{self.package}.{make_importable(spec.name)}", "part"))

    def _explain_misfit(self, cls: type) -> str:
        """Return why a class can't be a part of this family; empty: it can."""
        kind = self.kind
        if not is_protocol(kind):
            return "" if issubclass(cls, kind) else f"is not a subclass of {kind.__module__}.{kind.__qualname__}"
        members = [*inspect.get_annotations(kind), *vars(kind)]
        missing = [member for member in members if not member.startswith("_") and not hasattr(cls, member)]
        return f"has no {', no '.join(missing)}" if missing else ""

    def can_hold(self, part: object) -> bool:
        """Return whether an object is a part of this family."""
        return dataclasses.is_dataclass(part) and not isinstance(part, type) and not self._explain_misfit(type(part))

    def _check_object(self, part: T) -> T:
        """Return an object if it is a part of this family.

        Raises:
            ConfigError: it is none.
        """
        if not self.can_hold(part):
            raise ConfigError(
                f"FP1520 a {self.noun} must be a text, such as {next(iter(self.names), 'name')!r}, or an object of a "
                f"part's class, got {part!r:.80}"
            )
        return part

    def _refuse_class(self, spec: Spec) -> None:
        """Refuse the text `module:Class`.

        Raises:
            ConfigError: says how a class becomes a part.
        """
        named = spec.argument or ""
        if named.isidentifier() and named[0].isupper() and spec.name not in self.names:
            raise ConfigError(
                f"FP1234 unknown {self.noun} {spec.name!r}: a class becomes a part by a file that names it; give "
                f"--plugin my_parts.py with parts = {{{self.group!r}: {{'my_part': {spec.argument}}}}} "
                "(docs/own-parts.md)"
            )

    def _parse_settings(self, spec: Spec, cls: type) -> dict[str, Any]:
        """Return the settings that a text gives to a part of the class `cls`, checked.

        Raises:
            ConfigError: unknown setting, wrong type, value out of range.
        """
        given = dict(spec.settings)
        takes: str | None = getattr(cls, "argument", None)
        if spec.values:
            given |= _find_keyless_setting(spec, cls, takes)
        if spec.argument is not None:
            if takes is None:
                raise ConfigError(
                    f"FP1235 {self.noun} {spec.name} takes no ':{spec.argument}'; write {spec.name}(key=value)"
                )
            given[takes] = spec.argument
        return check_settings(f"{self.noun} {spec.name}", cls, given)


def _pickle_part(group: str, part: Any) -> Any:
    """Reduce a plugin's part to its name and settings, because other processes can't import its module."""
    if plugins.find_origin(type(part)) is None:  # it was given as an object, and that is over
        return part.__reduce_ex__(4)
    settings = {field.name: getattr(part, field.name) for field in dataclasses.fields(part) if field.init}
    return _unpickle_part, (group, name_of(type(part)), settings)


def _unpickle_part(group: str, name: str, settings: Mapping[str, Any]) -> Any:
    """Return the part in a process that uses the same plugin."""
    return plugins.load_part(group, name, plugins.find_outside_parts(group)[name])(**settings)


def _find_keyless_setting(spec: Spec, cls: type, takes: str | None) -> dict[str, Any]:
    """Return the setting that a part takes without a key: one value, or all values of a tuple.

    Raises:
        ConfigError: the part takes none, or fewer, or it is given with its key as well.
    """
    if takes is None:
        raise ConfigError(
            f"FP1236 {str(spec)!r} gives {format_value(spec.values[0])} without a name; write each setting as "
            f"key=value: fedpeft describe {spec.name} lists them"
        )
    annotation = _get_hints(cls)[takes]
    several = (typing.get_origin(annotation) or annotation) is tuple
    if takes in spec.settings or (len(spec.values) > 1 and not several):
        raise ConfigError(f"FP1237 {str(spec)!r} gives too many values; {spec.name} takes {takes} once")
    return {takes: spec.values if several else spec.values[0]}

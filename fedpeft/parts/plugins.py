"""Parts from outside: a user's own file or folder, or an installed package.

A file with one part ends as a part of this package does. The part is called as the file, and its group follows from
its base class. So the same file works as a plugin and inside the package:

    part = HalfMean

A file with several parts, or a folder with an `__init__.py`, names them group by group:

    parts = {"strategies": {"half_mean": HalfMean}, "datasets": {"my_rows": MyRows}}

It is named on the command line (`--plugin my_rules.py`), in a configuration (`plugin = "my_rules.py"`, beside that
file), or in the environment variable FEDPEFT_PLUGINS (several: separated as in PATH). An installed package declares
entry points instead, one per part, whose group is `fedpeft.` and the group's name, and needs not be named:

    [project.entry-points."fedpeft.strategies"]
    half_mean = "my_rules:HalfMean"

A plugin is code that runs with the user's rights. So it is an option of a command and never a setting of a run. A
server can't name a plugin. A client uses an installed package's parts only if its own command names the package.
"""

from __future__ import annotations

import functools
import importlib.metadata
import os
import sys
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import cloudpickle

from fedpeft.errors import ConfigError
from fedpeft.parts.plugin_files import (
    MODULE,
    check,
    compute_digest,
    describe_error,
    find_packages,
    import_file,
    shorten_version,
)

GROUPS: Final = (
    "amounts", "attacks", "codecs", "corrections", "datasets", "grids", "heads", "hooks", "measurements", "mechanisms",
    "models", "optimizers", "partitions", "peft_methods", "precision_rules", "safeguards", "samplers", "server_noises",
    "server_optimizers", "strategies", "sums", "tasks",
)  # fmt: skip
"""The groups of plugins, one for each family of parts that plugins may add to."""

_group_of_base: dict[str, str] = {}
"""The group of each base class, by its import path, filled by `register_base`."""

FORMAT: Final = 1
"""Number of the frozen format of plugins. A file may state it as `plugin_format = 1` (docs/api.md)."""

VARIABLE: Final = "FEDPEFT_PLUGINS"
IN_PYTHON: Final = "objects in Python"
"""The source of parts that were handed over as objects (`fedpeft.run_simulation(strategy=MyRule())`)."""


@dataclass(frozen=True)
class Plugin:
    """A source of parts, and its parts.

    Attributes:
        source: absolute path of a file or folder, the name of an installed distribution, or `IN_PYTHON`.
        version: SHA-256 of the file, or of the folder's Python files; of a distribution its version, and behind it the
            SHA-256 of its modules where they can change under one version (`pip install -e`).
        parts: by group and name, the class, or the entry point that it is loaded from once it is wanted.
    """

    source: str
    version: str
    parts: Mapping[str, Mapping[str, Any]] = field(compare=False)

    def __str__(self) -> str:
        """Return the path, or the name and version of a distribution."""
        return (
            self.source if Path(self.source).is_absolute() else f"{self.source} {shorten_version(self.version)}".strip()
        )

    @property
    def names(self) -> list[str]:
        """All parts, as `group.name`."""
        return sorted(f"{group}.{name}" for group, named in self.parts.items() for name in named)

    @property
    def record(self) -> dict[str, Any]:
        """What a run's config.toml says of it; `use` takes it back."""
        kind = "sha256" if Path(self.source).is_absolute() else "version"
        return {"source": self.source, kind: self.version, "parts": self.names}

    def is_as(self, version: str) -> bool:
        """Return whether this is what a record of it says; former records have of a distribution its version alone."""
        return version in (self.version, self.version.partition(" ")[0])

    @property
    def recipe(self) -> Recipe:
        """How another process gets the same parts."""
        if self.source != IN_PYTHON:
            return Recipe(self.record)
        needed = {group: named for group, named in self.parts.items() if group != "datasets"}  # of the server alone
        try:
            return Recipe(self.record, cloudpickle.dumps(needed))
        except Exception as error:  # whatever a class's members raise
            raise ConfigError(
                f"FP1260 {', '.join(self.names)} can't be sent to worker processes ({type(error).__name__}: "
                f"{error}); use workers=1, or put it into a file and name that as plugin"
            ) from error


@dataclass(frozen=True)
class Recipe:
    """A plugin as plain data; `content` is the pickled parts that were handed over as objects."""

    record: Mapping[str, Any]
    content: bytes = b""


@dataclass
class _PluginState:
    """What this process knows of.

    Attributes:
        named: plugins that a command, a file or the environment has named, in that order.
        all_installed: whether parts of installed packages are there without being named.
        begun: whether the environment has been read.
        of_records: those of `named` that only a run's record has named.
        lost: parts, as `group.name`, of plugins that a finished run has recorded and that can't be loaded, and why.
        notes: what is to be said of plugins that are not as finished runs have recorded them.
    """

    named: list[Plugin] = field(default_factory=list)
    all_installed: bool = True
    begun: bool = False
    of_records: list[Plugin] = field(default_factory=list)
    lost: dict[str, str] = field(default_factory=dict)
    notes: dict[str, None] = field(default_factory=dict)


_state = _PluginState()


def register_base(base: str, group: str) -> None:
    """Record that subclasses of the class `base`, "module.Class", are parts of `group`."""
    if group in GROUPS and base != "builtins.object":
        _group_of_base[base] = group


def list_active() -> tuple[Plugin, ...]:
    """All plugins whose parts can be used here.

    Raises:
        ConfigError: the environment names one that can't be loaded.
    """
    if not _state.begun:
        _state.begun = True
        use(filter(None, os.environ.get(VARIABLE, "").split(os.pathsep)))
    if not _state.all_installed:
        return tuple(_state.named)
    return tuple(dict.fromkeys([*_state.named, *list_installed()]))


def list_named() -> tuple[Plugin, ...]:
    """Those of them that a command, a file or the environment has named."""
    list_active()
    return tuple(_state.named)


def use(
    plugins: Iterable[str | Mapping[str, Any] | Recipe],
    beside: Path | None = None,
    goes_on: bool = True,
    run: Path | None = None,
) -> None:
    """Make plugins' parts available in this process, by what a user wrote or by what a run has recorded.

    Args:
        plugins: paths and distributions' names; or records, which also say what it was (`Plugin.record`).
        beside: the folder that relative paths begin at; None: the working directory.
        goes_on: whether what has recorded them goes on, which takes the same plugins. Otherwise, a file that has
            changed is not imported unless the user names it; `take_notes` tells that, and a part that is missing then
            fails when it is asked for.
        run: folder of the run that has recorded them; code that lies in it came with it, and is not run.

    Raises:
        ConfigError: there is no such plugin, it can't be loaded, or (`goes_on`) it is not what was recorded.
    """
    for given in plugins:
        if run is not None and isinstance(given, str):
            raise ConfigError(
                f"FP1509 {run}/config.toml names the plugin {given!r:.200}, and a run records its plugins in "
                "tables [[plugin]]; remove that line, and name the file with --plugin if you trust it"
            )
        recipe = Recipe(given) if isinstance(given, Mapping) else given
        plugin = _find_recorded(recipe, goes_on, run) if isinstance(recipe, Recipe) else find_plugin(recipe, beside)
        if plugin is not None and plugin not in _state.named:
            _state.named.append(plugin)
            if isinstance(recipe, Recipe):
                _state.of_records.append(plugin)


def take_notes() -> tuple[str, ...]:
    """Return and clear the notes about plugins that differ from the record of finished runs."""
    told = tuple(_state.notes)
    _state.notes.clear()
    return told


def ignore_installed() -> None:
    """Leave out installed packages that no user has named, so that a peer can't make this process import one."""
    _state.all_installed = False


@contextmanager
def use_parts(parts: Mapping[str, Mapping[str, type]]) -> Iterator[None]:
    """Make these classes parts within the context, and restore the previous state afterwards."""
    list_active()  # the environment has been read before what is there is noted
    before, before_names, installed = list(_state.named), dict(_names), _state.all_installed
    of_records, lost = list(_state.of_records), dict(_state.lost)
    for group, named in parts.items():
        for name, cls in named.items():
            check(cls, f"{group}.{name}", IN_PYTHON)
    try:
        if parts:
            _state.named.append(Plugin(IN_PYTHON, "", _register_names(parts)))
        yield
    finally:
        _state.named[:], _state.all_installed = before, installed
        _state.of_records, _state.lost = of_records, lost
        _names.clear()
        _names.update(before_names)


def find_outside_parts(group: str) -> dict[str, Plugin]:
    """Return the parts of a group by name, each with its plugin.

    Raises:
        ConfigError: two plugins have a part of the same name, or one can't be loaded.
    """
    parts: dict[str, Plugin] = {}
    for plugin in list_active():
        for name in plugin.parts.get(group, ()):
            if name in parts:
                raise ConfigError(
                    f"FP1261 {group} {name!r} is in {parts[name]} and in {plugin}; leave one of them out, or give it "
                    "another name"
                )
            parts[name] = plugin
    return parts


def load_part(group: str, name: str, plugin: Plugin) -> type:
    """Return the class of a part.

    Raises:
        ConfigError: an entry point leads nowhere, or to something else.
    """
    entry = plugin.parts[group][name]
    if not isinstance(entry, importlib.metadata.EntryPoint):
        cls: type = entry
        return cls
    try:
        loaded: type = entry.load()
    except (Exception, SystemExit) as error:  # whatever a stranger's module raises
        raise ConfigError(f"FP1262 {group} {name} of {plugin} can't be loaded: {describe_error(error)}") from error
    check(loaded, f"{group}.{name}", str(plugin))
    _register_names({group: {name: loaded}})
    _loaded.add(entry)
    return loaded


def explain_absence(group: str, name: str) -> str:
    """Return a clause about why a known place has no such part; empty: no place is known."""
    for plugin in list_installed():
        if name in plugin.parts.get(group, ()):
            return f"; the installed package {plugin.source} has one: add --plugin {plugin.source}"
    if any(f"{group}.{name}" in plugin.version.split(", ") for plugin in list_named() if plugin.source == IN_PYTHON):
        return (
            "; the run was given it as an object in Python: give it again to fedpeft.open_run, or to "
            "fedpeft.run_simulation, or put its class into a file and name that as plugin"
        )
    return ""


def explain_loss(group: str, name: str) -> str:
    """Return the place of a recorded part that can't be loaded, and what to do; empty: no run has recorded it."""
    return _state.lost.get(f"{group}.{name}", "")


def is_loaded(group: str, name: str, plugin: Plugin) -> bool:
    """Return whether the class of a part is there already, with nothing left to import."""
    entry = plugin.parts[group][name]
    return not isinstance(entry, importlib.metadata.EntryPoint) or entry in _loaded


def list_places() -> list[Path]:
    """Return the files and folders of named plugins and of installed packages in use."""
    found = [Path(plugin.source) for plugin in list_named() if Path(plugin.source).is_absolute()]
    for entry in _loaded:
        top = sys.modules.get(entry.module.partition(".")[0])
        file = getattr(top, "__file__", None) or getattr(sys.modules.get(entry.module), "__file__", None)
        if file:
            found.append(Path(file).parent if Path(file).name == "__init__.py" else Path(file))
    return found


def name_of(cls: type) -> str | None:
    """Return the name of a plugin's part; None: the class is not from a plugin."""
    return _names.get(cls)


def find_origin(cls: type) -> Plugin | None:
    """Return the plugin of a part; None: the class is not from a plugin."""
    name = name_of(cls)
    if name is None:
        return None
    return next((p for p in list_active() for named in p.parts.values() if _is(named.get(name), cls)), None)


def _is(entry: Any, cls: type) -> bool:
    return entry is cls or (
        isinstance(entry, importlib.metadata.EntryPoint) and entry in _loaded and entry.load() is cls
    )


_names: dict[type, str] = {}
_loaded: set[importlib.metadata.EntryPoint] = set()


# ------------------------------------------------------------------------------------------------------ finding them


def find_plugin(source: str, beside: Path | None = None) -> Plugin:
    """Return the plugin that a user calls `source`.

    Raises:
        ConfigError: there is none, or it can't be loaded.
    """
    path = (beside or Path.cwd()) / Path(source).expanduser()
    if path.is_file() and path.suffix == ".py":
        return _load_file(path.resolve(), path.resolve())
    if (path / "__init__.py").is_file():
        return _load_file(path.resolve(), path.resolve() / "__init__.py")
    return _find_package(source)


def _locate_plugin(source: str, run: Path | None) -> Plugin:
    """Return the plugin of a record, unless it came with the folder of the `run` that has recorded it.

    Raises:
        ConfigError: it did, there is none, or it can't be loaded.
    """
    if run is None:
        return find_plugin(source)
    if not Path(source).is_absolute():
        return _find_package(source)
    if Path(source).resolve().is_relative_to(run.resolve()):
        raise ConfigError(f"FP1510 it is in the run's folder {run}, and fedpeft runs no code that comes with a run")
    return find_plugin(source)


def _find_package(source: str) -> Plugin:
    """Return the installed package that a user calls `source`.

    Raises:
        ConfigError: there is none.
    """
    for plugin in list_installed():
        if _normalize_name(plugin.source) == _normalize_name(source):
            return plugin
    known = ", ".join(plugin.source for plugin in list_installed()) or "none"
    raise ConfigError(
        f"FP1263 there is no plugin {source!r}: it is neither a file NAME.py, nor a folder with an __init__.py, nor an "
        f"installed package with parts of fedpeft (installed: {known})"
    )


@functools.cache
def list_installed() -> tuple[Plugin, ...]:
    """Return the installed packages with entry points in fedpeft's groups."""
    return tuple(Plugin(*found) for found in find_packages(GROUPS))


def _normalize_name(name: str) -> str:
    return name.lower().replace("_", "-").replace(".", "-")


@dataclass(frozen=True)
class _PluginRecord:
    """What a run has recorded of a plugin (`Plugin.record`)."""

    source: str
    version: str
    parts: tuple[str, ...]

    @classmethod
    def parse(cls, table: Mapping[str, Any]) -> _PluginRecord:
        """Check a table [[plugin]].

        Raises:
            ConfigError: a key is missing, or its value is of another type.
        """
        source, version = table.get("source"), table.get("sha256", table.get("version", ""))
        parts = table.get("parts")
        if not isinstance(source, str) or not isinstance(version, str) or not isinstance(parts, list | tuple):
            raise ConfigError(
                f"FP1264 a table of plugin needs source, sha256 or version, and parts, got {dict(table)!r:.200}"
            )
        return cls(source, version, tuple(map(str, parts)))

    def find_objects(self, content: bytes) -> Plugin:
        """Return the parts that were handed over as objects: those given again, or else the pickled ones.

        Without a `content`, a run can go on that does not need them; `explain_absence` tells the rest.
        """
        for plugin in _state.named:
            if plugin.source == IN_PYTHON and set(self.parts) <= set(plugin.names):
                return plugin
        if not content:
            return Plugin(IN_PYTHON, ", ".join(self.parts), {})
        return Plugin(IN_PYTHON, "", _register_names(cloudpickle.loads(content)))

    def find_moved(self) -> Plugin | None:
        """Return the named plugin that replaces this one: the same file elsewhere, or one with its parts."""
        own = [p for p in list_named() if Path(p.source).is_absolute()]
        same = (p for p in own if p.version == self.version)
        typed = (p for p in own if p not in _state.of_records and not set(self.parts).isdisjoint(p.names))
        return next(same, None) or next(typed, None)

    def describe_change(self, now: str) -> str:
        """Return the recorded and the present version, in short."""
        return f"{shorten_version(self.version)}, now {shorten_version(now)}"

    def create_version_error(self, why: str) -> ConfigError:
        """Return the error of a run that goes on and so needs the recorded version."""
        return ConfigError(
            f"FP1266 this run needs the plugin {self.source} in its original version "
            f"({shorten_version(self.version)}), but {why}; restore that version, or start a new run"
        )

    def note_loss(self, why: str) -> None:
        """Keep the reason why the parts can't be loaded: they fail when they are asked for."""
        _state.lost |= dict.fromkeys(self.parts, f"of {self.source}, {why}")


def _find_recorded(given: Recipe, goes_on: bool, run: Path | None) -> Plugin | None:
    """Return the plugin of a record; None: it is gone or has changed, and no continued run needs it."""
    record = _PluginRecord.parse(given.record)
    if record.source == IN_PYTHON:
        return record.find_objects(given.content)
    moved = record.find_moved()
    if moved is None and (found := _digest_at(record.source)) not in ("", record.version):
        if goes_on:
            raise record.create_version_error(f"it has changed ({shorten_version(found)})")
        # Only a user who names a changed file trusts it, so it is not imported.
        change = record.describe_change(found)
        record.note_loss(f"which has changed ({change}): name it with --plugin if you trust it")
        _note_change(record.source, change, "it is not loaded; name it with --plugin if you trust it")
        return None
    try:
        plugin = moved or _locate_plugin(record.source, run)
    except ConfigError as error:
        if goes_on:
            why = f"this run needs the plugin {record.source} for {', '.join(record.parts)}: {error}"
            raise ConfigError(f"FP1265 {why}; if it lies elsewhere now, name it with --plugin FILE") from error
        gone = Path(record.source).is_absolute() and not Path(record.source).exists()
        told = "which is not there any more" if gone else f"which can't be used ({error})"
        record.note_loss(f"{told}: name its present place with --plugin FILE")
        return None
    if plugin.is_as(record.version):
        return plugin
    if goes_on:
        changed = f"it has changed ({shorten_version(plugin.version)})"
        raise record.create_version_error(changed if plugin.source == record.source else f"{plugin} is another")
    _note_change(plugin.source, record.describe_change(plugin.version), "what is there now is used")
    return plugin


def _note_change(source: str, change: str, consequence: str) -> None:
    _state.notes[f"the plugin {source} has changed since the run was made with it ({change}): {consequence}"] = None


def _digest_at(source: str) -> str:
    """Return the SHA-256 of a plugin's file or folder, without importing it; empty: none is there."""
    path = Path(source)
    if not path.is_absolute() or not (path.is_file() or (path / "__init__.py").is_file()):
        return ""
    return compute_digest(path)


def _load_file(source: Path, file: Path) -> Plugin:
    version = compute_digest(source)
    module = import_file(f"{MODULE}{version[:16]}", file, source)
    if (number := getattr(module, "plugin_format", FORMAT)) != FORMAT:
        raise ConfigError(
            f"FP1522 the plugin {source} has plugin_format = {number!r:.20}, and this version of fedpeft loads "
            f"{FORMAT}; install a version that loads it"
        )
    parts = getattr(module, "parts", None)
    if parts is None and hasattr(module, "part"):
        parts = {_get_group(module.part, source): {source.stem: module.part}}
    if not isinstance(parts, Mapping) or not all(isinstance(named, Mapping) for named in parts.values()):
        raise ConfigError(
            f"FP1503 the plugin {source} names no part; end it with `part = MyRule`, or name several: "
            'parts = {"strategies": {"my_rule": MyRule}}'
        )
    for group, named in parts.items():
        if group not in GROUPS:
            raise ConfigError(
                f"FP1268 the plugin {source} has parts of an unknown group {group!r}; legal: {', '.join(GROUPS)}"
            )
        for name, cls in named.items():
            check(cls, f"{group}.{name}", str(source))
    return Plugin(str(source), version, _register_names(parts))


def _get_group(part: Any, source: Path) -> str:
    """Return the group of a plugin's only part, which its base class decides.

    Raises:
        ConfigError: no base class of the part belongs to a group.
    """
    for base in getattr(part, "__mro__", ()):
        if group := _group_of_base.get(f"{base.__module__}.{base.__qualname__}"):
            return group
    raise ConfigError(
        f"FP1504 the plugin {source} ends with part = {getattr(part, '__name__', repr(part))[:80]}, and none of its "
        "base "
        f'classes decides a group; name the group: parts = {{"GROUP": {{"{source.stem}": ...}}}}, where GROUP is one '
        f"of {', '.join(GROUPS)}"
    )


def _register_names(parts: Mapping[str, Mapping[str, type]]) -> Mapping[str, Mapping[str, type]]:
    for named in parts.values():
        for name, cls in named.items():
            if _names.setdefault(cls, name) != name:
                raise ConfigError(f"FP1269 {cls.__name__} has two names, {_names[cls]} and {name}; a part has one")
    return parts

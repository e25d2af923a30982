"""Parts from outside that clients run: the server names each part and the digest of its file, and clients compare.

Two files may each define a part of the same name. A client with another one would send updates that count wrongly, and
nothing in them would show it. So the server sends the digest of each file (for an installed package, of its name and
version). A client with a different one does not join. For models the weights are compared instead.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from fedpeft.errors import RunError
from fedpeft.parts import Family
from fedpeft.parts.plugins import GROUPS, Plugin, explain_absence
from fedpeft.wiring.catalogue import ALL, find_used_parts
from fedpeft.wiring.config import RunConfig

MOST: Final = 100
"""Most parts from outside that a server may name."""

SHOWN: Final = 12
"""Hexadecimal digits of a digest that messages show."""

_SERVERS_OWN = ("attacks", "datasets", "grids", "hooks", "measurements", "models", "partitions", "safeguards",
                "samplers", "server_optimizers", "tasks")  # fmt: skip
"""Groups whose parts no client of a server runs by name; for models the weights are compared."""


@dataclass(frozen=True)
class ComparedParts:
    """The parts that are compared.

    Attributes:
        families: by group.
        remedy: what brings a client a part, once it has the file.
    """

    families: Mapping[str, Family[Any]]
    remedy: str


WHOLE_RUN: Final = ComparedParts(
    {family.group: family for family in ALL if family.group in GROUPS},
    "name it in the environment variable FEDPEFT_PLUGINS of each node",
)
"""Comparison for clients that build the whole run, dataset and partition included, such as a Flower app's nodes."""

JOINED: Final = ComparedParts(
    {group: family for group, family in WHOLE_RUN.families.items() if group not in _SERVERS_OWN},
    "join with --plugin FILE",
)
"""Comparison for clients that join a server with their own examples."""

_TOLD = re.compile(r"(\w{1,40})\.(\w{1,100}) ([0-9a-f]{64})", re.ASCII)


def list_part_digests(config: RunConfig, compared: ComparedParts = JOINED) -> list[str]:
    """Return the parts from outside in the settings that clients take, as "GROUP.NAME SHA-256" each.

    Raises:
        ConfigError: a plugin can't be loaded.
    """
    return [
        f"{name} {compute_plugin_digest(plugin)}" for name, plugin in sorted(_run_by_clients(config, compared).items())
    ]


def check_parts(told: Iterable[str], compared: ComparedParts = JOINED) -> None:
    """Refuse to join with other parts than the server's.

    Args:
        told: the server's list (`list_part_digests`), before its settings are read.
        compared: which parts the server's list covers.

    Raises:
        RunError: a part is missing here, or from another file; or the server's list has an illegal entry.
        ConfigError: a plugin can't be loaded.
    """
    for (group, name), digest in _read(told, compared).items():
        family = compared.families[group]
        part = f"the server's {family.noun} {name!r} comes from a plugin"
        here = family.find_outside_parts().get(name)
        if here is None:
            installed = explain_absence(group, name) if compared is JOINED else ""
            raise RunError(
                f"FP5039 {part} (a file with the digest {digest:.{SHOWN}}), and no plugin with this name is "
                "loaded here" + (installed or f": ask whoever runs the server for the file, and {compared.remedy}")
            )
        if (own := compute_plugin_digest(here)) != digest:
            raise RunError(
                f"FP5040 {part}, and the one of {here} is another (digest of the file {own:.{SHOWN}} here, "
                f"{digest:.{SHOWN}} there), so updates would be aggregated wrongly; ask whoever runs the server "
                f"for its file, and {compared.remedy}"
            )


def check_all_told(told: Iterable[str], config: RunConfig, compared: ComparedParts = JOINED) -> None:
    """Refuse settings with a part from outside whose file the server does not identify.

    Args:
        told: the server's list (`list_part_digests`).
        config: what the client takes of the server's settings.
        compared: which parts the server's list covers.

    Raises:
        RunError: names the part.
    """
    known = {f"{group}.{name}" for group, name in _read(told, compared)}
    for name, plugin in _run_by_clients(config, compared).items():
        if name not in known:
            raise RunError(
                f"FP5041 the server's settings name the part {name}, which is from {plugin} here, and the server does "
                "not identify its own file: it runs an earlier version, or has no such part; ask whoever runs it to "
                "update it"
            )


def compute_plugin_digest(plugin: Plugin) -> str:
    """Return a SHA-256, 64 hexadecimal digits: of a plugin's file or folder, or of a package's name and version."""
    if Path(plugin.source).is_absolute():
        return plugin.version
    version = plugin.version.partition(" ")[0]  # an installation in place may be the same code as a wheel
    return hashlib.sha256(f"{plugin.source} {version}".encode()).hexdigest()


def _run_by_clients(config: RunConfig, compared: ComparedParts) -> dict[str, Plugin]:
    parts = find_used_parts(config)
    return {name: plugin for name, plugin in parts.items() if name.partition(".")[0] in compared.families}


def _read(told: Iterable[str], compared: ComparedParts) -> dict[tuple[str, str], str]:
    """Return digests by group and name, from the server's list.

    Raises:
        RunError: the list has more entries or others than this version writes.
    """
    given = list(told)
    if len(given) > MOST:
        raise RunError(f"FP5042 the server names {len(given)} parts of plugins; legal are {MOST} at most")
    found: dict[tuple[str, str], str] = {}
    for text in given:
        match = _TOLD.fullmatch(text)
        if match is None or match[1] not in compared.families or (match[1], match[2]) in found:
            raise RunError(
                f"FP5043 the server names a part of a plugin as {text!r:.80}; legal is GROUP.NAME and 64 "
                "hexadecimal digits, each part once"
            )
        found[match[1], match[2]] = match[3]
    return found

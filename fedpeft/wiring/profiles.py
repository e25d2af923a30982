"""Profiles of clients that differ.

A profile sets LoRA rank and alpha, local steps, participation, the speed of the uplink, and the precision of the base
and the adapter. It also gives the client's memory and rows, and its energy.

    --ranks "4*50,8*30,32*20"       the first 50 clients hold rank 4, the next 30 rank 8, the last 20 rank 32
    --clients FILE.toml             the same and more, one table for each group of clients, in the order of client ids:

        [[profile]]
        count = 50
        rank = 4
        alpha = 8
        local_steps = 10
        participation = 0.5
        link = 0.1
        base = "nf4"
        adapter = "bf16"
        watts_train = 6
        battery_wh = 15

    --ranks auto                    with such a file: ranks by the memory, link and rows of the groups' tables

With `auto`, a client with the most of all three gets the rank r of the PEFT method. Another client gets the share of r
that its scarcest resource is of the largest one (own rule):

    r_k = max(1, floor(r min(memory_k / max memory, link_k / max link, rows_k / max rows)))

Memory (factors, gradients, moments) and uploads grow in proportion to the rank. So all clients take about as long to
send, and a client with few rows trains few numbers. Ranks that a table states stay.

The global adapter has the largest rank. Without an alpha, all clients have the PEFT method's scale alpha / rank, so
that ranks differ and scales do not.
"""

from __future__ import annotations

import math
import re
import shutil
from bisect import bisect_right
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from itertools import accumulate
from pathlib import Path
from typing import TYPE_CHECKING, cast, overload

from fedpeft.errors import ConfigError
from fedpeft.machine.files import raise_write_errors
from fedpeft.models.precisions import ADAPTERS, BASES, AdapterPrecision, BasePrecision
from fedpeft.parts import check_settings, setting

if TYPE_CHECKING:
    from fedpeft.peft.adapter import AdapterShape

PROFILES = "profiles.toml"
"""A run's copy of the file that --clients names."""


OF_ENERGY = (
    "watts_train", "watts_idle", "joule_per_byte", "step_seconds", "battery_wh", "charge_watts",
    "intensity", "intensity_swing", "peak_hour",
)  # fmt: skip
"""Fields that a profile copies from its table."""


@dataclass(frozen=True)
class Profile:
    """The settings of one client.

    Attributes:
        form: LoRA rank and alpha; None: no LoRA.
        steps: local steps per round; 0: the run's own.
        participation: chance of being drawn, relative to other clients.
        link: speed of the uplink, relative to other clients.
        base: precision of the frozen base; empty: the run's own.
        adapter: precision in which the client holds its adapter.
        watts_train, watts_idle, joule_per_byte, step_seconds: for `fedpeft.wiring.energy`; 0: the run's own.
        battery_wh, charge_watts: capacity and charging power of a battery, full at the start; 0 Wh: plugged in.
        intensity, intensity_swing, peak_hour: grams of CO2 per kWh at the client, and their course over the day.
    """

    form: AdapterShape | None
    steps: int = 0
    participation: float = 1.0
    link: float = 1.0
    base: BasePrecision = ""
    adapter: AdapterPrecision = "fp32"
    watts_train: float = 0.0
    watts_idle: float = 0.0
    joule_per_byte: float = 0.0
    step_seconds: float = 0.0
    battery_wh: float = 0.0
    charge_watts: float = 0.0
    intensity: float = 0.0
    intensity_swing: float = 0.0
    peak_hour: float = 19.0


class Profiles(Sequence[Profile]):
    """The clients' profiles in the order of ids, kept group by group: a million clients take no more than one.

    Args:
        groups: a profile and how many clients have it, at least 1.
    """

    def __init__(self, groups: Iterable[tuple[Profile, int]]) -> None:
        """Hold the groups, in the order of client ids."""
        self.groups = tuple(groups)
        self._ends = list(accumulate(count for _, count in self.groups))

    def __len__(self) -> int:
        """Return the number of clients."""
        return self._ends[-1]

    @overload
    def __getitem__(self, client: int) -> Profile: ...

    @overload
    def __getitem__(self, client: slice) -> Sequence[Profile]: ...

    def __getitem__(self, client: int | slice) -> Profile | Sequence[Profile]:
        """Return the profile of a client, or the profiles of a slice of clients."""
        if isinstance(client, slice):
            return [self[i] for i in range(*client.indices(len(self)))]
        if not -len(self) <= client < len(self):
            raise IndexError(f"there is no client {client} of {len(self)}")
        return self.groups[bisect_right(self._ends, client % len(self))][0]

    def __repr__(self) -> str:
        """Return the profiles of all clients as a tuple's text."""
        return repr(tuple(self))


def list_distinct(profiles: Sequence[Profile]) -> list[Profile]:
    """Return the distinct profiles, in the order of their first clients."""
    each = (profile for profile, _ in profiles.groups) if isinstance(profiles, Profiles) else profiles
    return list(dict.fromkeys(each))


def compute_chances(profiles: Sequence[Profile]) -> tuple[float, ...]:
    """Return each client's chance of being drawn, relative to the others'; empty: all are alike."""
    if len({profile.participation for profile in list_distinct(profiles)}) == 1:
        return ()
    return tuple(profile.participation for profile in profiles)


@dataclass(frozen=True)
class ProfileTable:
    """One [[profile]] of a file: a group of clients."""

    count: int = setting(1, "number of clients in the group", low=1)
    rank: int = setting(0, "LoRA rank; 0: that of the PEFT method", low=0, high=1024)
    alpha: float = setting(0.0, "LoRA alpha; 0: the PEFT method's alpha / rank times this rank", low=0)
    local_steps: int = setting(0, "local steps per round; 0: the run's own", low=0)
    participation: float = setting(
        1.0, "chance of being drawn into a cohort, relative to other clients", above=0, high=1
    )
    link: float = setting(
        1.0, "speed of the uplink, relative to other clients (for the codec's by_link, ranks=auto)", above=0
    )
    memory: float = setting(0.0, "memory for training, in any unit that all tables share; 0: not given", low=0)
    rows: int = setting(0, "examples of each client, for ranks=auto; 0: not given", low=0)
    base: str = setting("", "precision of the frozen base: fp32, bf16, int8, nf4; empty: the run's", choices=BASES)
    adapter: str = setting("fp32", "precision in which the adapter is held: fp32, bf16", choices=ADAPTERS)
    watts_train: float = setting(0.0, "watts while it trains; 0: those of energy(watts=...)", low=0)
    watts_idle: float = setting(0.0, "watts while it waits; 0: those of energy(idle_watts=...)", low=0)
    joule_per_byte: float = setting(0.0, "joules per byte of traffic; 0: those of energy(joule_per_byte=...)", low=0)
    step_seconds: float = setting(0.0, "seconds of a local step; 0: those of energy(step_seconds=...)", low=0)
    battery_wh: float = setting(0.0, "capacity of its battery, full at the start; 0: plugged in", low=0)
    charge_watts: float = setting(0.0, "watts that charge the battery between rounds", low=0)
    intensity: float = setting(0.0, "grams of CO2 per kWh, over the day; 0: those of energy(intensity=...)", low=0)
    intensity_swing: float = setting(0.0, "share by which the intensity rises and falls over the day", low=0, high=1)
    peak_hour: float = setting(19.0, "hour of the day with the largest intensity", low=0, below=24)


AUTO = "auto"
"""The text of `ranks` that chooses ranks by clients' resources."""


def choose_ranks(tables: Sequence[ProfileTable], form: AdapterShape | None) -> list[ProfileTable]:
    """Return the tables with ranks by memory, link and rows (`auto`), at most the rank of the method's `form`.

    Raises:
        ConfigError: the method has no ranks, the tables don't tell clients apart, or one states what others don't.
    """
    if form is None:
        raise ConfigError("FP1378 ranks are those of LoRA factors, or lengths of prompts; use the peft method lora")
    if len({(t.memory, t.link, t.rows) for t in tables}) == 1:
        raise ConfigError(
            "FP1379 ranks=auto chooses ranks by memory, link and rows, which are equal in all tables; state "
            "them, or leave ranks out"
        )
    shares = [1.0] * len(tables)
    for name in ("memory", "link", "rows"):
        given = [getattr(t, name) for t in tables]
        if not all(given) and any(given):
            raise ConfigError(
                f"FP1380 ranks=auto: some tables state {name} and some don't; state it in all of them, or in none"
            )
        if any(given):
            shares = [min(share, own / max(given)) for share, own in zip(shares, given, strict=True)]
    chosen = (max(1, math.floor(form.rank * share * (1 + 1e-12))) for share in shares)
    return [replace(t, rank=t.rank or rank) for t, rank in zip(tables, chosen, strict=True)]


def parse_ranks(text: str) -> list[ProfileTable]:
    """Return the groups that a text such as "4*50,8*30" describes.

    Raises:
        ConfigError: it has another form.
    """
    tables = []
    for word in text.split(","):
        match = re.fullmatch(r"\s*(\d+)\s*\*\s*(\d+)\s*", word)
        if not match:
            raise ConfigError(
                f"FP1381 ranks={text!r} is not of the form RANK*CLIENTS,RANK*CLIENTS,... such as 4*50,8*30,32*20"
            )
        rank, count = map(int, match.groups())
        if not 1 <= rank <= 1024 or not count:
            raise ConfigError(f"FP1382 ranks={text!r}: a rank is 1 to 1024, and a group has at least one client")
        tables.append(ProfileTable(count=count, rank=rank))
    return tables


def read_tables(file: Path) -> list[ProfileTable]:
    """Return the groups in a TOML file.

    Raises:
        ConfigError: it can't be read, or holds anything but [[profile]] tables.
    """
    from fedpeft.wiring.config import read_toml

    content = read_toml(file)
    tables = content.pop("profile", [])
    if content or not isinstance(tables, list) or not tables or not all(isinstance(t, dict) for t in tables):
        raise ConfigError(f"FP1383 {file} must hold [[profile]] tables and nothing else")
    return [
        ProfileTable(**check_settings(f"profile {i} of {file}", ProfileTable, table))
        for i, table in enumerate(tables, start=1)
    ]


def load_groups(ranks: str, clients: int | str, folder: Path | None = None) -> list[ProfileTable]:
    """Return the groups of `--ranks` or of the file of `--clients`; empty: all clients are alike.

    A run's `folder` keeps its own copy of the file; None: there is no folder yet.

    Raises:
        ConfigError: both are given, or one can't be used.
    """
    if ranks == AUTO and not isinstance(clients, str):
        raise ConfigError(
            "FP1384 ranks=auto chooses ranks by clients' memory, link and rows, which need a TOML file of "
            "[[profile]] tables; give one, such as --clients clients.toml"
        )
    if ranks and ranks != AUTO and isinstance(clients, str):
        raise ConfigError(f"FP1385 ranks and the tables in {clients} both set clients' ranks; give one of them")
    if ranks and ranks != AUTO:
        return parse_ranks(ranks)
    if not isinstance(clients, str):
        return []
    if folder is not None and (folder / PROFILES).exists():
        return read_tables(folder / PROFILES)
    if not clients.endswith(".toml"):
        raise ConfigError(
            f"FP1386 clients={clients!r} is neither a number nor a TOML file of [[profile]] tables; write --clients "
            "100 or --clients clients.toml"
        )
    return read_tables(Path(clients))


def count_clients(clients: int | str, tables: Sequence[ProfileTable]) -> int:
    """Return the number of clients: the given number, or the sum of the counts in the file's `tables`."""
    return sum(table.count for table in tables) if isinstance(clients, str) else clients


def check_counts(tables: Sequence[ProfileTable], clients: int) -> None:
    """Refuse groups whose counts do not add up to the number of clients.

    Raises:
        ConfigError: gives both numbers.
    """
    total = sum(table.count for table in tables)
    if total != clients:
        raise ConfigError(
            f"FP1387 the groups of clients add up to {total}, but there are {clients} clients; change a group or "
            "--clients"
        )


def keep_profiles(clients: int | str, folder: Path) -> None:
    """Copy the file that `--clients` names into the run's folder, for a run that is continued."""
    if isinstance(clients, str) and not (folder / PROFILES).exists():
        with raise_write_errors(folder / PROFILES):
            shutil.copyfile(clients, folder / PROFILES)


def create_profiles(tables: Sequence[ProfileTable], clients: int, form: AdapterShape | None) -> Profiles:
    """Return a profile for each client, in the order of ids; `form` is the PEFT method's own.

    Raises:
        ConfigError: the counts don't add up to `clients`, or ranks are given to a method that has none.
    """
    from fedpeft.peft.adapter import AdapterShape

    if not tables:
        return Profiles([(Profile(form), clients)])
    check_counts(tables, clients)
    groups: list[tuple[Profile, int]] = []
    for table in tables:
        own = form
        if table.rank or table.alpha:
            if form is None:
                raise ConfigError(
                    "FP1378 ranks are those of LoRA factors, or lengths of prompts; use the peft method lora"
                )
            rank = table.rank or form.rank
            own = AdapterShape(rank, table.alpha or form.scale * rank)
        profile = Profile(
            own,
            table.local_steps,
            table.participation,
            table.link,
            cast(BasePrecision, table.base),
            cast(AdapterPrecision, table.adapter),
            **{name: getattr(table, name) for name in OF_ENERGY},
        )
        groups.append((profile, table.count))
    return Profiles(groups)

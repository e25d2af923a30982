"""Checks of the values in a line of results.jsonl, which may come from an untrusted source."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

MOST_BITS: Final = 1000
"""Most bits of a whole number. Python can't convert much longer ones to float."""

LARGEST: Final = 1e18
"""Largest number that a report computes with and draws."""

EACH_ROUND: Final = {"round", "loss", "accuracy", "uplink_bytes", "downlink_bytes", "seconds"}
"""Keys that each line of rounds.jsonl must have."""

QUANTILES: Final = 9
"""Number of quantiles of the clients' accuracies in a line."""

TYPES: Final[Mapping[str, tuple[type, str]]] = {
    "study": (str, "a text"),
    "preset": (str, "a text"),
    "settled": (dict, "a table"),
    "point": (dict, "a table"),
}
"""Types of values that are empty if a line lacks them, with their descriptions."""

NUMBERS: Final = ("seed", "local_steps", "trained_rows")

LISTS: Final = {"calibration": ("rows", "confidence", "accuracy"), "client_accuracy": ("quantiles",)}
"""The lists of tables that a line may lack."""


def check_values(plain: Mapping[str, Any]) -> None:
    """Raise if a report cannot compute with a line's values.

    Raises:
        ValueError: a value has the wrong type or size; the message names it.
    """
    check_size(plain)
    for name, (kind, description) in TYPES.items():
        if not isinstance(plain.get(name, kind()), kind):
            raise ValueError(f"{name} must be {description}, got {plain[name]!r:.40}")
    _check_numbers({name: plain.get(name) for name in NUMBERS}, "")
    rounds = plain.get("rounds", ())
    if not isinstance(rounds, list | tuple) or not all(isinstance(line, Mapping) for line in rounds):
        raise ValueError(f"rounds must be tables, got {rounds!r:.40}")
    for line in rounds:
        if missing := EACH_ROUND - line.keys():
            raise ValueError(f"rounds: a line lacks {', '.join(sorted(missing))}")
        _check_numbers(line, "rounds: ")
        if None in (line["round"], line["uplink_bytes"], line["downlink_bytes"]):
            raise ValueError("rounds: a line has no number of a round, or no bytes")
    for name, lists in LISTS.items():
        if plain.get(name) is not None:
            _check_lists(name, plain[name], lists)
    clients = plain.get("client_accuracy")
    if clients is not None and (clients.get("worst_tenth") is None or len(clients["quantiles"]) != QUANTILES):
        raise ValueError(f"client_accuracy must have worst_tenth, and {QUANTILES} quantiles")


def check_size(value: Any) -> None:
    """Raise if JSON data contains a whole number of more than `MOST_BITS` bits.

    Raises:
        ValueError: a number is too long; the message gives its length.
    """
    if isinstance(value, int) and value.bit_length() > MOST_BITS:
        raise ValueError(f"a whole number of {value.bit_length()} bits; legal are {MOST_BITS} at most")
    inside = value.values() if isinstance(value, Mapping) else value
    if isinstance(value, Mapping | list | tuple):
        for one in inside:
            check_size(one)


def _check_numbers(values: Mapping[str, Any], where: str) -> None:
    for name, value in values.items():
        if value is not None and not (isinstance(value, int | float) and abs(value) <= LARGEST):
            raise ValueError(f"{where}{name:.40} must be a number of at most {LARGEST:g}, got {value!r:.40}")


def _check_lists(name: str, table: Any, lists: tuple[str, ...]) -> None:
    if not isinstance(table, Mapping) or not all(isinstance(table.get(one), list) for one in lists):
        raise ValueError(f"{name} must be a table with the lists {', '.join(lists)}, got {table!r:.40}")
    if len({len(table[one]) for one in lists}) > 1:
        raise ValueError(f"{name} must have lists of one length: {', '.join(lists)}")
    _check_numbers({one: value for one, value in table.items() if one not in lists}, f"{name}: ")
    for one in lists:
        for value in table[one]:
            if not isinstance(value, int | float):
                raise ValueError(f"{name}: {one} must be numbers, got {value!r:.40}")

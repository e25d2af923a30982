"""Rows that lack a text, an answer, a label or an owner: they are counted, and rejected or left out."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from fedpeft.data.label_columns import AND
from fedpeft.data.record_files import TablePlace
from fedpeft.errors import DataError

REFUSE, DROP = "refuse", "drop"
INCOMPLETE = (REFUSE, DROP)
"""Legal treatments of incomplete rows."""

LACKS = {"text": "an empty text", "answer": "no answer", "label": "no label", "owner": "no owner"}
"""Description of what a row lacks."""

SHOWN = 5
"""Number of places that a message names for each missing column."""


@dataclass
class CompleteRecords:
    """Records of a source that have all required columns, in their order.

    Iteration counts the others and keeps only a few of their places. If incomplete rows are refused, no record follows
    the first incomplete one, and the error is raised after all of them are counted.

    Attributes:
        records: the records with the names of their places.
        source: name of the source, for messages.
        needs: for each of `LACKS` that a row must have, the column, or several as "a + b".
        incomplete: one of `INCOMPLETE`; empty: rows are refused, and there is no setting to change that.
        hints: by role of `LACKS`, another remedy for rows that lack it, a clause.
        reader: the dataset part that has the setting `incomplete`: file or hf.
    """

    records: Iterable[tuple[str, Mapping[str, Any]]]
    source: str
    needs: Mapping[str, str]
    incomplete: str = ""
    hints: Mapping[str, str] = field(default_factory=dict)
    reader: str = "file"
    _rows: int = 0
    _left_out: int = 0
    _columns: str = ""  # of the first record that lacks something
    _roles: Counter[str] = field(default_factory=Counter)
    _lacked: Counter[tuple[str, str]] = field(default_factory=Counter)  # role and column
    _places: dict[tuple[str, str], list[str]] = field(default_factory=dict)

    def __iter__(self) -> Iterator[tuple[str, Mapping[str, Any]]]:
        """Yield the complete records with their places.

        Raises:
            DataError: rows are incomplete and refused, or no row is complete.
        """
        for place, record in self.records:
            self._rows += 1
            missing = find_missing(record, self.needs)
            if not missing:
                if self.incomplete == DROP or not self._left_out:
                    yield place, record
            elif any(column not in record for _, column in missing) and not self._can_lack(place):
                yield place, record  # its reader reports the missing column
            else:
                self._columns = self._columns or ", ".join(map(str, record))
                self._count(place, missing)
        if not self._left_out:
            return
        if self.incomplete != DROP:
            one = self._lacked.total() == 1
            cure = "fill it in, or leave the row out" if one else "fill them in, or leave the rows out"
            cure += f", as {self.reader}(..., incomplete={DROP}) does" if self.incomplete else ""
            hint = "".join(self.hints.get(role, "") for role in sorted(self._roles))
            raise DataError(f"FP3062 {self.source}: {self._describe_missing()}; {cure}{hint}")
        if self._left_out == self._rows:
            raise DataError(
                f"FP3063 {self.source} has no complete row: {self._describe_missing()}; the first one has the columns "
                f"{self._columns}"
            )

    @property
    def note(self) -> str:
        """Sentence about the number of rows left out and the reasons; empty: none."""
        if not self._left_out:
            return ""
        why = ", ".join(f"{LACKS[role].removeprefix('an ')} {count:,}" for role, count in self._roles.most_common())
        return f"{self._left_out:,} of {self._rows:,} rows of {self.source} are left out: {why}"

    def _can_lack(self, place: str) -> bool:
        """Return whether a record may lack a column entirely.

        This holds for JSON records, which name their own columns, if incomplete rows are dropped.
        """
        return self.incomplete == DROP and not isinstance(place, TablePlace)

    def _count(self, place: str, lacked: list[tuple[str, str]]) -> None:
        self._left_out += 1
        self._roles.update(list(dict.fromkeys(role for role, _ in lacked)))
        self._lacked.update(lacked)
        for what in lacked:
            if len(shown := self._places.setdefault(what, [])) < SHOWN:
                shown.append(str(place))

    def _describe_missing(self) -> str:
        """Return how many rows lack which column, and where."""
        told: list[str] = []
        for (role, column), count in self._lacked.most_common():
            rows, have = ("row", "has") if count == 1 else ("rows", "have")
            number = f"{count:,}" if told else f"{count:,} {rows}"  # the first clause names rows for all
            where = _format_places(self._places[role, column], count)
            told.append(f"{number} {have} {LACKS[role]} in the column {column!r} ({where})")
        return ", ".join(told)


def find_missing(record: Mapping[str, Any], needs: Mapping[str, str]) -> list[tuple[str, str]]:
    """Return role and column of each value in `needs` that a record lacks, or whose column it lacks.

    If the record has no column "a + b", this names several columns.
    """
    missing = []
    for role, needed in needs.items():
        for column in (needed,) if needed in record else needed.split(AND):
            if _is_missing(record.get(column), role):
                missing.append((role, column))
    return missing


def _is_missing(value: Any, role: str) -> bool:
    """Return whether a value is null, blank, NaN, or for a text or answer an empty list."""
    if isinstance(value, str):
        return not value or value.isspace()
    if isinstance(value, list | tuple):
        return not value and role != "label"  # a row may have none of several labels
    return value is None or (isinstance(value, float) and value != value)


def _format_places(places: list[str], count: int) -> str:
    """Return the places of `count` rows in words: "lines 2, 5 and 3 more"."""
    kind, _, _ = places[0].partition(" ")
    numbers = [place.removeprefix(f"{kind} ") for place in places]
    alike = len(places) > 1 and all(map(str.isdecimal, numbers))
    shown = f"{kind}s {', '.join(numbers)}" if alike else ", ".join(places)
    return shown if count == len(places) else f"{shown} and {count - len(places):,} more"

"""Columns that hold the owner of each row, found by their names."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

from fedpeft.errors import DataError

OWNERS = (
    "owner",
    "client",
    "client_id",
    "site",
    "site_id",
    "hospital",
    "hospital_id",
    "clinic",
    "clinic_id",
    "institution",
    "institution_id",
    "center",
    "center_id",
    "centre",
    "centre_id",
)
"""Names of columns that are used as owners, in any case."""


def find_owner(record: Mapping[str, Any], used: Collection[str], source: str, *, is_setting: bool = True) -> str | None:
    """Return the column of owners, or None if no column has one of the names.

    Args:
        record: the first record.
        used: columns with another role, such as the text and the label.
        source: what messages call the rows.
        is_setting: whether a user can name the column with the setting `owner`.

    Raises:
        DataError: several columns have such names.
    """
    columns = [
        column
        for column, value in record.items()
        if str(column).strip().lower() in OWNERS and column not in used and isinstance(value, str | int | None)
    ]
    if len(columns) > 1:
        settings = " or ".join(f"owner={column}" for column in columns)
        remedy = f"write {settings}, or owner=None for none" if is_setting else "keep one of them, or none"
        raise DataError(
            f"FP3181 {source} has several columns that may hold the owners of rows: {', '.join(columns)}; {remedy}"
        )
    return columns[0] if columns else None

"""Cells of CSV files that spreadsheets open: Excel, LibreOffice and Google Sheets run a cell's text as a formula."""

from __future__ import annotations

import math

FORMULAS = ("=", "+", "-", "@", "\t", "\r", "\n", "＝", "＋", "－", "＠")
"""First characters of a formula. Tabs and line ends are skipped before one; some programs read the wide forms, too."""

PLAIN = "'"
"""The character that spreadsheets read as: this cell is text."""


def escape_cell(text: str) -> str:
    """Return the text of a cell, with an apostrophe before what a spreadsheet would run; numbers stay as they are."""
    if not text.lstrip(" ").startswith(FORMULAS) or is_number(text):
        return text
    return PLAIN + text


def is_number(text: str) -> bool:
    """Return whether a text is a finite number, such as -3.5, and nothing else."""
    try:
        return math.isfinite(float(text)) and text.isascii() and "_" not in text and text == text.strip()
    except ValueError:
        return False

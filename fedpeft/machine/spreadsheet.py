"""Safe cells of CSV files: Excel, LibreOffice and Google Sheets run some texts as formulas."""

from __future__ import annotations

import math

FORMULAS = ("=", "+", "-", "@", "\t", "\r", "\n", "＝", "＋", "－", "＠")
"""First characters of a formula. Tabs and line ends before one are skipped; some programs accept the wide forms,
too.
"""

PLAIN = "'"
"""Character that makes a spreadsheet treat a cell as text."""


def escape_cell(text: str) -> str:
    """Return a cell's text, with an apostrophe before what a spreadsheet would run; numbers stay unchanged."""
    if not text.lstrip(" ").startswith(FORMULAS) or is_number(text):
        return text
    return PLAIN + text


def is_number(text: str) -> bool:
    """Return whether a text is exactly one finite number, such as -3.5."""
    try:
        return math.isfinite(float(text)) and text.isascii() and "_" not in text and text == text.strip()
    except ValueError:
        return False

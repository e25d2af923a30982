"""How the rows of real clients look: what a server says of them where nobody names anything else."""

from __future__ import annotations

TEXT, LABEL = "text", "label"
"""Columns by which clients' rows are told where nobody names any."""

SMALLEST, LARGEST = 8, 512
"""Pixels per side of the smallest and the largest picture that rows are brought to."""

"""What both ends of a connection hold to."""

from __future__ import annotations

from typing import Final

BYTES_PER_PARAMETER: Final = 16
"""Payloads may have this many bytes per trainable parameter, and a megabyte."""

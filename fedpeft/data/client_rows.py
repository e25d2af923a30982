"""Defaults for the form of real clients' rows: column names and legal image sizes."""

from __future__ import annotations

TEXT, LABEL = "text", "label"
"""Default names of the text column and the label column of clients' files."""

SMALLEST, LARGEST = 8, 512
"""Fewest and most pixels per side that a client's images are scaled to."""

MOST_FRAMES = 64
"""Most frames of a clip that a model reads."""

"""Defaults for the form of real clients' rows: column names and legal image sizes."""

from __future__ import annotations

TEXT, LABEL = "text", "label"
"""Default names of the text column and the label column of clients' files."""

SMALLEST, LARGEST = 8, 512
"""Fewest and most pixels per side that a client's images are scaled to."""

MOST_FRAMES = 64
"""Most frames of a clip that a model reads."""

MOST_PIXELS = 2**22
"""Most pixels of an example, over all its frames: 64 frames of 256 x 256, or 16 of 512 x 512.

A client holds an example's pixels in 12 bytes each as input of a model, which are 50 MB.
"""

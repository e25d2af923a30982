"""Rows whose labels are numbers, or several at once, for tests: what words a text has decides."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import numpy as np

from fedpeft.data.made_words import WORDS

LABELS = ("dry", "loud", "wet")


VOCABULARY = WORDS[::9]


def rows_of(count: int, seed: int = 0) -> list[dict[str, object]]:
    """Texts with a price (what their words are worth in the mean, and noise) and the labels whose words occur."""
    draw = np.random.default_rng(seed)
    worth = np.random.default_rng(7).normal(size=len(VOCABULARY))
    made = []
    for _ in range(count):
        words = draw.integers(len(VOCABULARY), size=int(draw.integers(4, 12)))
        price = 500 + 300 * worth[words].mean() + 10 * draw.normal()
        starts = zip(LABELS, (0, 8, 16), strict=True)
        held = [name for name, start in starts if ((start <= words) & (words < start + 3)).any()]
        made.append({"text": " ".join(VOCABULARY[w] for w in words), "price": round(float(price), 3), "tags": held})
    return made


def prices(path: Path, count: int = 120) -> Path:
    """Write a CSV file of texts and prices."""
    with path.open("w", newline="", encoding="utf-8") as file:
        table = csv.writer(file)
        table.writerow(["text", "price"])
        table.writerows([row["text"], row["price"]] for row in rows_of(count))
    return path


def tagged(path: Path, count: int = 120) -> Path:
    """Write a JSON lines file of texts and lists of labels."""
    lines = (json.dumps({"text": row["text"], "label": row["tags"]}) + "\n" for row in rows_of(count))
    path.write_text("".join(lines), encoding="utf-8")
    return path

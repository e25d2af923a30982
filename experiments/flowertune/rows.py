"""Generated instruction data in FlowerTune's columns with checkable answers: sums, and operations on words."""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from pathlib import Path

# fmt: off
WORDS = (
    "apple", "bridge", "candle", "dragon", "engine", "forest", "garden", "hammer", "island",
    "jacket", "kitten", "ladder", "mirror", "needle", "orange", "pencil", "rabbit", "saddle",
    "tunnel", "violin", "window", "yellow", "anchor", "basket", "copper",
)
# fmt: on


def make_rows(count: int, seed: int) -> list[dict[str, str]]:
    """Generate `count` examples with instruction, input and output; equal seeds give equal examples."""
    draw = random.Random(seed)
    return [dict(zip(("instruction", "input", "output"), draw.choice(KINDS)(draw), strict=True)) for _ in range(count)]


def _sum(draw: random.Random) -> tuple[str, str, str]:
    a, b = draw.randrange(50), draw.randrange(50)
    return f"Add {a} and {b}.", "", str(a + b)


def _draw_larger(draw: random.Random) -> tuple[str, str, str]:
    a, b = draw.sample(range(100), 2)
    return f"Which number is larger, {a} or {b}?", "", str(max(a, b))


def _draw_last(draw: random.Random) -> tuple[str, str, str]:
    words = draw.sample(WORDS, 4)
    return f"Say the last word of: {' '.join(words)}", "", words[-1]


def _draw_twice(draw: random.Random) -> tuple[str, str, str]:
    word = draw.choice(WORDS)
    return f"Write the word {word} twice.", "", f"{word} {word}"


def _draw_capitals(draw: random.Random) -> tuple[str, str, str]:
    word = draw.choice(WORDS)
    return f"Write {word} in capital letters.", "", word.upper()


KINDS: tuple[Callable[[random.Random], tuple[str, str, str]], ...] = (
    _sum,
    _draw_larger,
    _draw_last,
    _draw_twice,
    _draw_capitals,
)


def write(file: Path, count: int, seed: int) -> Path:
    """Write generated examples as JSONL, and return the file."""
    file.write_text("".join(json.dumps(row) + "\n" for row in make_rows(count, seed)), encoding="utf-8")
    return file

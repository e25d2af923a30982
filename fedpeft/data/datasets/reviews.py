"""Polarity of short texts from four domains: film reviews, product reviews, newspaper editorials and tweets.

The source is the ground truth of VADER (Hutto and Gilbert, ICWSM 2014):

- 10,605 snippets of film reviews (Pang and Lee);
- 3,708 sentences of about 300 product reviews (Hu and Liu);
- 5,190 snippets of 500 editorials;
- 4,200 tweets.

Each text has 15 or more human ratings from -4 to 4, and their mean. A text is positive above `margin` and negative
below -`margin`. Those between, neutral or disputed, are left out. The files are part of the package vaderSentiment 0.5
(MIT); the texts keep the rights of their sources. A run compares its calibration with the ratings of the test examples
(`fedpeft.trust.raters`).

A fifth of each domain's documents is held out for test, chosen by hash. A document is a product review, an editorial, a
film snippet or a tweet. A text that occurs twice counts once.

Owners are documents, `domain/number`, numbered as in their files, which are sorted by product and by date. Film
snippets are numbered by hash, since their file is sorted by polarity. So the partition `grouped`, the default here,
gives each client documents that belong together.
"""

from __future__ import annotations

import hashlib
import json
import tarfile
from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar, NamedTuple

import numpy as np

from fedpeft.data.rows import Dataset, Raters, Rows
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
"""Start of the file names of each domain."""

BY_HASH = ("films",)
"""Domains whose files are sorted by polarity; in file order, clients would have one class each."""

LABELS = ("negative", "positive")


class Rated(NamedTuple):
    """A rated text: its document, mean rating (-4 to 4), text and identifier in the files."""

    document: str
    rating: float
    text: str
    name: str


@dataclass(frozen=True)
class Reviews:
    """Negative or positive texts of four domains."""

    suited_partition: ClassVar[str] = "grouped"

    margin: float = setting(0.5, "mean rating, of -4 to 4, beyond which a text has a polarity", above=0.0, high=3.0)
    test_fraction: float = setting(0.2, "share of each domain's documents held out for test", above=0.0, high=0.5)

    def load(self) -> Dataset:
        """Return texts with one label and one owner each; the first use fetches 2.4 MB.

        Raises:
            AssetError: the package can't be fetched.
            DataError: its files are damaged, or no mean rating is beyond `margin`.
        """
        train: list[tuple[str, int, str]] = []  # text, label, owner
        test: list[tuple[str, int, str]] = []
        votes: list[list[int]] = []  # of test examples
        seen: set[str] = set()
        with tarfile.open(ASSET.fetch() / ARCHIVE) as archive:
            for domain, start in DOMAINS.items():
                content, name = read_member(archive, f"{start}_GroundTruth.txt")
                ratings = parse_ratings(*read_member(archive, f"{start}_anonDataRatings.txt"))
                said: dict[float, list[str]] = {}
                documents: dict[float, list[tuple[str, int]]] = {}
                for row in read_rated(content, name):
                    if abs(row.rating) > self.margin and is_new(row.text, seen):
                        where = place(f"{domain}/{row.document}")
                        documents.setdefault(where, []).append((row.text, int(row.rating > 0)))
                        said.setdefault(where, []).append(ratings.get(row.name, ""))
                order = sorted(documents) if domain in BY_HASH else list(documents)
                for number, where in enumerate(order):
                    held = where < self.test_fraction
                    owner = domain if held else f"{domain}/{number:05d}"
                    (test if held else train).extend((*row, owner) for row in documents[where])
                    votes += [parse_votes(given, domain) for given in said[where]] if held else []
        if not train or not test:
            raise DataError(f"FP3042 no text has a mean rating beyond {self.margin:g}; choose a smaller margin")
        both, raters = (build_rows(train), build_rows(test)), build_raters(votes)
        return Dataset("reviews", "text", "classification", *both, LABELS, "minilm", raters=raters)


def read_member(archive: tarfile.TarFile, file: str) -> tuple[str, str]:
    """Return the text of a file in the archive, and its name there.

    Raises:
        DataError: the archive does not contain the file.
    """
    name = f"hutto_ICWSM_2014/{file}"
    try:
        content = archive.extractfile(name)
    except KeyError:
        content = None
    if content is None:
        raise DataError(f"FP3043 {ARCHIVE} does not contain the file {name}; delete its folder to fetch it again")
    return content.read().decode("utf-8-sig"), name


def parse_ratings(content: str, name: str) -> dict[str, str]:
    """Return the list of ratings of each id, as text, from lines `id TAB mean TAB deviation TAB [3, 2, ...]`.

    Raises:
        DataError: a line does not have this form.
    """
    found = {}
    for number, line in enumerate(content.splitlines(), 1):
        row, *_, given = line.split("\t")
        if line.count("\t") != 3:
            raise DataError(f"FP3044 line {number} of {name} is not `id TAB mean TAB deviation TAB ratings`")
        found[row] = given
    return found


def parse_votes(given: str, domain: str) -> list[int]:
    """Return the ratings in a list that is given as text.

    Raises:
        DataError: it is not a list of whole numbers.
    """
    try:
        votes = json.loads(given)
    except ValueError:
        votes = None
    if not isinstance(votes, list) or not votes or not all(type(vote) is int for vote in votes):
        raise DataError(
            f"FP3045 {given!r:.60} is not a list of ratings of a text from {domain}; delete its folder to fetch it "
            "again"
        )
    return votes


def build_raters(votes: list[list[int]]) -> Raters:
    """Return the raters of texts with at least one rating each; a rating of 0 is half a vote for each class."""
    signs = [np.sign(row) for row in votes]
    share = np.array([(1 + sign.mean()) / 2 for sign in signs])
    return Raters(share, np.array([np.std(row) for row in votes]))


def read_rated(content: str, name: str) -> Iterator[Rated]:
    """Yield the texts in lines `id TAB rating TAB text`; an id is `document_sentence` or a document's number alone.

    Raises:
        DataError: a line does not have this form.
    """
    for number, line in enumerate(content.splitlines(), 1):
        row, _, rest = line.partition("\t")
        rating, tab, text = rest.partition("\t")
        if not tab:
            raise DataError(f"FP3046 line {number} of {name} is not `id TAB rating TAB text`")
        if text.strip():
            yield Rated(row.partition("_")[0], float(rating), text.strip(), row)


def is_new(text: str, seen: set[str]) -> bool:
    """Return whether `seen` has no text with the same letters and digits, and add these."""
    letters = "".join(filter(str.isalnum, text.casefold())) or text
    if letters in seen:
        return False
    seen.add(letters)
    return True


def place(name: str) -> float:
    """Return a number from 0 to 1 for a name, by hash: the same on every machine."""
    return int.from_bytes(hashlib.sha256(name.encode()).digest()[:8]) / 2**64


def build_rows(rows: list[tuple[str, int, str]]) -> Rows:
    """Return texts, labels and owners as `Rows`."""
    return Rows(
        [text for text, _, _ in rows], np.array([y for _, y, _ in rows], np.int64), np.array([o for *_, o in rows])
    )


part = Reviews

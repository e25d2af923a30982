"""Polarity of short texts from four domains: film reviews, product reviews, newspaper editorials and tweets.

Source: the ground truth of VADER (Hutto and Gilbert, ICWSM 2014): 10,605 snippets of film reviews (Pang and Lee), 3,708
sentences of about 300 product reviews (Hu and Liu), 5,190 of 500 editorials and 4,200 tweets, each with 15 or more
human ratings from -4 to 4, and their mean. A text is positive above `margin`, negative below -`margin`; those between,
about which people disagree or which say nothing, are left out. The files lie in the package vaderSentiment 0.5 (MIT);
the texts' own rights are their sources'. What raters have said of test rows a run's calibration is compared with
(`fedpeft.trust.raters`).

Held out for test: a fifth of each domain's documents, chosen by hash; a document is a product review or an editorial,
and each film snippet and tweet is one by itself. A text that occurs twice counts once. Owners are documents,
`domain/number`: numbered as in their files, which are by product and by date, but film snippets by hash, since their
file is sorted by polarity. So the partition `grouped`, which suits these rows, makes clients of documents that belong
together.
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
"""Domain -> how the names of its files begin."""

BY_HASH = ("films",)
"""Domains whose files are sorted by polarity: clients with one class each would be of the file's making."""

LABELS = ("negative", "positive")


class Rated(NamedTuple):
    """A text, the document that it is of, its mean rating, -4 to 4, and what it is called in the files."""

    document: str
    rating: float
    text: str
    name: str


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
        votes: list[list[int]] = []  # of test rows
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
            raise DataError(f"FP3042 no text has a mean rating beyond {self.margin:g}; take a smaller margin")
        both, raters = (build_rows(train), build_rows(test)), build_raters(votes)
        return Dataset("reviews", "text", "classification", *both, LABELS, "minilm", raters=raters)


def read_member(archive: tarfile.TarFile, file: str) -> tuple[str, str]:
    """The text of a file, and what the archive calls it.

    Raises:
        DataError: the archive has none.
    """
    name = f"hutto_ICWSM_2014/{file}"
    try:
        content = archive.extractfile(name)
    except KeyError:
        content = None
    if content is None:
        raise DataError(f"FP3043 {name} in {ARCHIVE} is no file; delete its folder to fetch it again")
    return content.read().decode("utf-8-sig"), name


def parse_ratings(content: str, name: str) -> dict[str, str]:
    """The lists of ratings in the lines `id TAB mean TAB deviation TAB [3, 2, ...]` of a file, as text, by id.

    Raises:
        DataError: a line is not of this form.
    """
    found = {}
    for number, line in enumerate(content.splitlines(), 1):
        row, *_, given = line.split("\t")
        if line.count("\t") != 3:
            raise DataError(f"FP3044 line {number} of {name} is not `id TAB mean TAB deviation TAB ratings`")
        found[row] = given
    return found


def parse_votes(given: str, domain: str) -> list[int]:
    """The ratings in a list, as text.

    Raises:
        DataError: it is no list of whole numbers.
    """
    try:
        votes = json.loads(given)
    except ValueError:
        votes = None
    if not isinstance(votes, list) or not votes or not all(type(vote) is int for vote in votes):
        raise DataError(
            f"FP3045 {given!r:.60} are no ratings of a text from {domain}; delete its folder to fetch it again"
        )
    return votes


def build_raters(votes: list[list[int]]) -> Raters:
    """Of the ratings of each text, at least one; those of 0 are undecided."""
    signs = [np.sign(row) for row in votes]
    share = np.array([(1 + sign.mean()) / 2 for sign in signs])
    return Raters(share, np.array([np.std(row) for row in votes]))


def read_rated(content: str, name: str) -> Iterator[Rated]:
    """The lines `id TAB rating TAB text` of a file; `document_sentence` is an id, or a document's number alone.

    Raises:
        DataError: a line is not of this form.
    """
    for number, line in enumerate(content.splitlines(), 1):
        row, _, rest = line.partition("\t")
        rating, tab, text = rest.partition("\t")
        if not tab:
            raise DataError(f"FP3046 line {number} of {name} is not `id TAB rating TAB text`")
        if text.strip():
            yield Rated(row.partition("_")[0], float(rating), text.strip(), row)


def is_new(text: str, seen: set[str]) -> bool:
    """Whether no text of the same letters and digits is in `seen`, where it is from now on."""
    letters = "".join(filter(str.isalnum, text.casefold())) or text
    if letters in seen:
        return False
    seen.add(letters)
    return True


def place(name: str) -> float:
    """Where a name falls between 0 and 1, the same on every machine."""
    return int.from_bytes(hashlib.sha256(name.encode()).digest()[:8]) / 2**64


def build_rows(rows: list[tuple[str, int, str]]) -> Rows:
    """Texts, labels and owners as `Rows`."""
    return Rows(
        [text for text, _, _ in rows], np.array([y for _, y, _ in rows], np.int64), np.array([o for *_, o in rows])
    )


part = Reviews

"""Files of LEAF (Caldas et al. 2018, arXiv:1812.01097), as its scripts write them.

A file is one JSON object of users, num_samples and user_data. `user_data` has for each user the lists x and y, with one
entry per example. What an entry is depends on the dataset (`LAYOUTS`). `num_samples` is not read: LEAF's scripts keep
the counts from before the split for Reddit, and count 79 too many for the tests of Shakespeare.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fedpeft.data.record_files import read_json_object
from fedpeft.data.record_folders import list_visible
from fedpeft.errors import DataError, shorten_value

USERS, USER_DATA = "users", "user_data"
SIDE = 28
"""Pixels per side of FEMNIST's images."""

CHARACTERS = "0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz"
"""Classes of FEMNIST, in LEAF's order."""

MARKS = ("<BOS>", "<EOS>", "<PAD>")
"""Tokens of Reddit that are not words."""

TWEET = 4
"""Position of the text among the fields of a tweet: id, date, query, user, text."""

BLANKS = {" ": "space", "\n": "newline", "\t": "tab"}
"""Names of classes whose character a label can't be."""


@dataclass(frozen=True)
class LeafExample:
    """One example of a file.

    Attributes:
        place: where it is, for messages.
        user: name of its user.
        x: its input.
        y: its label.
    """

    place: str
    user: str
    x: Any
    y: Any


@dataclass(frozen=True)
class LeafLayout:
    """Layout of one of LEAF's datasets.

    Attributes:
        dataset: name of the dataset.
        content: what x and y are, for messages.
        is_example: returns whether x and y are an example in this layout.
        read_text: returns the text of x, for images what `decode_pixels` reads, or the name of the file.
        read_label: returns the label of y; None: language modeling.
        names: names of the classes in order; None: those that occur.
        pictures: how images are stored: "pixels" or "files"; empty: examples are texts.
    """

    dataset: str
    content: str
    is_example: Callable[[Any, Any], bool]
    read_text: Callable[[Any], str]
    read_label: Callable[[Any], str] | None = None
    names: tuple[str, ...] | None = None
    pictures: str = ""


def _is_class(y: Any, classes: int) -> bool:
    return isinstance(y, int | float) and not isinstance(y, bool) and 0 <= y < classes and y == int(y)


def _is_image(x: Any) -> bool:
    if not isinstance(x, list) or len(x) != SIDE * SIDE:
        return False
    return all(isinstance(value, int | float) and 0 <= value <= 1 for value in x)


def _encode_pixels(x: list[float]) -> str:
    return bytes(np.rint(255 * np.array(x)).astype(np.uint8)).hex()


def decode_pixels(texts: list[str]) -> NDArray[np.uint8]:
    """Return the images of FEMNIST, uint8 (images, 28, 28), 0 to 255; the paper is white."""
    return np.frombuffer(bytes.fromhex("".join(texts)), np.uint8).reshape(len(texts), SIDE, SIDE)


def _is_comment(x: Any) -> bool:
    """Return whether x is a comment: a text, or sequences of tokens."""
    if isinstance(x, str):
        return True
    return isinstance(x, list) and all(
        isinstance(part, list) and all(isinstance(token, str) for token in part) for part in x
    )


def _join_tokens(x: Any) -> str:
    return str(x) if isinstance(x, str) else " ".join(token for part in x for token in part if token not in MARKS)


def _is_tweet(x: Any) -> bool:
    return isinstance(x, list) and len(x) == TWEET + 1 and all(isinstance(field, str) for field in x)


def _is_file_name(x: Any) -> bool:
    return isinstance(x, str) and x.lower().endswith((".jpg", ".png")) and Path(x).name == x


LAYOUTS = (
    LeafLayout(
        "FEMNIST",
        f"{SIDE * SIDE} numbers from 0 to 1 with a class from 0 to {len(CHARACTERS) - 1}",
        lambda x, y: _is_image(x) and _is_class(y, len(CHARACTERS)),
        _encode_pixels,
        lambda y: CHARACTERS[int(y)],
        tuple(CHARACTERS),
        "pixels",
    ),
    LeafLayout(
        "CelebA",
        "the name of an image with 0 or 1",
        lambda x, y: _is_file_name(x) and _is_class(y, 2),
        str,
        lambda y: ("not smiling", "smiling")[int(y)],
        ("not smiling", "smiling"),
        "files",
    ),
    LeafLayout(
        "Sent140",
        "the five fields of a tweet with 0 or 1",
        lambda x, y: _is_tweet(x) and _is_class(y, 2),
        lambda x: str(x[TWEET]),
        lambda y: ("negative", "positive")[int(y)],
        ("negative", "positive"),
    ),
    LeafLayout(
        "Shakespeare",
        "a text with the character that follows",
        lambda x, y: isinstance(x, str) and isinstance(y, str) and len(y) == 1,
        str,
        lambda y: BLANKS.get(y, y),
    ),
    LeafLayout(
        "Reddit",
        "a comment or its sequences of tokens, with an object",
        lambda x, y: _is_comment(x) and isinstance(y, dict),
        _join_tokens,
    ),
)
"""Datasets of LEAF that can be read; the numbers of Synthetic are neither texts nor images."""


def find_layout(example: LeafExample) -> LeafLayout:
    """Return the layout of a dataset that begins with `example`.

    Raises:
        DataError: it is none of `LAYOUTS`.
    """
    for layout in LAYOUTS:
        if layout.is_example(example.x, example.y):
            return layout
    legal = "; ".join(f"{layout.content} ({layout.dataset})" for layout in LAYOUTS)
    raise DataError(
        f"FP3205 {example.place} is not an example of a LEAF dataset that fedpeft reads: x is "
        f"{shorten_value(example.x)} and y is {shorten_value(example.y)}; legal are: {legal}"
    )


def iterate_examples(path: Path) -> Iterator[LeafExample]:
    """Yield the examples of a file, or of the .json files of a folder by name.

    Raises:
        DataError: there is no such file, or one has another layout.
    """
    files = [path]
    if path.is_dir():
        files = [file for file in list_visible(path) if file.suffix.lower() == ".json" and file.is_file()]
    if not files:
        raise DataError(
            f"FP3206 {path} contains no .json file; name a folder data/NAME/data of LEAF, with the folders train and "
            "test that its preprocess.sh writes, or one of its files"
        )
    for file in files:
        content = read_json_object(str(file))
        users, data = content.get(USERS), content.get(USER_DATA)
        if not isinstance(users, list) or not isinstance(data, dict):
            raise DataError(
                f"FP3207 {file} has no list {USERS!r} and no object {USER_DATA!r}, so it is not a file of LEAF; its "
                f"names are {', '.join(map(repr, list(content)[:5]))}"
            )
        for user in users:
            held = data.get(user) if isinstance(user, str) else None
            match held:
                case {"x": list(x), "y": list(y)} if len(x) == len(y):
                    for number, (one, label) in enumerate(zip(x, y, strict=True), 1):
                        yield LeafExample(f"example {number} of the user {user!r} in {file.name}", user, one, label)
                case _:
                    raise DataError(
                        f"FP3208 {file}: {USER_DATA!r} of the user {shorten_value(user)} must be an object with the "
                        "lists x and y of one length"
                    )


def iterate_records(examples: Iterator[LeafExample], layout: LeafLayout) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield the examples as records with the columns text, label (unless it is None) and owner.

    Raises:
        DataError: an example has another layout.
    """
    for example in examples:
        if not layout.is_example(example.x, example.y):
            raise DataError(
                f"FP3209 {example.place} must be {layout.content}, as the first example of this {layout.dataset} is; x "
                f"is {shorten_value(example.x)} and y is {shorten_value(example.y)}"
            )
        record = {"text": layout.read_text(example.x), "owner": example.user}
        if layout.read_label is not None:
            record["label"] = layout.read_label(example.y)
        yield example.place, record

"""Folders of images: a folder for each class, or a table that names file and class.

The table is called metadata.csv, metadata.jsonl or the like and has the column file_name, as image folders of the
`datasets` library do. All images are scaled and center-cropped to one square.
"""

from __future__ import annotations

import os
import unicodedata
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from fedpeft.data.record_files import Record, get_suffix, locate_record, read_records
from fedpeft.data.record_folders import get_stem, list_visible
from fedpeft.data.square_pictures import crop_to_square
from fedpeft.data.table_format import DETECT, TableFormat
from fedpeft.errors import DataError
from fedpeft.machine.hardware import get_free_memory

PICTURES = (".jpg", ".jpeg", ".png", ".bmp", ".gif", ".webp", ".tif", ".tiff", ".ppm", ".pgm")
FORMATS = ("JPEG", "PNG", "BMP", "GIF", "WEBP", "TIFF", "PPM")
"""Legal formats of an image's content, whatever its name; for some others Pillow starts Ghostscript, a program."""

UNREAD = (".heic", ".heif", ".avif", ".jxl", ".dng", ".cr2", ".nef", ".arw", ".dcm", ".svg")
"""Endings of images that can't be read; skipping them silently could lose half of the photos of a phone."""

METADATA = "metadata"
FILE_NAME = "file_name"
SHOWN = 5
"""Number of files that a message names."""

CLASS = "label"
"""Column of the class if folders are classes."""


def list_pictures(folder: Path) -> list[Path]:
    """Return a folder's images by name, including unreadable formats and broken links."""
    return [p for p in list_visible(folder) if not p.is_dir() and p.suffix.lower() in (*PICTURES, *UNREAD)]


def check_readable(pictures: list[Path]) -> list[Path]:
    """Return the same images, or raise DataError if some have a format that can't be read."""
    if unread := [p for p in pictures if p.suffix.lower() in UNREAD]:
        raise DataError(
            f"FP3049 {unread[0].parent} contains {len(unread)} image(s) in a format that can't be read, e.g. "
            f"{unread[0].name}; save them as .jpg or .png, or remove them from the folder (legal are "
            f"{', '.join(PICTURES)})"
        )
    return pictures


def _list_by_class(folder: Path) -> Iterator[tuple[str, Path]]:
    """Yield class and file of each image, from one folder per class.

    Raises:
        DataError: an image would be skipped, because its folder is nested too deep or its format can't be read.
    """
    for sub in list_visible(folder):
        if not sub.is_dir():
            continue
        if deeper := next((p for p in list_visible(sub) if p.is_dir() and list_pictures(p)), None):
            raise DataError(
                f"FP3050 {deeper} contains images, but is a subfolder of the class {sub.name!r}; move the images into "
                f"{sub} itself, or remove them"
            )
        # macOS and its archives write an accent as a character of its own
        name = unicodedata.normalize("NFC", sub.name)
        yield from ((name, picture) for picture in check_readable(list_pictures(sub)))


def find_table(folder: Path) -> Path | None:
    """Return the metadata table in a folder of images, or None."""
    return next((p for p in list_visible(folder) if get_stem(p) == METADATA and get_suffix(p) and p.is_file()), None)


def has_pictures(folder: Path) -> bool:
    """Return whether a folder contains images, by class or with a table."""
    if not folder.is_dir():
        return False
    if list_pictures(folder):
        return True
    return any(p.is_dir() and list_pictures(p) for p in list_visible(folder)) or (
        find_table(folder) is not None
        and not any(get_suffix(p) and get_stem(p) != METADATA for p in list_visible(folder))
    )


def read_picture_records(folder: Path, given: TableFormat = DETECT) -> Iterator[Record]:
    """Yield a record for each image: its path in the column file_name, with its class or the table's other columns.

    Raises:
        DataError: an image has no class or would be skipped; or the table has no column file_name, or names a file
            outside of the folder.
    """
    table = find_table(folder)
    if table is None:
        if loose := list_pictures(folder):
            raise DataError(
                f"FP3051 {folder} contains images without a class, e.g. {loose[0].name}; put each class into a "
                f"folder of its own, or give a {METADATA}.csv with the columns {FILE_NAME} and {CLASS}; for a text or "
                "mask beside each image, set task=captions, towers or patch_labels"
            )
        for name, picture in _list_by_class(folder):
            yield f"{picture.parent.name}/{picture.name}", {FILE_NAME: str(picture), CLASS: name}
        return
    yield from _read_table(table, given)


def _read_table(table: Path, given: TableFormat) -> Iterator[Record]:
    """Yield the table's records, each with the path of its image in the column file_name."""
    for place, record in read_records(str(table), given):
        yield locate_record(place, table.name), record | {FILE_NAME: find_named_file(record, FILE_NAME, place, table)}


def find_named_file(record: Mapping[str, Any], column: str, place: str, table: Path) -> str:
    """Return the path of the image that a column of a table's record names, relative to the table's folder.

    Raises:
        DataError: there is no such column or name, or the image is outside of the folder.
    """
    if column not in record:
        raise DataError(
            f"FP3052 {place} of {table} has no column {column!r}, which names the image; it has "
            f"{', '.join(map(repr, record))}"
        )
    named, folder = record[column], table.parent
    if not isinstance(named, str) or not named:
        raise DataError(f"FP3053 {place} of {table}: the column {column!r} must name an image")
    picture = _find_picture(folder, named)
    if not picture.is_relative_to(os.path.normpath(folder)):
        raise DataError(f"FP3054 {place} of {table}: {named} is outside of {folder}")
    return str(picture)


def _find_picture(folder: Path, named: str) -> Path:
    """Return the path of an image that a table names, with accents in the form that the file system uses."""
    ways = (named, *(unicodedata.normalize(form, named) for form in ("NFC", "NFD")))
    places = [Path(os.path.normpath(folder / way)) for way in ways]  # links stay: large folders are often made of them
    return next((place for place in places if place.exists()), places[0])


def list_unlabeled_pictures(source: Path, given: TableFormat = DETECT) -> list[Record]:
    """Return a record for each image of a folder or table, its path in the column file_name; classes are optional.

    Args:
        source: a folder as for training, a folder of loose images, or a table next to its images.
        given: the format of the table.

    Raises:
        ConfigError: the table's ending is unknown.
        DataError: the folder or file does not exist, has no images, names missing ones, or some would be skipped.
    """
    folder = source.expanduser()
    if not folder.exists():
        raise DataError(f"FP3055 there is no folder or file {source}")
    table = find_table(folder) if folder.is_dir() else folder
    found = list(_read_folder(folder) if table is None else _read_table(table, given))
    if not found:
        raise DataError(
            f"FP3056 {source} contains no images ({', '.join(PICTURES)}), loose or in a folder for each class; give a "
            f"folder that does, or a table with the column {FILE_NAME}"
        )
    if missing := [record[FILE_NAME] for _, record in found if not Path(record[FILE_NAME]).is_file()]:
        raise DataError(
            f"FP3057 {len(missing)} of {len(found)} images of {source} are missing, e.g. {missing[0]}; correct their "
            "names"
        )
    return found


def _read_folder(folder: Path) -> Iterator[Record]:
    """Yield loose images, and those in subfolders with the folder's name as their class."""
    by_class = list(_list_by_class(folder))
    for name, picture in [*(("", loose) for loose in check_readable(list_pictures(folder))), *by_class]:
        told = {CLASS: name} if by_class else {}
        yield str(picture.relative_to(folder)), {FILE_NAME: str(picture), **told}


@contextmanager
def raise_image_errors(name: str) -> Iterator[None]:
    """Raise DataError for an image, called `name`, that can't be decoded or is too large."""
    from PIL import Image

    try:
        yield
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        raise DataError(f"FP3059 {name} can't be read as an image: {' '.join(str(error).split())[:200]}") from None


def check_room(images: int, side: int, channels: int, frames: int = 1) -> None:
    """Check that images fit the free memory; a server may choose `side` and `frames`.

    Raises:
        DataError: they do not.
    """
    needed, free = images * side * side * channels, get_free_memory("cpu")
    if needed > free:
        raise DataError(
            f"FP3583 {images} images ({frames} per example) of {side} pixels per side need {needed / 1e9:.1f} GB of "
            f"memory, and {free / 1e9:.1f} GB are free; give fewer images, or choose a smaller side or fewer frames"
        )


def read_pixels(pictures: list[str], side: int, frames: int = 1) -> np.ndarray:
    """Return the images as uint8 (images, side, side, 3), 0 to 255, rotated as their metadata requires.

    Args:
        pictures: their files.
        side: pixels per side.
        frames: images of each example.

    Raises:
        DataError: files are not images, are damaged, or have pixels with an unknown range; the message names the first
            five and counts the others. Or there is too little memory.
    """
    check_room(len(pictures), side, 3, frames)
    made = np.empty((len(pictures), side, side, 3), np.uint8)
    read_each(pictures, lambda i, opened: made.__setitem__(i, crop_to_square(opened, side)))
    return made


def read_each(pictures: list[str], read: Callable[[int, Any], object]) -> None:
    """Call `read` with the position and the opened file of each image.

    Raises:
        DataError: files are not images, or `read` raised an OSError or ValueError; the message names the first five
            and counts the others.
    """
    from PIL import Image

    wrong = []
    for i, file in enumerate(pictures):
        if not Path(file).is_file():  # reading a pipe would block
            wrong.append(f"FP3058 there is no image {file}")
            continue
        try:
            with raise_image_errors(file), Image.open(file, formats=FORMATS) as opened:
                read(i, opened)
        except DataError as error:
            wrong.append(str(error))
    if wrong:
        more = f"; and {len(wrong) - SHOWN} more of {len(pictures)}" if len(wrong) > SHOWN else ""
        raise DataError("; ".join(wrong[:SHOWN]) + more)

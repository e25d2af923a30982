"""Folders of pictures: a folder for each class, or a table beside them that names file and class.

The table is called metadata.csv, metadata.jsonl or the like, with the column file_name, as the `datasets` library's
image folders have it. All pictures are brought to one square: scaled, and the middle cut out.
"""

from __future__ import annotations

import os
import unicodedata
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from fedpeft.data.record_files import Record, get_suffix, locate_record, read_records
from fedpeft.data.record_folders import get_stem, list_visible
from fedpeft.data.square_pictures import crop_to_square
from fedpeft.data.table_format import DETECT, TableFormat
from fedpeft.errors import DataError

PICTURES = (".jpg", ".jpeg", ".png", ".bmp", ".gif", ".webp", ".tif", ".tiff", ".ppm", ".pgm")
FORMATS = ("JPEG", "PNG", "BMP", "GIF", "WEBP", "TIFF", "PPM")
"""What a picture's content may be, whatever its name: Pillow has Ghostscript, a program, open some other formats."""

UNREAD = (".heic", ".heif", ".avif", ".jxl", ".dng", ".cr2", ".nef", ".arw", ".dcm", ".svg")
"""Endings of pictures that are not read: to pass over a telephone's photographs in silence would lose half of them."""

METADATA = "metadata"
FILE_NAME = "file_name"
SHOWN = 5
"""Files that are named where many are wrong."""

CLASS = "label"
"""The column of the class, where folders are classes."""


def _list_pictures(folder: Path) -> list[Path]:
    """By their names, such that are not read included, and links that lead nowhere."""
    return [p for p in list_visible(folder) if not p.is_dir() and p.suffix.lower() in (*PICTURES, *UNREAD)]


def _check_readable(pictures: list[Path]) -> list[Path]:
    """The same; DataError where some are of a kind that is not read."""
    if unread := [p for p in pictures if p.suffix.lower() in UNREAD]:
        raise DataError(
            f"FP3049 {unread[0].parent} holds {len(unread)} picture(s) of a kind that is not read, e.g. "
            f"{unread[0].name}; save them as .jpg or .png, or take them out of the folder (read are "
            f"{', '.join(PICTURES)})"
        )
    return pictures


def _list_by_class(folder: Path) -> Iterator[tuple[str, Path]]:
    """Class and file of each picture in a folder for each class.

    Raises:
        DataError: pictures that would be passed over: in a folder within that of a class, or of a kind not read.
    """
    for sub in list_visible(folder):
        if not sub.is_dir():
            continue
        if deeper := next((p for p in list_visible(sub) if p.is_dir() and _list_pictures(p)), None):
            raise DataError(
                f"FP3050 {deeper} holds pictures, and is a folder within that of the class {sub.name!r}; put them into "
                f"{sub} itself, or take them out of it"
            )
        # macOS and its archives write an accent as a character of its own
        name = unicodedata.normalize("NFC", sub.name)
        yield from ((name, picture) for picture in _check_readable(_list_pictures(sub)))


def find_table(folder: Path) -> Path | None:
    """The table that tells of a folder's pictures; None: there is none."""
    return next((p for p in list_visible(folder) if get_stem(p) == METADATA and get_suffix(p) and p.is_file()), None)


def has_pictures(folder: Path) -> bool:
    """Whether a folder is one of pictures, by class or with a table."""
    if not folder.is_dir():
        return False
    if _list_pictures(folder):
        return True
    return any(p.is_dir() and _list_pictures(p) for p in list_visible(folder)) or (
        find_table(folder) is not None
        and not any(get_suffix(p) and get_stem(p) != METADATA for p in list_visible(folder))
    )


def read_picture_records(folder: Path, given: TableFormat = DETECT) -> Iterator[Record]:
    """A record for each picture: its path in the column file_name, and its class, or all that the table says.

    Raises:
        DataError: pictures without a class, or that would be passed over; a table without the column file_name, or
            one that leads outside.
    """
    table = find_table(folder)
    if table is None:
        if loose := _list_pictures(folder):
            raise DataError(
                f"FP3051 {folder} holds pictures that are in no class, e.g. {loose[0].name}; put each class into a "
                f"folder of its own, or give a {METADATA}.csv with the columns {FILE_NAME} and {CLASS}"
            )
        for name, picture in _list_by_class(folder):
            yield f"{picture.parent.name}/{picture.name}", {FILE_NAME: str(picture), CLASS: name}
        return
    yield from _read_table(table, given)


def _read_table(table: Path, given: TableFormat) -> Iterator[Record]:
    """The records of a table, each with the path of its picture in the column file_name."""
    folder = table.parent
    for place, record in read_records(str(table), given):
        if FILE_NAME not in record:
            raise DataError(
                f"FP3052 {place} of {table} has no column {FILE_NAME!r}, which names the picture; it has "
                f"{', '.join(map(repr, record))}"
            )
        named = record[FILE_NAME]
        if not isinstance(named, str) or not named:
            raise DataError(f"FP3053 {place} of {table}: the column {FILE_NAME!r} must name a picture")
        picture = _find_picture(folder, named)
        if not picture.is_relative_to(os.path.normpath(folder)):
            raise DataError(f"FP3054 {place} of {table}: {named} is outside of {folder}")
        yield locate_record(place, table.name), record | {FILE_NAME: str(picture)}


def _find_picture(folder: Path, named: str) -> Path:
    """Where a picture is that a table names, its accents written as the table does, or as the file system does."""
    ways = (named, *(unicodedata.normalize(form, named) for form in ("NFC", "NFD")))
    places = [Path(os.path.normpath(folder / way)) for way in ways]  # links stay: large folders are often made of them
    return next((place for place in places if place.exists()), places[0])


def list_unlabeled_pictures(source: Path, given: TableFormat = DETECT) -> list[Record]:
    """A record for each picture of a folder or a table, its path in the column file_name; no classes are needed.

    Args:
        source: a folder as for training, or of pictures in no class; or a table beside its pictures.

    Raises:
        ConfigError: the table's ending does not say how to read it.
        DataError: there is no such folder or file, there are no pictures, some are not where the table says, or some
            would be passed over.
    """
    folder = source.expanduser()
    if not folder.exists():
        raise DataError(f"FP3055 there is no folder or file {source}")
    table = find_table(folder) if folder.is_dir() else folder
    found = list(_read_folder(folder) if table is None else _read_table(table, given))
    if not found:
        raise DataError(
            f"FP3056 {source} holds no pictures ({', '.join(PICTURES)}), loose or in a folder for each class; give a "
            f"folder that does, or a table with the column {FILE_NAME}"
        )
    if missing := [record[FILE_NAME] for _, record in found if not Path(record[FILE_NAME]).is_file()]:
        raise DataError(f"FP3057 {len(missing)} of {len(found)} pictures of {source} are not there, e.g. {missing[0]}")
    return found


def _read_folder(folder: Path) -> Iterator[Record]:
    """Loose pictures, and those in folders of it, with the folder's name as their class."""
    by_class = list(_list_by_class(folder))
    for name, picture in [*(("", loose) for loose in _check_readable(_list_pictures(folder))), *by_class]:
        told = {CLASS: name} if by_class else {}
        yield str(picture.relative_to(folder)), {FILE_NAME: str(picture), **told}


def read_pixels(pictures: list[str], side: int) -> np.ndarray:
    """The pictures as uint8 (pictures, side, side, 3), 0 to 255, turned as their cameras say.

    Raises:
        DataError: files that are no pictures, damaged ones, or such whose numbers do not say what is white; the first
            five are named, and the others counted.
    """
    from PIL import Image

    made, wrong = np.empty((len(pictures), side, side, 3), np.uint8), []
    for i, file in enumerate(pictures):
        if not Path(file).is_file():  # a pipe would be waited for
            wrong.append(f"FP3058 there is no picture {file}")
            continue
        try:
            with Image.open(file, formats=FORMATS) as opened:
                made[i] = crop_to_square(opened, side)
        except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
            wrong.append(f"FP3059 {file} can't be read as a picture: {' '.join(str(error).split())[:200]}")
    if wrong:
        more = f"; and {len(wrong) - SHOWN} more of {len(pictures)}" if len(wrong) > SHOWN else ""
        raise DataError("; ".join(wrong[:SHOWN]) + more)
    return made

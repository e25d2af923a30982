"""Folders of pictures: a folder for each class, or a table beside them that names file and class.

The table is called metadata.csv, metadata.jsonl or the like, with the column file_name, as the `datasets` library's
image folders have it. All pictures are brought to one square: scaled, and the middle cut out.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from fedpeft.data.record_files import Record, records, suffix_of, within
from fedpeft.data.record_folders import stem, visible
from fedpeft.data.square_pictures import square
from fedpeft.errors import DataError

PICTURES = (".jpg", ".jpeg", ".png", ".bmp", ".gif", ".webp", ".tif", ".tiff", ".ppm", ".pgm")
METADATA = "metadata"
FILE_NAME = "file_name"
CLASS = "label"
"""The column of the class, where folders are classes."""


def _pictures(folder: Path) -> list[Path]:
    return [p for p in visible(folder) if p.is_file() and p.suffix.lower() in PICTURES]


def table_of(folder: Path) -> Path | None:
    """The table that tells of a folder's pictures; None: there is none."""
    return next((p for p in visible(folder) if stem(p) == METADATA and suffix_of(p) and p.is_file()), None)


def holds_pictures(folder: Path) -> bool:
    """Whether a folder is one of pictures, by class or with a table."""
    if not folder.is_dir():
        return False
    if _pictures(folder):
        return True
    return any(p.is_dir() and _pictures(p) for p in visible(folder)) or (
        table_of(folder) is not None and not any(suffix_of(p) and stem(p) != METADATA for p in visible(folder))
    )


def picture_records(folder: Path) -> Iterator[Record]:
    """A record for each picture: its path in the column file_name, and its class, or all that the table says.

    Raises:
        DataError: pictures without a class, a table without the column file_name, or one that leads outside.
    """
    table = table_of(folder)
    if table is None:
        if loose := _pictures(folder):
            raise DataError(
                f"{folder} holds pictures that are in no class, e.g. {loose[0].name}; put each class into a folder of "
                f"its own, or give a {METADATA}.csv with the columns {FILE_NAME} and {CLASS}"
            )
        for sub in visible(folder):
            for picture in _pictures(sub) if sub.is_dir() else ():
                yield f"{sub.name}/{picture.name}", {FILE_NAME: str(picture), CLASS: sub.name}
        return
    yield from _of_table(table)


def _of_table(table: Path) -> Iterator[Record]:
    """The records of a table, each with the path of its picture in the column file_name."""
    folder = table.parent
    for place, record in records(str(table)):
        named = record.get(FILE_NAME)
        if not isinstance(named, str) or not named:
            raise DataError(f"{place} of {table}: the column {FILE_NAME!r} must name a picture")
        picture = Path(os.path.normpath(folder / named))  # links stay as they are: large folders are often made of them
        if not picture.is_relative_to(os.path.normpath(folder)):
            raise DataError(f"{place} of {table}: {named} is outside of {folder}")
        yield within(place, table.name), record | {FILE_NAME: str(picture)}


def pictures_to_answer(source: Path) -> list[Record]:
    """A record for each picture of a folder or a table, its path in the column file_name; no classes are needed.

    Args:
        source: a folder as for training, or of pictures in no class; or a table beside its pictures.

    Raises:
        ConfigError: the table's ending does not say how to read it.
        DataError: there is no such folder or file, there are no pictures, or some are not where the table says.
    """
    folder = source.expanduser()
    if not folder.exists():
        raise DataError(f"there is no folder or file {source}")
    table = table_of(folder) if folder.is_dir() else folder
    found = list(_of_folder(folder) if table is None else _of_table(table))
    if not found:
        raise DataError(
            f"{source} holds no pictures ({', '.join(PICTURES)}), loose or in a folder for each class; give a folder "
            f"that does, or a table with the column {FILE_NAME}"
        )
    if missing := [record[FILE_NAME] for _, record in found if not Path(record[FILE_NAME]).is_file()]:
        raise DataError(f"{len(missing)} of {len(found)} pictures of {source} are not there, e.g. {missing[0]}")
    return found


def _of_folder(folder: Path) -> Iterator[Record]:
    """Loose pictures, and those in folders of it, with the folder's name as their class."""
    by_class = [(sub.name, picture) for sub in visible(folder) if sub.is_dir() for picture in _pictures(sub)]
    for name, picture in [*(("", loose) for loose in _pictures(folder)), *by_class]:
        told = {CLASS: name} if by_class else {}
        yield str(picture.relative_to(folder)), {FILE_NAME: str(picture), **told}


def pixels_of(pictures: list[str], side: int) -> np.ndarray:
    """The pictures as uint8 (pictures, side, side, 3), 0 to 255, turned as their cameras say.

    Raises:
        DataError: a file is no picture, a damaged one, or one whose numbers do not say what is white; it is named.
    """
    from PIL import Image

    made = np.empty((len(pictures), side, side, 3), np.uint8)
    for i, file in enumerate(pictures):
        if not Path(file).is_file():  # a pipe would be waited for
            raise DataError(f"there is no picture {file}")
        try:
            with Image.open(file) as opened:
                made[i] = square(opened, side)
        except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
            raise DataError(f"{file} can't be read as a picture: {' '.join(str(error).split())[:200]}") from None
    return made

"""Users' images with what belongs to each: a text, or a mask that labels its pixels.

They are in one of these forms:

- a folder with a.jpg and a.txt, or a.jpg and a.mask.png; folders in it are the owners of their images
- a table, or a folder with a metadata table, whose columns name the image (file_name or image) and contain the text or
  name the mask. Paths are relative to the table, and may not leave its folder.

An image without its text or mask is incomplete, and a text or mask without an image is refused: nothing is skipped
silently.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fedpeft.data.image_folders import (
    FILE_NAME,
    FORMATS,
    check_readable,
    check_room,
    find_named_file,
    find_table,
    list_pictures,
    raise_image_errors,
    read_each,
    read_pixels,
)
from fedpeft.data.images_with_texts import PATCH_LABELS, choose_model
from fedpeft.data.instruction_columns import ColumnReading, Records
from fedpeft.data.masks import list_labels
from fedpeft.data.record_files import Record, locate_record, raise_data_errors, read_records
from fedpeft.data.record_folders import list_visible
from fedpeft.data.rows import Dataset, Rows
from fedpeft.data.table_format import DETECT, TableFormat, detect_format
from fedpeft.data.text_to_text import get_column_text
from fedpeft.errors import ConfigError, DataError
from fedpeft.parts.spec import parse_spec

IMAGE = "image"
"""Column of a table that names the image, beside `FILE_NAME`."""

OWNER = "owner"
"""Column of the folder that an image is in."""

MOST_BYTES = 64 << 10
"""Most bytes of a text beside an image; a larger file is not a caption."""

SIDEWAYS = (5, 6, 7, 8)
"""Values of the metadata's orientation for which a camera's image is turned by 90 degrees."""

ORIENTATION = 0x0112


@dataclass(frozen=True)
class Companion:
    """What belongs to an image.

    Attributes:
        column: default name of its column.
        ending: ending of its file beside the image.
        role: what a record without it lacks, one of `fedpeft.data.incomplete_rows.LACKS`.
    """

    column: str
    ending: str
    role: str


TEXT = Companion("text", ".txt", "text")
MASK = Companion("mask", ".mask.png", "label")

TASKS = {"towers": TEXT, "captions": TEXT, PATCH_LABELS: MASK}
"""Tasks on images with companions."""


def find_companion(task: str) -> Companion:
    """Return what belongs to each image of a task.

    Raises:
        ConfigError: the task is for other data than images with texts or masks.
    """
    name = parse_spec(task).name
    if name not in TASKS:
        raise ConfigError(
            f"FP1731 task={task!r} is not for images with texts or masks; use towers, captions or {PATCH_LABELS}, or "
            "leave task out, since other data determine it"
        )
    return TASKS[name]


def choose_reading(task: str, column: str, packed_into: str) -> ColumnReading:
    """Return how to read images with their texts or masks.

    Args:
        task: a task of `TASKS`, perhaps with settings.
        column: the column of texts or of masks' names.
        packed_into: the column for packed examples.
    """
    companion = find_companion(task)
    return ColumnReading(
        f"images, each with the {companion.column} in the column {column!r}",
        lambda records, source: _pack_records(records, column, packed_into, source),
        {companion.role: column},
        task,
    )


def _pack_records(records: Records, column: str, packed_into: str, source: str) -> Iterator[Record]:
    """Yield the records with the image's path and its text, or its mask's path, as one text.

    Raises:
        DataError: the column holds no text; the message names the record.
    """
    for place, record in records:
        pair = [record[FILE_NAME], get_column_text(record, column, place, source)]
        yield place, {**record, packed_into: json.dumps(pair)}


def read_companion_records(
    path: Path, companion: Companion, column: str, given: TableFormat = DETECT
) -> Iterator[Record]:
    """Yield a record for each image: its path in the column file_name, and its text or its mask's path in `column`.

    Args:
        path: a folder or a table.
        companion: what belongs to each image.
        column: the column of the texts or masks; for a folder without a table, any name.
        given: the format of text files.

    Raises:
        DataError: the path does not exist, a record has no such column or leaves the folder, or a file would be
            skipped.
    """
    if not path.exists():
        raise DataError(f"FP3055 there is no folder or file {path}")
    table = find_table(path) if path.is_dir() else path
    if table is None:
        yield from _read_folder(path, companion, column, given)
        return
    for place, record in read_records(str(table), given):
        named = IMAGE if IMAGE in record and FILE_NAME not in record else FILE_NAME
        image = find_named_file(record, named, place, table)
        if companion is MASK and record.get(column):
            record[column] = find_named_file(record, column, place, table)
        yield locate_record(place, table.name) if path.is_dir() else place, record | {FILE_NAME: image}


def _read_folder(folder: Path, companion: Companion, column: str, given: TableFormat) -> Iterator[Record]:
    subfolders = [sub for sub in list_visible(folder) if sub.is_dir()]
    for place in (folder, *subfolders):
        pictures = [p for p in check_readable(list_pictures(place)) if not p.name.lower().endswith(MASK.ending)]
        deeper = next((p for p in list_visible(place) if p.is_dir() and list_pictures(p)), None)
        if place is not folder and deeper is not None:
            raise DataError(
                f"FP3413 {deeper} contains images, but is two levels below {folder}; put an owner's images into one "
                f"folder in {folder}"
            )
        _check_no_others(place, pictures, companion)
        for picture in pictures:
            beside = picture.with_name(picture.stem + companion.ending)
            value = None
            if beside.is_file():
                value = str(beside) if companion is MASK else _read_text(beside, given)
            owner = {} if place is folder else {OWNER: place.name}
            yield str(picture.relative_to(folder)), {FILE_NAME: str(picture), column: value, **owner}


def find_companion_beside(folder: Path) -> Companion | None:
    """Return what lies beside the images of a folder without a table; None: nothing, or there are no images."""
    if not folder.is_dir() or find_table(folder) is not None:
        return None
    for place in (folder, *(sub for sub in list_visible(folder) if sub.is_dir())):
        for picture in list_pictures(place):
            for companion in (MASK, TEXT):
                if picture.with_name(picture.stem + companion.ending).is_file():
                    return companion
    return None


def _check_no_others(folder: Path, pictures: Sequence[Path], companion: Companion) -> None:
    """Refuse texts or masks whose image is missing."""
    known = {picture.stem + companion.ending for picture in pictures}
    lone = [p.name for p in list_visible(folder) if p.name.lower().endswith(companion.ending) and p.name not in known]
    if lone:
        raise DataError(
            f"FP3414 {len(lone)} file(s) in {folder} end in {companion.ending} and belong to no image, e.g. {lone[0]}; "
            "add the image of the same name, or remove them"
        )


def _read_text(file: Path, given: TableFormat) -> str:
    """Return the text of a file, without spaces around it.

    Raises:
        DataError: it is too large, or not text in the given or detected encoding.
    """
    with raise_data_errors(str(file), given):
        size = file.stat().st_size
        if size > MOST_BYTES:
            raise DataError(
                f"FP3415 {file} has {size:,} bytes, but the text beside an image may have {MOST_BYTES:,}; shorten it"
            )
        return file.read_text(encoding=detect_format(file, str(file), "", given).encoding).strip()


def unpack_rows(rows: Rows, companion: Companion, side: int) -> Rows:
    """Return packed examples as images of `side` pixels with texts, or with masks of the same size.

    Raises:
        DataError: an image or mask can't be read, or they differ in size.
    """
    pairs = [json.loads(row) for row in rows.inputs]
    images, values = [image for image, _ in pairs], [value for _, value in pairs]
    pixels = read_pixels(images, side)
    if companion is MASK:
        return replace(rows, inputs=pixels, masks=read_masks(images, values, side))
    black = [image for image, one in zip(images, pixels, strict=True) if not one.any()]
    if black:  # in `Rows`, such an image is a missing one
        raise DataError(
            f"FP3420 {len(black)} image(s) are black, e.g. {black[0]}, which shows nothing that a text describes; "
            "remove them"
        )
    return replace(rows, inputs=pixels, texts=values)


def read_masks(images: list[str], masks: list[str], side: int) -> NDArray[np.uint8]:
    """Return the masks as uint8 (masks, side, side), cropped as their images are and scaled without mixing labels.

    Raises:
        DataError: a file can't be read, has several channels, or has another size than its image. Or there is too
            little memory.
    """
    check_room(len(masks), side, 1)
    made = np.empty((len(masks), side, side), np.uint8)
    read_each(masks, lambda i, opened: made.__setitem__(i, _convert_mask(opened, images[i], side)))
    return made


def _convert_mask(mask: Any, image: str, side: int) -> NDArray[np.uint8]:
    from PIL import Image, ImageOps

    if mask.mode not in ("L", "P", "1"):
        raise ValueError(f"a mask has one channel of 8 bits (gray, or a palette), and this one is {mask.mode}")
    with raise_image_errors(image), Image.open(image, formats=FORMATS) as opened:
        size = opened.size[::-1] if opened.getexif().get(ORIENTATION) in SIDEWAYS else opened.size
    if mask.size != size:
        raise ValueError(f"the mask has {mask.size[0]} x {mask.size[1]} pixels, and its image {size[0]} x {size[1]}")
    plain = Image.fromarray(np.asarray(mask).astype(np.uint8))  # positions in a palette, not its colors
    return np.asarray(ImageOps.fit(plain, (side, side), Image.Resampling.NEAREST))


def build_companion_dataset(made: Dataset, task: str, side: int, names: tuple[str, ...] | None) -> Dataset:
    """Return an image dataset from one of packed examples.

    Args:
        made: the dataset of packed examples.
        task: a task of `TASKS`, perhaps with settings.
        side: pixels per side.
        names: names of the labels of masks, in order; None: the numbers up to the largest in the training masks.

    Raises:
        DataError: images or masks can't be used.
    """
    read = partial(unpack_rows, companion=find_companion(task), side=side)
    train, test = read(made.train), read(made.test)
    validation = None if made.validation is None else read(made.validation)
    if train.masks is not None and names is None:
        names = list_labels(train.masks, made.name)
    return replace(
        made,
        kind="image",
        task=task,
        train=train,
        test=test,
        validation=validation,
        label_names=names if train.masks is not None else None,
        default_model=choose_model(task),
    )


def get_column(companion: Companion, text: str, label: str | None, default_label: str) -> str:
    """Return the column that a user's settings name: `text` for texts, and `label`, if it is set, for masks."""
    if companion is TEXT:
        return text
    return companion.column if label in (None, default_label) else str(label)

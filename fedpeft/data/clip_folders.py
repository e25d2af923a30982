"""Folders of clips: a folder for each class, and in it a folder of frames for each clip.

Frames are images whose names have the order of time, such as 0001.jpg. A clip is read as `frames` of them, evenly
spaced: a shorter clip repeats some, and a longer one loses some. Video files are not decoded; a program such as ffmpeg
writes their frames: `ffmpeg -i walk.mp4 -vf fps=4 walk/%04d.jpg`.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from fedpeft.data.image_folders import CLASS, FILE_NAME, check_readable, list_pictures, read_pixels
from fedpeft.data.record_files import Record
from fedpeft.data.record_folders import list_visible
from fedpeft.errors import DataError

VIDEOS = (".mp4", ".avi", ".mov", ".mkv", ".webm", ".m4v", ".mpg")
"""Endings of videos, which are not decoded."""


def has_clips(folder: Path) -> bool:
    """Return whether a folder contains a folder for each class with folders of frames."""
    return folder.is_dir() and any(
        list_pictures(clip) for name in list_visible(folder) if name.is_dir() for clip in _list_folders(name)
    )


def read_clip_records(folder: Path) -> Iterator[Record]:
    """Yield a record for each clip: the path of its folder in the column file_name, and its class.

    Raises:
        DataError: the folder does not exist or has no clips, or a file in it would be skipped.
    """
    if not folder.is_dir():
        raise DataError(f"FP3424 there is no folder {folder}; give a folder of classes with a folder for each clip")
    if not has_clips(folder):
        raise DataError(
            f"FP3425 {folder} contains no clips; give a folder for each class, and in it a folder of frames for each "
            "clip: walking/clip_1/0001.jpg"
        )
    for name in _list_folders(folder):
        lone = [p for p in list_visible(name) if not p.is_dir() and p.suffix.lower() in VIDEOS]
        if lone := lone or list_pictures(name):
            raise DataError(
                f"FP3426 {name} contains {lone[0].name} beside folders of frames; a clip is a folder of images in the "
                "order of their names, and videos are not decoded: ffmpeg -i VIDEO FOLDER/%04d.jpg writes them"
            )
        yield from (
            (f"{name.name}/{clip.name}", {FILE_NAME: str(clip), CLASS: name.name}) for clip in _list_folders(name)
        )


def _list_folders(folder: Path) -> list[Path]:
    return [p for p in list_visible(folder) if p.is_dir()]


def list_frames(clip: Path, frames: int) -> list[Path]:
    """Return the files of `frames` frames of a clip in the order of time, evenly spaced from the first to the last.

    Numbers in names count by value, so that 10.jpg follows 9.jpg.

    Raises:
        DataError: the folder has no images.
    """
    found = sorted(check_readable(list_pictures(clip)), key=_order_name)
    if not found:
        raise DataError(f"FP3427 {clip} contains no frames; give images in the order of their names")
    return [found[i] for i in choose_frames(len(found), frames)]


def choose_frames(count: int, frames: int) -> list[int]:
    """Return the positions of `frames` of `count` frames, evenly spaced, with the first and the last."""
    if frames == 1:
        return [count // 2]
    return [round(i * (count - 1) / (frames - 1)) for i in range(frames)]


def _order_name(path: Path) -> list[tuple[int, str]]:
    parts = re.split(r"(\d+)", path.name)
    return [(int(part), "") if part.isdecimal() else (-1, part) for part in parts]


def read_clips(clips: list[str], side: int, frames: int) -> NDArray[np.uint8]:
    """Return the clips in these folders as uint8 (clips, frames, side, side, 3).

    Raises:
        DataError: a folder has no frames, or a file is not an image; the message names the first five. Or there is too
            little memory.
    """
    files = [str(file) for clip in clips for file in list_frames(Path(clip), frames)]
    return read_pixels(files, side, frames).reshape(len(clips), frames, side, side, 3)

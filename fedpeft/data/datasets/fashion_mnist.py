"""Fashion-MNIST: 60,000 training and 10,000 test images of 28 x 28 grey pixels, 10 classes (Xiao et al., arXiv
1708.07747; MIT licence).

Read from the four IDX files (plain or .gz): those of `path`, of the Debian package dataset-fashion-mnist where it is
installed, or of that package fetched with `apt-get download` (31 MB, no root needed).
"""

from __future__ import annotations

import gzip
import shutil
import struct
import subprocess
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from fedpeft.data.rows import Dataset, Rows
from fedpeft.errors import AssetError, DataError
from fedpeft.machine.cache import get_cached_folder
from fedpeft.parts import setting

PACKAGE = "dataset-fashion-mnist"
INSTALLED = Path("/usr/share/dataset-fashion-mnist")
PACKAGE_BYTES = 31_000_000
CLASSES = ("T-shirt", "trouser", "pullover", "dress", "coat", "sandal", "shirt", "sneaker", "bag", "ankle boot")
WAYS = f"install the Debian package {PACKAGE}, or give the folder of the IDX files: fashion_mnist(path='FOLDER')"


@dataclass(frozen=True)
class FashionMnist:
    """Clothes, as small grey images."""

    path: str | None = setting(None, "folder with the IDX files; None: the Debian package")
    rows: int = setting(60_000, "the first so many training images", low=1000, high=60_000)
    test_rows: int = setting(10_000, "the first so many test images", low=100, high=10_000)

    def load(self) -> Dataset:
        """Images uint8 (rows, 28, 28).

        Raises:
            AssetError: the files are not there and can't be fetched.
            DataError: they are not what they should be.
        """
        if self.path is not None:
            folder = Path(self.path).expanduser()
        else:
            folder = INSTALLED if INSTALLED.is_dir() else get_cached_folder(PACKAGE, _fetch, room=3 * PACKAGE_BYTES)
        train, test = (
            Rows(
                read_idx(folder, f"{part}-images-idx3-ubyte")[:count],
                read_idx(folder, f"{part}-labels-idx1-ubyte")[:count].astype(np.int64),
            )
            for part, count in (("train", self.rows), ("t10k", self.test_rows))
        )
        return Dataset("fashion_mnist", "image", "classification", train, test, CLASSES, "dinov2_small")


def read_idx(folder: Path, name: str) -> np.ndarray:
    """The array in an IDX file (Yann LeCun's format, unsigned bytes), compressed or not.

    Raises:
        AssetError: there is no such file.
        DataError: it is no IDX file of bytes, or is cut short.
    """
    for file, opened in ((folder / name, open), (folder / f"{name}.gz", gzip.open)):
        if file.is_file():
            try:
                with opened(file, "rb") as stream:
                    content: bytes = stream.read()
            except (OSError, EOFError) as error:
                raise DataError(f"FP3030 {file} can't be read: {error}") from None
            return _parse_idx(content, file)
    raise AssetError(f"FP2001 there is no {name} or {name}.gz in {folder}; {WAYS}")


def _parse_idx(content: bytes, file: Path) -> np.ndarray:
    if len(content) < 4 or content[:3] != b"\0\0\x08" or len(content) < 4 + 4 * content[3]:
        raise DataError(f"FP3031 {file} is not an IDX file of unsigned bytes")
    shape = struct.unpack_from(f">{content[3]}I", content, 4)
    data = np.frombuffer(content, np.uint8, offset=4 + 4 * content[3])
    if data.size != np.prod(shape, dtype=np.int64):
        raise DataError(
            f"FP3032 {file} holds {data.size} bytes of {'x'.join(map(str, shape))}; it is cut short or damaged"
        )
    return data.reshape(shape)


def _fetch(target: Path) -> None:
    work = target / ".download"
    work.mkdir()
    for tool in ("apt-get", "dpkg-deb"):
        if shutil.which(tool) is None:
            raise AssetError(f"FP2002 Fashion-MNIST is not here, and there is no {tool} to fetch it with; {WAYS}")
    for command in (["apt-get", "download", PACKAGE], ["dpkg-deb", "-x", "PACKAGE", "."]):
        words = [str(next(work.glob("*.deb"))) if word == "PACKAGE" else word for word in command]
        done = subprocess.run(words, cwd=work, capture_output=True, text=True, check=False)
        if done.returncode or not any(work.glob("*.deb")):
            said = (done.stderr or done.stdout).strip().splitlines()
            raise AssetError(f"FP2003 {PACKAGE} can't be fetched ({said[-1] if said else command[0]}); {WAYS}")
    for file in work.rglob("*idx*-ubyte*"):
        if file.is_file() and not file.is_symlink():
            shutil.copyfile(file, target / file.name)
    shutil.rmtree(work)


part = FashionMnist

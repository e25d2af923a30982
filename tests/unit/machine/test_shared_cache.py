"""Object storage as a cache of many machines: what comes back is what was put, or is made anew."""

import errno
import importlib.util
import json
import os

import numpy as np
import pytest

from fedpeft.machine import cache
from fedpeft.machine.shared_cache import VARIABLE, get_shared_cache
from tests.refusals import refuses


@pytest.fixture(params=["memory", "file"])
def shared(request, tmp_path, monkeypatch):
    """Return a shared cache; it and this machine's own cache are empty."""
    url = f"memory://{tmp_path.name}" if request.param == "memory" else f"file://{tmp_path}/bucket"
    monkeypatch.setenv(VARIABLE, url)
    monkeypatch.setenv("FEDPEFT_CACHE", str(tmp_path / "one"))
    return get_shared_cache()


def other_machine(monkeypatch, tmp_path):
    monkeypatch.setenv("FEDPEFT_CACHE", str(tmp_path / "two"))


def computed():
    raise AssertionError("it was there")


def test_what_one_machine_has_computed_another_reads(shared, tmp_path, monkeypatch):
    made = {"ids": np.arange(12).reshape(3, 4), "labels": np.array([1.5, 2.5])}
    cache.load_arrays("rows", "abc", lambda: made)
    other_machine(monkeypatch, tmp_path)
    found = cache.load_arrays("rows", "abc", computed)
    assert found.keys() == made.keys()
    assert all(np.array_equal(found[name], made[name]) for name in made)
    assert (tmp_path / "two" / "rows-abc").stat().st_mode & 0o077 == 0  # rows are nobody else's


def test_a_damaged_file_is_computed_anew_and_nothing_of_it_stays(shared, tmp_path, monkeypatch):
    cache.load_arrays("rows", "abc", lambda: {"ids": np.arange(3), "old": np.arange(2)})
    shared.system.pipe_file(f"{shared.root}/rows-abc/ids.npy", b"something else")
    other_machine(monkeypatch, tmp_path)
    assert sorted(cache.load_arrays("rows", "abc", lambda: {"ids": np.arange(4)})) == ["ids"]
    monkeypatch.setenv("FEDPEFT_CACHE", str(tmp_path / "three"))
    assert len(cache.load_arrays("rows", "abc", computed)["ids"]) == 4  # and mended in the storage


def test_a_folder_without_its_manifest_is_not_there_yet(shared, tmp_path, monkeypatch):
    cache.load_arrays("rows", "abc", lambda: {"ids": np.arange(3)})
    shared.system.rm_file(f"{shared.root}/rows-abc/manifest.json")
    other_machine(monkeypatch, tmp_path)
    assert len(cache.load_arrays("rows", "abc", lambda: {"ids": np.arange(5)})["ids"]) == 5


def test_an_object_that_was_cut_is_missing(shared):
    shared.write("frozen-x/0000001", b"values")
    assert shared.read("frozen-x/0000001") == b"values"
    assert shared.read("frozen-x/0000002") is None
    whole = shared.system.cat_file(f"{shared.root}/frozen-x/0000001")
    shared.system.pipe_file(f"{shared.root}/frozen-x/0000001", whole[:-1])
    assert shared.read("frozen-x/0000001") is None


@pytest.mark.parametrize("file", ["../outside", "/etc/outside", "a/../../outside", ".hidden", ""])
def test_a_manifest_cannot_name_files_elsewhere(shared, tmp_path, file):
    shared.write("rows-abc/manifest.json", json.dumps({"files": {file: "0" * 64}}).encode())
    with refuses("FP2028"):
        shared.fetch("rows-abc", tmp_path)


@pytest.mark.parametrize("text", [b"", b"[]", b"{}", b'{"files": [[1, "a"]]}', b'{"files": {"a": 1}}'])
def test_what_is_no_manifest_is_one_sentence(shared, tmp_path, text):
    shared.write("rows-abc/manifest.json", text)
    with refuses("FP2028"):
        shared.fetch("rows-abc", tmp_path)


def test_a_folder_made_before_is_offered_and_one_from_elsewhere_is_not(shared, tmp_path, monkeypatch):
    (tmp_path / "one" / "model-1" / "deep").mkdir(parents=True)
    (tmp_path / "one" / "model-1" / "deep" / "weights").write_bytes(b"w")
    (tmp_path / "own").mkdir()
    cache.offer(tmp_path / "one" / "model-1")
    cache.offer(tmp_path / "own")
    other_machine(monkeypatch, tmp_path)
    there = cache.find_local_folder(tmp_path / "gone" / "model-1")
    assert there == tmp_path / "two" / "model-1"
    assert (there / "deep" / "weights").read_bytes() == b"w"
    assert cache.find_local_folder(tmp_path / "own") == tmp_path / "own"
    with refuses("FP2016"):
        cache.find_local_folder(tmp_path / "gone" / "own")


def test_a_url_that_nobody_knows_is_one_sentence(monkeypatch):
    monkeypatch.setenv(VARIABLE, "nothing://bucket")
    with refuses("FP2029", "FEDPEFT_SHARED_CACHE", "nothing://bucket", "nothing"):
        get_shared_cache()


@pytest.mark.skipif(importlib.util.find_spec("s3fs") is not None, reason="s3fs is installed")
def test_what_a_storage_needs_is_asked_for(monkeypatch):
    monkeypatch.setenv(VARIABLE, "s3://bucket/folder")
    with refuses("FP2008", "s3fs", "cloud"):
        get_shared_cache()


def test_a_full_disk_of_this_machine_is_not_told_as_the_storage_s(shared, tmp_path, monkeypatch):
    cache.load_arrays("rows", "abc", lambda: {"ids": np.arange(3)})
    other_machine(monkeypatch, tmp_path)

    def full(*_, **__):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(type(shared.system), "get_file", full)
    with refuses("FP2017", "two", "rows-abc"):
        cache.load_arrays("rows", "abc", lambda: {"ids": np.arange(3)})


def test_a_storage_that_cannot_be_written_is_one_sentence(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("no folder")
    monkeypatch.setenv(VARIABLE, f"file://{tmp_path}/file/bucket")
    monkeypatch.setenv("FEDPEFT_CACHE", str(tmp_path / "one"))
    with refuses("FP2029"):
        cache.load_arrays("rows", "abc", lambda: {"ids": np.arange(3)})

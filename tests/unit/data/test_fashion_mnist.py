"""IDX files as they are, compressed or not, and what is said where they are missing or broken."""

from __future__ import annotations

import gzip
import struct

import numpy as np
import pytest

from fedpeft.data.datasets import fashion_mnist
from fedpeft.data.rows import load_dataset
from tests.refusals import refuses


def write(folder, compressed):
    folder.mkdir()
    random = np.random.default_rng(0)
    for part, rows in (("train", 1200), ("t10k", 150)):
        images = random.integers(0, 256, (rows, 28, 28), dtype=np.uint8)
        labels = np.resize(np.arange(10, dtype=np.uint8), rows)
        for name, array in ((f"{part}-images-idx3-ubyte", images), (f"{part}-labels-idx1-ubyte", labels)):
            content = b"\0\0\x08" + bytes([array.ndim]) + struct.pack(f">{array.ndim}I", *array.shape) + array.tobytes()
            if compressed:
                (folder / f"{name}.gz").write_bytes(gzip.compress(content))
            else:
                (folder / name).write_bytes(content)
    return folder


@pytest.mark.parametrize("compressed", [True, False])
def test_a_local_folder_is_read(tmp_path, compressed):
    data = load_dataset(f"fashion_mnist(path='{write(tmp_path / 'idx', compressed)}', rows=1000)")
    assert data.train.inputs.shape == (1000, 28, 28)
    assert len(data.test) == 150
    assert data.classes == 10
    assert data.train.labels[:3].tolist() == [0, 1, 2]
    assert data.default_model == "dinov2_small"


def test_missing_and_broken_files_are_one_sentence(tmp_path, monkeypatch):
    with refuses("FP2001", "train-images-idx3-ubyte", "install the Debian package"):
        load_dataset(f"fashion_mnist(path='{tmp_path}')")
    folder = write(tmp_path / "idx", False)
    file = folder / "train-images-idx3-ubyte"
    file.write_bytes(file.read_bytes()[:-5])
    with refuses("FP3032"):
        load_dataset(f"fashion_mnist(path='{folder}')")
    file.write_bytes(b"GIF89a")
    with refuses("FP3031"):
        load_dataset(f"fashion_mnist(path='{folder}')")
    monkeypatch.setenv("FEDPEFT_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(fashion_mnist, "INSTALLED", tmp_path / "nowhere")
    monkeypatch.setattr("shutil.which", lambda tool: None)
    with refuses("FP2002", "apt-get"):
        load_dataset("fashion_mnist")

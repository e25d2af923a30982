"""Files that grow when they are read: pictures, Parquet and Arrow files of a data set that somebody else has made."""

from __future__ import annotations

import itertools
import struct
import zlib

import numpy as np
import pytest

from fedpeft.commands.check import main
from fedpeft.data import record_files
from fedpeft.data.image_folders import read_pixels
from fedpeft.data.record_files import read_records
from tests.refusals import refuses

pa = pytest.importorskip("pyarrow")
LONG = "x" * 1000


def chunk(kind, content):
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))


def test_a_picture_of_a_billion_pixels_is_refused_by_name(tmp_path):
    """110 kB on the disk, 2.7 GB as RGB."""
    side, packed = 30_000, zlib.compressobj(9)
    lines = b"".join(packed.compress(bytes(side // 8 + 1)) for _ in range(side)) + packed.flush()
    parts = [chunk(b"IHDR", struct.pack(">IIBBBBB", side, side, 1, 0, 0, 0, 0)), chunk(b"IDAT", lines),
             chunk(b"IEND", b"")]  # fmt: skip
    (tmp_path / "bomb.png").write_bytes(b"\x89PNG\r\n\x1a\n" + b"".join(parts))
    assert (tmp_path / "bomb.png").stat().st_size < 200_000
    with refuses("FP3059", "bomb.png", side**2) as error:
        read_pixels([str(tmp_path / "bomb.png")], 28)
    assert "\n" not in str(error.value)


def column(rows):
    """Return a column of `rows` long texts that takes four bytes per text."""
    return pa.DictionaryArray.from_arrays(pa.array(np.zeros(rows, np.int32)), pa.array([LONG]))


def test_a_parquet_file_of_gigabytes_is_read_in_batches(tmp_path):
    """200 kB on the disk, 2 GB as texts."""
    from pyarrow import parquet

    table = pa.table({"text": column(2_000_000)}).cast(pa.schema({"text": pa.dictionary(pa.int32(), pa.string())}))
    parquet.write_table(table, tmp_path / "bomb.parquet", compression="zstd", store_schema=False)
    del table
    assert (tmp_path / "bomb.parquet").stat().st_size < 1_000_000
    before = pa.total_allocated_bytes()
    for _, record in itertools.islice(read_records(str(tmp_path / "bomb.parquet")), 10_000):
        assert record == {"text": LONG}
        assert pa.total_allocated_bytes() - before < 100_000_000


@pytest.mark.parametrize("limit", ["MOST_ROWS", "MOST_BYTES"])
def test_a_parquet_file_that_is_too_large_is_refused_before_it_is_decoded(tmp_path, monkeypatch, limit):
    """40 million rows took 300 kB on the disk, and minutes to read."""
    from pyarrow import parquet

    parquet.write_table(pa.table({"text": [LONG] * 2000}), tmp_path / "bomb.parquet", compression="zstd")
    _, first = next(read_records(str(tmp_path / "bomb.parquet")))
    assert first == {"text": LONG}
    monkeypatch.setattr(record_files, limit, 1999)
    with refuses("FP3195" if limit == "MOST_ROWS" else "FP3194", "bomb.parquet", "1,999"):
        next(read_records(str(tmp_path / "bomb.parquet")))
    assert main([str(tmp_path / "bomb.parquet")]) == 2


def test_an_arrow_file_of_too_many_rows_is_refused(tmp_path, monkeypatch):
    with pa.ipc.new_file(tmp_path / "bomb.arrow", pa.schema({"text": pa.string()})) as to:
        to.write_table(pa.table({"text": ["x"] * 2000}))
    assert len(list(read_records(str(tmp_path / "bomb.arrow")))) == 2000
    monkeypatch.setattr(record_files, "MOST_ROWS", 1999)
    with refuses("FP3195", "bomb.arrow", "1,999"):
        list(read_records(str(tmp_path / "bomb.arrow")))


def test_an_arrow_file_that_announces_more_than_any_memory_is_refused(tmp_path):
    """The length of a compressed buffer is a number in the file."""
    file, texts = tmp_path / "bomb.arrow", pa.array([LONG] * 1000)
    with pa.ipc.new_file(
        file, pa.schema({"text": pa.string()}), options=pa.ipc.IpcWriteOptions(compression="zstd")
    ) as to:
        to.write_table(pa.table({"text": texts}))
    content, true = file.read_bytes(), struct.pack("<q", 1000 * len(LONG))
    assert content.count(true) == 1
    file.write_bytes(content.replace(true, struct.pack("<q", 2**60)))
    with refuses("FP3123", "bomb.arrow", ".arrow") as error:
        list(read_records(str(file)))
    assert "\n" not in str(error.value)

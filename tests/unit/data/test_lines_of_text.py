"""Rows from a .txt file: one a line."""

import gzip
import json

import pytest

from fedpeft.data.record_files import read_records
from fedpeft.data.rows import load_dataset
from tests.refusals import refuses

CONTENT = "\ufefffirst, and so on\r\n\r\n  second\n".encode()


@pytest.mark.parametrize("gz", [False, True])
def test_lines_are_rows_of_a_language_model(gz, tmp_path):
    path = tmp_path / f"my.txt{'.gz' if gz else ''}"
    path.write_bytes(gzip.compress(CONTENT) if gz else CONTENT)
    assert list(read_records(str(path))) == [("line 1", {"text": "first, and so on"}), ("line 3", {"text": "  second"})]
    loaded = load_dataset(f"file(path={str(path)!r}, label=None, test_fraction=0.5)")
    assert (len(loaded.train), len(loaded.test), loaded.task) == (1, 1, "causal_lm")


def test_what_has_no_labels_or_no_lines_is_one_sentence(tmp_path):
    path, blank = tmp_path / "my.txt", tmp_path / "blank.txt"
    path.write_bytes(CONTENT)
    blank.write_text(" \n\n")
    with refuses("FP3155", "label", "label", "label=None"):
        load_dataset(f"file:{path}")
    with refuses("FP3114"):
        list(read_records(str(blank)))


def test_a_text_beside_files_of_rows_is_none_of_them(tmp_path):
    rows = [{"text": f"a text, {k}", "label": "ab"[k % 2]} for k in range(40)]
    (tmp_path / "one.jsonl").write_text("\n".join(map(json.dumps, rows)))
    (tmp_path / "README.txt").write_text("What these rows are.")
    loaded = load_dataset(f"file:{tmp_path}")
    assert len(loaded.train) + len(loaded.test) == len(rows)

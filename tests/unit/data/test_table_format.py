"""Separators, encodings and decimal commas of a user's files: set, detected and reported, or refused."""

from __future__ import annotations

import csv
import gzip
import io
from pathlib import Path

import pytest
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st

from fedpeft.data.label_columns import LabelColumn
from fedpeft.data.record_files import read_records
from fedpeft.data.record_folders import format_notes
from fedpeft.data.rows import load_dataset
from fedpeft.data.table_format import TableFormat
from fedpeft.errors import DataError
from tests.refusals import refuses

WESTERN = "abc xyz ÄÖÜäöüß éèêàâç 0123456789 .,;:|\t'\"?!-()\n"
GERMAN = "text;label\nÜber die Schulter gestürzt;weiß\nGrößere Wunde – genäht;schwarz\n"


def written(
    rows: list[list[str]], sep: str, encoding: str, quoting: int = csv.QUOTE_MINIMAL, end: str = "\r\n"
) -> bytes:
    stream = io.StringIO(newline="")
    csv.writer(stream, delimiter=sep, quoting=quoting, lineterminator=end).writerows(rows)
    return stream.getvalue().encode(encoding)


def read(path: Path, given: TableFormat | None = None) -> list[list[str]]:
    found = [record for _, record in read_records(str(path), *([given] if given else []))]
    return [list(found[0]), *(list(record.values()) for record in found)]


def table(alphabet: st.SearchStrategy[str]) -> st.SearchStrategy[list[list[str]]]:
    cell = st.text(alphabet, max_size=12)
    columns = st.integers(1, 4)
    return columns.flatmap(
        lambda count: st.lists(st.lists(cell, min_size=count, max_size=count), min_size=1, max_size=8).map(
            lambda rows: [[f"column {i}" for i in range(count)], *rows]
        )
    )


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    rows=table(st.characters(codec="utf-8", exclude_characters="\0\r")),
    sep=st.sampled_from([*",;\t|", "^", "~"]),
    encoding=st.sampled_from(["utf-8", "utf-8-sig", "utf-16", "utf-32", "utf-16-le"]),
    quoting=st.sampled_from([csv.QUOTE_MINIMAL, csv.QUOTE_ALL]),
    end=st.sampled_from(["\n", "\r\n"]),
    packed=st.booleans(),
)
def test_any_table_comes_back_under_its_settings(tmp_path, rows, sep, encoding, quoting, end, packed):
    assume(all(any(row) or len(row) > 1 for row in rows))  # a row of one empty cell is a blank line
    path = tmp_path / ("t.csv.gz" if packed else "t.csv")
    content = written(rows, sep, encoding, quoting, end)
    path.write_bytes(gzip.compress(content) if packed else content)
    assert read(path, TableFormat(sep, encoding)) == rows


@settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    rows=table(st.sampled_from(WESTERN)),
    sep=st.sampled_from(",;\t|"),
    encoding=st.sampled_from(["utf-8", "utf-8-sig", "utf-16", "cp1252", "latin-1"]),
)
def test_a_western_table_is_read_as_written_or_refused(tmp_path, rows, sep, encoding):
    assume(all(any(row) or len(row) > 1 for row in rows))
    path = tmp_path / "t.csv"
    path.write_bytes(written(rows, sep, encoding))
    try:
        found = read(path)
    except DataError:
        others = set(",;\t|\"'") - {sep}
        assert len(rows[0]) == 1 or any(not cell.isascii() or others & set(cell) for row in rows for cell in row)
    else:
        assert found == rows


@pytest.mark.parametrize(
    ("content", "note"),
    [
        (GERMAN.encode(), "sep=';'"),
        (GERMAN.encode("utf-8-sig"), "sep=';'"),
        (GERMAN.replace(";", ",").encode("cp1252"), "encoding='cp1252'"),
        (GERMAN.replace("–", "-").encode("latin-1"), "sep=';', encoding='cp1252'"),
        (GERMAN.replace(";", "\t").encode("utf-16"), "sep='tab', encoding='utf-16'"),
        (GERMAN.replace(";", "|").encode(), "sep='|'"),
        (b"sep=;\r\n" + GERMAN.encode(), "sep=';'"),
        (b"text;label\na, b;x, y\n", "sep=';'"),
        (b'text;label\n"a\nb;c";x\nd;y\n', "sep=';'"),
        ("text;label\nél;x\nça;y\n".encode("cp1252"), "sep=';', encoding='cp1252'"),
        ("text;label\nação;x\nnão;y\n".encode("cp1252"), "sep=';', encoding='cp1252'"),
        ("text;label\nblåbær;x\nrødgrød;y\n".encode("cp1252"), "sep=';', encoding='cp1252'"),
    ],
)
def test_what_excel_writes_is_detected_and_reported(tmp_path, content, note):
    path = tmp_path / "t.csv"
    path.write_bytes(content)
    assert list(next(iter(read_records(str(path))))[1]) == ["text", "label"]
    assert format_notes(path) == [f"detected in t.csv: {note}"]


def test_plain_files_report_nothing_and_stay_as_they_are(tmp_path):
    for name, content in (
        ("t.csv", "text,label\na; b,x\n"),
        ("t.tsv", "text\tlabel\na, b\tx\n"),
        ("o.csv", "text\na;b\n"),
    ):
        (tmp_path / name).write_text(content)
        assert format_notes(tmp_path / name) == []
        first = next(iter(read_records(str(tmp_path / name))))[1]
        assert first["text"] == content.splitlines()[1].split("\t" if name == "t.tsv" else ",")[0]


def test_unicode_text_of_excel_is_a_table_and_other_texts_are_lines(tmp_path):
    (tmp_path / "t.txt").write_bytes("text\tlabel\nschön\tx\n".encode("utf-16"))
    assert read(tmp_path / "t.txt") == [["text", "label"], ["schön", "x"]]
    (tmp_path / "l.txt").write_bytes("schön; und gut\n".encode("cp1252"))
    assert read(tmp_path / "l.txt") == [["text"], ["schön; und gut"]]


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("text;label\nзуб;x\n".encode("cp1251"), ("FP3185", "t.csv", "UTF-8", "byte 11", "encoding='ENCODING'")),
        ("text;label\ndługą łydką;x\n".encode("cp1250"), ("FP3185", "t.csv", "UTF-8")),
        ("text;label\nKönig;x\n".encode("cp850"), ("FP3185", "t.csv", "UTF-8")),
        ("text;label\nKönig;x\n".encode("mac-roman"), ("FP3185", "t.csv", "UTF-8")),
        ("text;label\nπόνος;x\n".encode("iso-8859-7"), ("FP3185", "t.csv", "UTF-8")),
        ("text;label\nağrı;x\n".encode("cp1254"), ("FP3185", "t.csv", "UTF-8")),
        ("text;label\nschön;x\n".encode() + "schön;y\n".encode("cp1252"), ("FP3185", "t.csv", "UTF-8")),
        ("text,label\na,x\n".encode("utf-16-le"), ("FP3184", "t.csv", "utf-16-le")),
        (b"text,label\na\0b,x\n", ("FP3184", "t.csv")),
        (b"text,label\n\xe4\0b,x\n", ("FP3184", "t.csv")),
        (b"a,b;c\n1,2;3\n4,5;6\n", ("FP3186", "','", "';'", "sep=',')", "sep=';')")),
    ],
)
def test_an_ambiguous_file_is_one_sentence_with_the_setting(tmp_path, content, words):
    path = tmp_path / "t.csv"
    path.write_bytes(content)
    with refuses(*words) as caught:
        load_dataset(f"file:{path}")
    assert "\n" not in str(caught.value)


def test_late_bytes_and_huge_fields_are_read_in_pieces(tmp_path):
    """The encoding is that of the whole file, and a cell may be longer than what is looked at."""
    path = tmp_path / "t.csv"
    long = "wort " * 500_000
    path.write_bytes(f'text;label\n"{long}";x\n"{long}";y\nschön;z\n'.encode("cp1252"))
    assert [len(row[0]) for row in read(path)[1:]] == [len(long), len(long), 5]
    assert format_notes(path) == ["detected in t.csv: sep=';', encoding='cp1252'"]
    path.write_bytes(b"text,label\n" + b"a,x\n" * 400_000 + "ä,y\n".encode())
    assert format_notes(path) == []


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ("sep=';;'", ("FP1496", "sep=';;'")),
        ("sep=a", ("FP1496", "sep='a'")),
        ("encoding=latin9000", ("FP1497", "encoding='latin9000'")),
        ("encoding=base64", ("FP1497", "encoding='base64'")),
        ("decimal=';'", ("FP1227", "decimal", "';'")),
    ],
)
def test_a_setting_that_is_none_is_one_sentence(settings, words):
    with refuses(*words):
        load_dataset(f"file(path='x.csv', {settings})")


def test_a_wrong_setting_is_one_sentence(tmp_path):
    path = tmp_path / "t.csv"
    path.write_text("text;label\nschön;x\n")
    with refuses("FP3182", "t.csv", "ascii", "byte 14"):
        load_dataset(f"file(path={str(path)!r}, encoding=ascii)")
    with refuses("FP3183", "';'", "file(path=", "sep=';')", "','"):
        load_dataset(f"file(path={str(path)!r}, sep=',')")


# ------------------------------------------------------------------------------------------------------ decimal commas


def labels(values, asked="auto", decimal="auto"):
    column = LabelColumn("y", asked, TableFormat(decimal=decimal, setting="file(path='f', NAME=VALUE)"))
    for number, value in enumerate(values, 1):
        column.add(value, f"row {number} of f")
    return column.parse()


@given(st.lists(st.decimals(-9999, 9999, places=2), min_size=1, max_size=30))
def test_numbers_come_back_under_either_decimal_sign(numbers):
    for decimal, thousands in (",", "."), (".", ","):
        spelled = [f"{n:,.2f}".translate({ord("."): decimal, ord(","): thousands}) for n in numbers]
        found = labels(spelled, "number", decimal)
        assert list(found.values) == [float(n) for n in numbers]


@given(st.lists(st.integers(0, 99_999), min_size=1, max_size=30), st.integers(1, 3))
def test_a_comma_is_never_taken_for_a_decimal_sign_if_it_may_separate_thousands(numbers, digits):
    spelled = [f"{n // 10**digits},{n % 10**digits:0{digits}}" for n in numbers]
    if all(len(word.split(",")[1]) == 3 and word[0] != "0" and len(word) < 8 for word in spelled):
        with refuses("FP3072", "decimal=','"):
            labels(spelled, "number")
    else:
        found = labels(spelled, "number")
        assert list(found.values) == [float(word.replace(",", ".")) for word in spelled]


@pytest.mark.parametrize(
    ("values", "taken"),
    [
        (["36,5", "37,25", "38"], [36.5, 37.25, 38.0]),
        (["1.234,5", "12,25", "1000"], [1234.5, 12.25, 1000.0]),
        (["-0,5", "+1,5"], [-0.5, 1.5]),
        (["0,500", "1,500"], [0.5, 1.5]),
    ],
)
def test_a_comma_with_one_reading_is_taken_and_reported(values, taken):
    found = labels(values, "number")
    assert list(found.values) == taken
    assert any("decimal=','" in note for note in found.notes)


@pytest.mark.parametrize(
    ("values", "decimal", "words"),
    [
        (["1,234", "5,678"], "auto", ("row 1 of f", "'1,234'", "1234", "1.234", "decimal='.')")),
        (["36,5", "37.5"], "auto", ("row 1 of f", "'36,5'")),
        (["37.5", "1,234"], "auto", ("row 2 of f",)),
        (["1.234,5", "1.000"], "auto", ("row 1 of f", "1234.5", "decimal=',')", "1234.5")),
        (["36,5", "37.5"], ",", ("row 2 of f", "'37.5'")),
        (["1,5"], ".", ("row 1 of f", "'1,5'")),
        (["1,2,3"], "auto", ("'1,2,3'",)),
        (["١,٥"], "auto", ("'١,٥'",)),
    ],
)
def test_a_comma_with_two_readings_is_refused(values, decimal, words):
    with refuses("FP3072", *words) as caught:
        labels(values, "number", decimal)
    assert "\n" not in str(caught.value)


def test_a_decimal_comma_makes_few_numbers_and_columns_of_0_and_1_readable():
    few = ["1,5", "2,0", "2,5"] * 20
    assert labels(few, decimal=",").kind == "number"
    assert (labels(few).kind, labels(few).values[:3]) == ("class", ["1,5", "2,0", "2,5"])
    assert "decimal=','" in labels(few).notes[0]
    column = LabelColumn("wet + loud")
    column.add_columns(["1,0", "0,0"], "row 1")
    assert column.parse().values == [("wet",)]


def test_an_excel_file_of_a_hospital_is_one_command(tmp_path):
    rows = [["befund", "temperatur"], *([f"Patient {i} über Nacht fiebrig", f"{36 + i % 5},{i:02}"] for i in range(60))]
    path = tmp_path / "werte.csv"
    path.write_bytes(written(rows, ";", "latin-1"))
    told = load_dataset(
        f"file(path={str(path)!r}, text=befund, label=temperatur, sep=';', encoding='latin-1', decimal=',')"
    )
    found = load_dataset(f"file(path={str(path)!r}, text=befund, label=temperatur)")
    assert told.task == found.task
    assert told.train.inputs == found.train.inputs
    assert told.train.labels.tolist() == found.train.labels.tolist()
    assert max(told.train.labels) < 41
    assert "detected in werte.csv: sep=';', encoding='cp1252'" in found.notes
    assert any("decimal=','" in note for note in found.notes)


def test_files_of_a_folder_may_differ_and_each_format_is_reported_once(tmp_path):
    rows = [["text", "label"], *([f"schön {i}", "ab"[i % 2]] for i in range(20))]
    for name, sep, encoding in (("a", ";", "cp1252"), ("b", ",", "utf-8"), ("c", ";", "cp1252"), ("d", "\t", "utf-16")):
        (tmp_path / f"{name}.csv").write_bytes(written(rows, sep, encoding))
    data = load_dataset(f"file:{tmp_path}")
    assert len(data.train) + len(data.test) == 80
    assert sorted(set(data.train.inputs) | set(data.test.inputs)) == sorted(row[0] for row in rows[1:])
    assert f"detected in 2 files of {tmp_path.name}: sep=';', encoding='cp1252'" in data.notes
    assert "detected in d.csv: sep='tab', encoding='utf-16'" in data.notes

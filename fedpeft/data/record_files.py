"""Files of records with named columns, lines of text, and datasets that the `datasets` library saved.

Legal formats are CSV, TSV, JSON lines, JSON, Parquet and Arrow, plain or .gz. Records are read one after another, or in
batches. Only a JSON list is held in memory as a whole.
"""

from __future__ import annotations

import csv
import gzip
import importlib.util
import io
import json
import zlib
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, BinaryIO, TextIO

from fedpeft.data.conll import read_sentences
from fedpeft.data.table_format import DETECT, GZ, SEPARATORS, TableFormat, detect_format, open_unpacked
from fedpeft.errors import ConfigError, DataError, FedpeftError

Record = tuple[str, dict[str, Any]]
"""Place of a record in its file, such as "line 3", and its values by column."""


@dataclass(frozen=True)
class RecordTable:
    """The records of one split.

    Attributes:
        name: its name in messages.
        read: yields all records from the first one on.
        owner: the column of owners that the reader adds; None: the reader adds none.
    """

    name: str
    read: Callable[[], Iterator[Record]]
    owner: str | None = None

    @cached_property
    def first(self) -> dict[str, Any]:
        """The first record; empty without records."""
        _, record = next(self.read(), ("", {}))
        return record


class TablePlace(str):
    """Place of a record whose columns are named once, for all records of its table.

    Attributes:
        table: name of the table within the source; empty: the source is one table.
    """

    table: str

    def __new__(cls, place: str, table: str = "") -> TablePlace:
        """Create a place, such as "line 3"."""
        made = super().__new__(cls, place)
        made.table = table
        return made


def locate_record(place: str, file: str) -> str:
    """Return the place of a record at `place` in one file of several."""
    return TablePlace(f"{place} of {file}", file) if isinstance(place, TablePlace) else f"{place} of {file}"


def name_incomplete_part(place: str, source: str) -> str:
    """Return a name for what lacks a column: the record at `place` of `source`, or its whole table."""
    if not isinstance(place, TablePlace):
        return f"{place} of {source}"
    return f"{place.table} of {source}" if place.table else source


DELIMITERS = {".csv": ",", ".tsv": "\t", ".tab": "\t"}
JSON_LINES = (".jsonl", ".ndjson")
JSON = ".json"
PARQUET = (".parquet", ".pq")
ARROW = (".arrow", ".feather")
CONLL = (".conll", ".iob", ".iob2", ".bio")
SUFFIXES = (*DELIMITERS, *JSON_LINES, JSON, *PARQUET, *ARROW, *CONLL)
"""Endings of files that can be read; .gz may follow."""

LINES = ".txt"
"""Ending of a file whose lines are texts; in a folder of records such a file is usually a description, so it is
ignored.
"""

ROWS = 1024
"""Number of rows of a Parquet or Arrow file that are Python objects at a time."""

MOST_ROWS = 10_000_000
"""Most rows of a Parquet or Arrow file; compressed, many more fit into a few kB."""

MOST_BYTES = 64 << 30
"""Most bytes of a Parquet file without compression."""

SAVED = "state.json"
"""File that `save_to_disk` writes into a dataset's folder."""


def get_suffix(path: Path) -> str:
    """Return the ending that decides how a file is read, in lower case and without .gz; empty: unknown."""
    name = path.name.lower().removesuffix(GZ)
    return next((suffix for suffix in SUFFIXES if name.endswith(suffix) and name != suffix), "")


def is_saved(path: Path) -> bool:
    """Return whether `path` is the folder of one dataset that the `datasets` library saved."""
    return (path / SAVED).is_file()


def format_note(path: Path, given: TableFormat = DETECT) -> str:
    """Return one line about a text file's detected format; empty: nothing unusual, or another type of file.

    Raises:
        DataError: the file fits several formats, or can't be read.
    """
    kind = _find_format(path)
    if not path.is_file() or not kind or kind in (*PARQUET, *ARROW):
        return ""
    with raise_data_errors(str(path), given):
        return detect_format(path, str(path), DELIMITERS.get(kind, ""), given).note


def _find_format(path: Path) -> str:
    """Return the ending that decides how a file is read, `LINES` included; empty: no known one."""
    return get_suffix(path) or (LINES if path.name.lower().removesuffix(GZ).endswith(LINES) else "")


def read_records(name: str, given: TableFormat = DETECT) -> Iterator[Record]:
    """Yield the records of a file or saved dataset, each with its place; `given` is the format of text files.

    Raises:
        ConfigError: its ending is unknown, or the library that reads it is not installed.
        DataError: it can't be read; the message names the line or row.
    """
    path = Path(name).expanduser()
    if is_saved(path):
        yield from _read_saved(name, path)
        return
    suffix = _find_format(path)
    if not suffix:
        raise ConfigError(
            f"FP1108 {name} must end in {', '.join((*SUFFIXES, LINES))}, or one of them and .gz, since the ending "
            "decides how it is read"
        )
    if path.exists() and not path.is_file() and not path.is_dir():  # reading a pipe would block
        raise DataError(f"FP3110 {name} is a pipe or a device; give a file of rows")
    with raise_data_errors(name, given), open_unpacked(path) as stream:
        if suffix in PARQUET or suffix in ARROW:
            yield from _read_columns(name, stream, suffix)
        else:
            yield from _read_texts(name, path, stream, suffix, given)


@contextmanager
def raise_data_errors(name: str, given: TableFormat) -> Iterator[None]:
    """Raise a DataError for each failure to read a file."""
    try:
        yield
    except FileNotFoundError:
        raise DataError(f"FP3036 there is no file {name}; check the path") from None
    except IsADirectoryError:
        raise DataError(f"FP3111 {name} is a directory; name a file in it") from None
    except UnicodeError as error:
        where = f" (byte {error.start})" if isinstance(error, UnicodeDecodeError) else ""
        raise DataError(f"FP3182 {name} is not {given.encoding} text{where}; name another encoding, or auto") from None
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise DataError(f"FP3113 {name} is not a complete .gz file: {error}") from None
    except OSError as error:
        raise DataError(f"FP3037 can't read {name}: {error.strerror or ' '.join(str(error).split())[:200]}") from None


def _read_texts(name: str, path: Path, stream: BinaryIO, suffix: str, given: TableFormat) -> Iterator[Record]:
    form = detect_format(path, name, DELIMITERS.get(suffix, ""), given)
    text = io.TextIOWrapper(stream, encoding=form.encoding, newline="")
    if suffix in DELIMITERS or (suffix == LINES and form.sep):
        yield from _read_table(name, text, form.sep, given)
    elif suffix == JSON:
        yield from _read_json(name, text)
    elif suffix == LINES:
        yield from _read_lines(name, text)
    elif suffix in CONLL:
        yield from ((TablePlace(place), record) for place, record in read_sentences(name, text))
    else:
        yield from _read_json_lines(name, text)


def _read_table(name: str, stream: TextIO, delimiter: str, given: TableFormat) -> Iterator[Record]:
    csv.field_size_limit(2**31 - 1)  # the default refuses texts beyond 128 kB
    reader = csv.reader(stream, delimiter=delimiter, strict=True)
    start = 1
    try:
        header = next(filter(None, reader), None)  # blank lines may lie before it
        if header == ["sep=", ""]:  # as Excel writes it before the names
            header = next(filter(None, reader), None)
        if header is None:
            raise DataError(f"FP3114 {name} is empty; give a file with at least one example")
        if len(set(header)) < len(header):
            raise DataError(f"FP3115 {name} names a column twice in its first line: {', '.join(header)}")
        others = [sign for sign in SEPARATORS if sign != delimiter and sign in "".join(header)]
        if len(header) == 1 and others:
            write = given.format_setting("sep", others[0])
            remedy = f"write {write}, or save" if write else "save"
            raise DataError(
                f"FP3183 {name} has {others[0]!r} between its columns; {remedy} it with {delimiter!r} between them"
            )
        start = reader.line_num + 1
        for fields in reader:
            first, start = start, reader.line_num + 1  # a record may have several lines
            if not fields:
                continue  # a blank line
            if len(fields) != len(header):
                quotes = f"; put quotes around what holds a {delimiter!r}" if len(fields) > len(header) else ""
                raise DataError(
                    f"FP3117 line {first} of {name} has {len(fields)} fields, the first {len(header)}{quotes}"
                )
            yield TablePlace(f"line {first}"), dict(zip(header, fields, strict=True))
    except csv.Error as error:
        raise DataError(f"FP3118 line {start} of {name} is not valid CSV: {error}") from None


def _parse_json(text: str) -> Any:
    """Parse JSON; raise ValueError if an object names a column twice."""
    return json.loads(text, object_pairs_hook=_check_unique_names)


def _check_unique_names(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        names = [name for name, _ in pairs]
        raise ValueError(f"{next(name for name in names if names.count(name) > 1)!r} is named twice in an object")
    return found


def _read_lines(name: str, stream: TextIO) -> Iterator[Record]:
    """Yield each line that is not blank, as the column text."""
    blank = True
    for number, line in enumerate(stream, 1):
        if line.strip():
            blank = False
            yield TablePlace(f"line {number}"), {"text": line.rstrip("\r\n")}
    if blank:
        raise DataError(f"FP3114 {name} is empty; give a file with at least one example")


def _read_json_lines(name: str, stream: TextIO) -> Iterator[Record]:
    for number, line in enumerate(stream, 1):
        if not line.strip():
            continue
        try:
            record = _parse_json(line)
        except (ValueError, RecursionError) as error:
            raise DataError(
                f"FP3119 line {number} of {name} is not valid JSON: {error}; correct or remove this line"
            ) from None
        if not isinstance(record, dict):
            raise DataError(
                f'FP3120 line {number} of {name} is not a JSON object such as {{"text": ..., "label": ...}}'
            )
        yield f"line {number}", record


def _read_json(name: str, stream: TextIO) -> Iterator[Record]:
    """Yield the objects of a list, or of a file with an object per line, which many call .json, too."""
    first = ""
    while not first.strip():
        first = stream.read(1)
        if not first:
            raise DataError(f"FP3114 {name} is empty; give a file with at least one example")
    if first != "[":
        stream.seek(0)
        yield from _read_json_lines(name, stream)
        return
    try:
        rows = _parse_json(first + stream.read())
    except (ValueError, RecursionError) as error:
        raise DataError(f"FP3038 {name} is not valid JSON: {error}") from None
    for number, record in enumerate(rows, 1):
        if not isinstance(record, dict):
            raise DataError(f'FP3121 row {number} of {name} is not a JSON object such as {{"text": ..., "label": ...}}')
        yield f"row {number}", record


def read_json_object(name: str) -> dict[str, Any]:
    """Return the one JSON object of a .json file, plain or .gz, parsed as a whole.

    Raises:
        DataError: it can't be read, is not valid JSON, or holds something else.
    """
    path = Path(name).expanduser()
    if path.exists() and not path.is_file() and not path.is_dir():  # reading a pipe would block
        raise DataError(f"FP3210 {name} is a pipe or a device; give a .json file")
    with raise_data_errors(name, TableFormat(encoding="utf-8")), open_unpacked(path) as stream:
        text = stream.read().decode("utf-8-sig")
    try:
        content = _parse_json(text)
    except (ValueError, RecursionError) as error:
        raise DataError(f"FP3038 {name} is not valid JSON: {error}") from None
    if not isinstance(content, dict):
        kind = "list, which --dataset file:PATH reads" if isinstance(content, list) else "single value"
        raise DataError(f"FP3211 {name} must hold one JSON object, but holds a {kind}")
    return content


def require_package(package: str, what: str) -> None:
    """Raise ConfigError unless `package`, a dependency of an extra, is installed."""
    if importlib.util.find_spec(package) is None:
        raise ConfigError(f"FP1109 {what} needs the package {package}; install it with: pip install 'fedpeft[hub]'")


def _read_columns(name: str, stream: BinaryIO, suffix: str) -> Iterator[Record]:
    """Yield the rows of a Parquet or Arrow file.

    Numbers of classes are replaced by the names in its `datasets` schema.
    """
    require_package("pyarrow", f"{name}: reading {'Parquet' if suffix in PARQUET else 'Arrow'}")
    import pyarrow as pa

    try:
        if suffix in PARQUET:
            from pyarrow import parquet

            # a larger buffer, or pre_buffer, would hold whole columns of the file in memory
            table = parquet.ParquetFile(stream, buffer_size=1 << 20, pre_buffer=False)
            _check_size(name, table.metadata)
            schema, batches = table.schema_arrow, table.iter_batches(batch_size=ROWS)
        else:
            schema, batches = _open_arrow(stream)
        if len(set(schema.names)) < len(schema.names):
            raise DataError(f"FP3122 {name} names a column twice: {', '.join(schema.names)}")
        classes = _get_class_names(schema)
        number = 0
        for batch in batches:
            for start in range(0, len(batch), ROWS):
                for record in batch.slice(start, ROWS).to_pylist():
                    number += 1
                    if number > MOST_ROWS:  # the head of an Arrow file does not contain their number
                        raise _create_size_error(name, f"more than {MOST_ROWS:,}")
                    yield TablePlace(f"row {number}"), replace_class_numbers(record, classes, f"row {number} of {name}")
    except pa.ArrowException as error:
        raise DataError(f"FP3123 {name} can't be read as {suffix}: {' '.join(str(error).split())[:200]}") from None


def _check_size(name: str, metadata: Any) -> None:
    """Reject a Parquet file with too many rows or bytes before any of them is decoded.

    Raises:
        DataError: names the file, its size and the limit.
    """
    if metadata.num_rows > MOST_ROWS:
        raise _create_size_error(name, f"{metadata.num_rows:,}")
    size = sum(metadata.row_group(i).total_byte_size for i in range(metadata.num_row_groups))
    if size > MOST_BYTES:
        raise DataError(
            f"FP3194 {name} has {size:,} bytes without compression, but the limit is {MOST_BYTES:,}; split the file"
        )


def _create_size_error(name: str, rows: str) -> DataError:
    return DataError(f"FP3195 {name} has {rows} rows, but the limit is {MOST_ROWS:,}; split the file")


def _open_arrow(stream: BinaryIO) -> tuple[Any, Iterator[Any]]:
    """Return schema and batches of an Arrow file, in the file format or the stream format, which `datasets` writes."""
    import pyarrow as pa

    try:
        table = pa.ipc.open_file(stream)
    except pa.ArrowInvalid:
        stream.seek(0)
        reader = pa.ipc.open_stream(stream)
        return reader.schema, iter(reader)
    return table.schema, (table.get_batch(i) for i in range(table.num_record_batches))


def _get_class_names(schema: Any) -> dict[str, list[str]]:
    """Return the names of classes, by column, that the `datasets` library stored in a schema."""
    try:
        features = json.loads((schema.metadata or {})[b"huggingface"])["info"]["features"]
        each = {c: f["feature"] if isinstance(f.get("feature"), dict) else f for c, f in features.items()}  # of lists
        return {str(c): list(f["names"]) for c, f in each.items() if f.get("_type") == "ClassLabel"}
    except (KeyError, TypeError, ValueError, AttributeError):  # written by something else
        return {}


def replace_class_numbers(record: dict[str, Any], classes: Mapping[str, list[str]], where: str) -> dict[str, Any]:
    """Return a record with the names of classes in place of their numbers.

    Raises:
        DataError: no class has a number; -1 marks hidden labels on the hub.
    """
    for column, names in classes.items():
        value = record.get(column)
        numbers = [number for number in (value if isinstance(value, list) else [value]) if isinstance(number, int)]
        if len(numbers) < (len(value) if isinstance(value, list) else 1):
            continue  # already names
        for number in numbers:
            if not 0 <= number < len(names):
                raise DataError(
                    f"FP3124 {where}: the label {number} is not one of the {len(names)} classes, 0 to {len(names) - 1} "
                    "(-1 marks hidden labels)"
                )
        found = [names[number] for number in numbers]
        record = record | {column: found if isinstance(value, list) else found[0]}
    return record


def _read_saved(name: str, path: Path) -> Iterator[Record]:
    require_package("datasets", f"{name}: a dataset written by save_to_disk")
    import datasets

    try:
        yield from read_dataset_rows(name, datasets.load_from_disk(str(path)), first_row=1)
    except FedpeftError:
        raise
    except Exception as error:  # the library may raise anything for foreign files
        raise DataError(
            f"FP3125 {name} can't be read as a saved dataset: {' '.join(str(error).split())[:200]}"
        ) from None


def read_dataset_rows(name: str, table: Any, first_row: int) -> Iterator[Record]:
    """Yield the rows of a `datasets.Dataset`, with the names of classes in place of their numbers.

    Args:
        name: the table's name in messages.
        table: the `datasets.Dataset`.
        first_row: the number of the first row in messages, 0 or 1.

    Raises:
        DataError: a label is not the number of a class.
    """
    each = {c: getattr(f, "feature", f) for c, f in table.features.items()}  # of lists
    classes = {c: list(f.names) for c, f in each.items() if getattr(f, "names", None)}
    for number, record in enumerate(table, first_row):
        yield TablePlace(f"row {number}"), replace_class_numbers(record, classes, f"row {number} of {name}")

"""Format of a text file of cells: encoding, separator of columns, and decimal sign.

A user may set each of them. A value of `auto` is detected, and `FileFormat.note` reports it. A file that fits several
formats is rejected with the setting to write. UTF-8, UTF-16 and UTF-32 are detected by their byte order marks. Text is
cp1252, which includes Latin-1, if all letters belong to one group of Western European alphabets.
"""

from __future__ import annotations

import codecs
import csv
import functools
import gzip
import io
import itertools
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from fedpeft.errors import ConfigError, DataError

GZ = ".gz"
AUTO = "auto"
TAB = "tab"
DECIMALS = (AUTO, ".", ",")
SEPARATORS = ",;\t|"
"""Separators that can be detected."""

UTF_8 = "utf-8-sig"
SAMPLE = 1 << 20
"""Characters from which the separator is detected, and bytes that the detection of encodings holds at a time."""

SAMPLE_ROWS = 500

_MARKS = (
    (codecs.BOM_UTF8, UTF_8),
    (codecs.BOM_UTF32_LE, "utf-32"),  # before UTF-16, whose mark it starts with
    (codecs.BOM_UTF32_BE, "utf-32"),
    (codecs.BOM_UTF16_LE, "utf-16"),
    (codecs.BOM_UTF16_BE, "utf-16"),
)

_ALPHABETS = tuple(
    frozenset(letters + "µªº") for letters in ("äöüßáàâéèêëíìîïóòôúùûçñÿœæ", "ãõáàâçéêíóôúüñ", "åäöæøéèüßáà")
)
"""Letters beyond ASCII: German with the Romance languages, Portuguese, and Nordic languages."""

_IN_UTF_8 = re.compile(rb"\xc3[\x80-\xbf]|\xe2\x80")
"""What Western letters and quotes are in UTF-8."""

_NOT_WESTERN = re.compile(r"[^\W\d_a-zA-Z]{3}|(?<=[^\W\d_])[€‚„…†‡ˆ‰‹‘“”•˜™›¡¢£¤¥¦§¨©«¬®¯±²³´¶¸¹»¼½¾¿×÷](?=[^\W\d_])")
"""Three letters beyond ASCII in a row, or a sign inside of a word: text of another encoding."""


@dataclass(frozen=True)
class TableFormat:
    """A user's settings for text files.

    Attributes:
        sep: the separator of columns; `auto`: detected.
        encoding: the encoding, by Python's name; `auto`: detected.
        decimal: the decimal sign of numeric labels; `auto`: a comma if no other reading is possible.
        setting: how the user writes a setting, with NAME and VALUE; empty: there are no settings.
    """

    sep: str = AUTO
    encoding: str = AUTO
    decimal: str = AUTO
    setting: str = ""

    def __post_init__(self) -> None:
        """Check the settings, and replace the word tab by its character."""
        sep = "\t" if self.sep in (TAB, "\\t") else self.sep
        if sep != AUTO and (len(sep) != 1 or sep in "\"'\r\n\0 " or sep.isalnum()):
            raise ConfigError(f"FP1496 sep={self.sep!r} must be one sign such as ';' or '|', the word tab, or auto")
        object.__setattr__(self, "sep", sep)
        try:
            is_text = self.encoding == AUTO or bool("".encode(self.encoding) is not None)
        except (LookupError, ValueError, TypeError):
            is_text = False
        if not is_text:
            raise ConfigError(
                f"FP1497 encoding={self.encoding!r} is not a text encoding; legal are auto, utf-8, latin-1, cp1252, "
                "utf-16 and Python's other encodings"
            )
        if self.decimal not in DECIMALS:
            raise ConfigError(f"FP1498 decimal={self.decimal!r} must be one of {', '.join(DECIMALS)}")

    def format_setting(self, name: str, value: str) -> str:
        """Return how the user sets `name` to `value`, or an empty text if that is impossible."""
        shown = TAB if value == "\t" else value
        return self.setting.replace("NAME", name).replace("VALUE", repr(shown)) if self.setting else ""


DETECT = TableFormat()


@dataclass(frozen=True)
class FileFormat:
    """Format of one file.

    Attributes:
        encoding: Python's name of the encoding.
        sep: separator of columns; empty: the file is not a table.
        note: one line about what was detected; empty: nothing unusual.
    """

    encoding: str
    sep: str
    note: str = ""


@contextmanager
def open_unpacked(path: Path) -> Iterator[BinaryIO]:
    """Open a file for reading, unpacked if its name ends in .gz."""
    with path.open("rb") as stream:
        if path.name.lower().endswith(GZ):
            with gzip.GzipFile(fileobj=stream) as unpacked:
                yield unpacked  # type: ignore[misc]
        else:
            yield stream


def detect_format(path: Path, name: str, usual: str, given: TableFormat) -> FileFormat:
    """Detect the format of a text file, except for what the user set.

    Args:
        path: an existing file.
        name: what messages call it.
        usual: the separator that its ending announces; empty: the ending announces no table.
        given: the user's settings.

    Raises:
        DataError: the file fits several formats, or none; the message names the setting to write.
        OSError: the file can't be read.
    """
    state = path.stat()
    return _detect_format(path, name, usual, given, (state.st_mtime_ns, state.st_size, state.st_ino))


@functools.lru_cache(maxsize=1024)
def _detect_format(path: Path, name: str, usual: str, given: TableFormat, state: tuple[int, ...]) -> FileFormat:
    encoding = given.encoding
    if encoding == AUTO:
        with open_unpacked(path) as stream:
            encoding = _detect_encoding(name, stream, given)
    elif codecs.lookup(encoding).name == "utf-8":
        encoding = UTF_8  # a byte order mark does not belong to the first column's name
    sep = given.sep
    if sep == AUTO:
        with open_unpacked(path) as stream:
            sample = io.TextIOWrapper(stream, encoding=encoding, newline="").read(SAMPLE)
        if usual:
            sep = _detect_separator(name, sample, usual, given)
        else:  # what Excel calls Unicode text is a table
            sep = "\t" if encoding == "utf-16" and path.suffix == ".txt" and "\t" in sample.partition("\n")[0] else ""
    detected = [f"sep={TAB if sep == chr(9) else sep!r}"] if given.sep == AUTO and sep and sep != usual else []
    detected += [f"encoding={encoding!r}"] if given.encoding == AUTO and encoding != UTF_8 else []
    return FileFormat(encoding, sep, f"detected in {path.name}: {', '.join(detected)}" if detected else "")


def _detect_encoding(name: str, stream: BinaryIO, given: TableFormat) -> str:
    head = stream.read(4)
    for mark, encoding in _MARKS:
        if head.startswith(mark):
            return encoding
    decoder = codecs.getincrementaldecoder("utf-8")()
    place, chunk = 0, head + stream.read(SAMPLE)
    wrong: int | None = None
    while chunk and wrong is None:
        if b"\0" in chunk:
            raise DataError(
                f"FP3184 {name} holds NUL bytes and no byte order mark; save it as UTF-8{_advise_encoding(given)}"
            )
        try:
            held = len(decoder.getstate()[0])
            decoder.decode(chunk)
        except UnicodeDecodeError as error:
            wrong = place - held + error.start
        place += len(chunk)
        chunk = stream.read(SAMPLE)
    if wrong is None and decoder.getstate()[0]:
        wrong = place - len(decoder.getstate()[0])
    if wrong is None:
        return UTF_8
    stream.seek(0)
    if not _is_western(stream):
        raise DataError(f"FP3185 {name} is not UTF-8 text (byte {wrong}); save it as UTF-8{_advise_encoding(given)}")
    return "cp1252"


def _advise_encoding(given: TableFormat) -> str:
    write = given.format_setting("encoding", "ENCODING")
    return f", or name its encoding: {write}, such as cp1252, cp1250 or utf-16-le" if write else ""


def _is_western(stream: BinaryIO) -> bool:
    """Return whether bytes that are not UTF-8 can only be Western European text in cp1252."""
    letters: set[str] = set()
    while line := stream.readline(SAMPLE):
        if line.isascii() and b"\0" not in line:
            continue
        try:
            text = line.decode("cp1252")
        except UnicodeDecodeError:
            return False
        if b"\0" in line or _IN_UTF_8.search(line) or _NOT_WESTERN.search(text):
            return False
        letters.update(sign for sign in text.lower() if not sign.isascii() and sign.isalpha())
    return any(letters <= alphabet for alphabet in _ALPHABETS)


def _detect_separator(name: str, sample: str, usual: str, given: TableFormat) -> str:
    if (first := re.match(r"\s*sep=([^\w\s\"]|\t)\r?\n", sample)) is not None:  # as Excel writes it
        return first[1]
    columns = {sep: _count_columns(sample, sep) for sep in SEPARATORS}
    even = [sep for sep, (count, is_even) in columns.items() if count > 1 and is_even]
    if len(even) > 1:
        ways = [given.format_setting("sep", sep) for sep in even]
        remedy = f"write {' or '.join(ways)}" if all(ways) else "put quotes around cells that hold one of them"
        raise DataError(f"FP3186 {name} may have {' or '.join(map(repr, even))} between its columns; {remedy}")
    if even:
        return even[0]
    several = [sep for sep, (count, _) in columns.items() if count > 1]
    return several[0] if columns[usual][0] == 1 and len(several) == 1 else usual


def _count_columns(sample: str, sep: str) -> tuple[int, bool]:
    """Return how many columns the first line has, and whether all rows of the sample have as many."""
    whole = len(sample) < SAMPLE
    reader = csv.reader(io.StringIO(sample, newline=""), delimiter=sep, strict=True)
    counts: list[int] = []
    is_valid = True
    try:
        for fields in itertools.islice(filter(None, reader), SAMPLE_ROWS):
            counts.append(len(fields))
    except csv.Error:
        is_valid = not whole  # the last row of a sample may be cut
    if not whole and len(counts) < SAMPLE_ROWS:
        counts = counts[:1] + counts[1:-1]
    return (counts[0] if counts else 0), is_valid and len(set(counts)) == 1

"""Text tables whatever their encoding, packed by gzip or not.

UTF-8 with or without a byte order mark, UTF-16 and UTF-32, and Windows-1252 for text that is none of them: spreadsheets
on Windows write it.
"""

from __future__ import annotations

import codecs
import gzip
import io
import re
import zlib
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path
from typing import IO, Any

from producer.errors import TableError

GZIP_MAGIC = b"\x1f\x8b"
BYTE_ORDER_MARKS = (
    (codecs.BOM_UTF8, "utf-8-sig"),
    (codecs.BOM_UTF32_LE, "utf-32"),  # before UTF-16, whose mark it begins with
    (codecs.BOM_UTF32_BE, "utf-32"),
    (codecs.BOM_UTF16_LE, "utf-16"),
    (codecs.BOM_UTF16_BE, "utf-16"),
)
SAMPLE_BYTES = 4096
READ_BYTES = 2**20
LONGEST_LINE = 128 * 2**20
"""Characters; a picture of 64 MiB in base64 fits, an unpacked bomb without any end of line does not."""

UNREAD = re.compile("[\udc80-\udcff]")
"""Bytes that are no characters of the encoding, as `surrogateescape` reads them."""

NOT_UTF_8 = "has bytes that are not UTF-8; save the table as UTF-8"
"""Fault of a row with such bytes."""

READ_BEYOND_ASCII = re.compile("[^\x00-\x7f\udc80-\udcff]")


class TextFile:
    """The lines of a text table.

    Attributes:
        encoding: its name for people, such as `UTF-8`.
        note: what the reader should know about the encoding; empty when there is nothing to say.
    Raises:
        TableError: it is not text, or cannot be unpacked.
    """

    def __init__(self, path: Path, named: str) -> None:
        self._path = path
        self._named = named
        with self._reading() as file:
            self._codec, self.note = self._detect(file)
        self.encoding = {"cp1252": "Windows-1252"}.get(self._codec, self._codec.removesuffix("-sig").upper())

    @contextmanager
    def open(self) -> Iterator[IO[str]]:
        """Open for reading; bytes that are no characters match `UNREAD`, line ends stay as they are.

        Raises:
            TableError: what was read inside the block cannot be unpacked.
        """
        errors = "replace" if self._codec.startswith(("utf-16", "utf-32")) else "surrogateescape"
        with self._reading() as file, io.TextIOWrapper(file, self._codec, errors, newline="") as text:
            yield text

    def lines(self) -> Iterator[str]:
        """The lines with their ends, one in memory at a time.

        Raises:
            TableError: a line is longer than `LONGEST_LINE`, or cannot be unpacked.
        """
        with self.open() as file:
            while line := file.readline(LONGEST_LINE):
                if len(line) == LONGEST_LINE:
                    raise TableError(f"{self._named}: a line of more than {LONGEST_LINE:,} characters")
                yield line

    @contextmanager
    def _reading(self) -> Iterator[IO[bytes]]:
        try:
            with self._path.open("rb") as file:
                is_packed = file.peek(2)[:2] == GZIP_MAGIC
                unpacked: AbstractContextManager[Any] = gzip.GzipFile(fileobj=file) if is_packed else nullcontext(file)
                with unpacked as text:
                    yield text
        except (EOFError, zlib.error, gzip.BadGzipFile) as error:
            raise TableError(f"{self._named}: cannot be unpacked ({error}); fetch or pack it again") from error

    def _detect(self, file: IO[bytes]) -> tuple[str, str]:
        sample = file.read(SAMPLE_BYTES)
        for mark, codec in BYTE_ORDER_MARKS:
            if sample.startswith(mark):
                return codec, ""
        if b"\0" in sample:
            return self._utf_16_without_mark(sample), "read as UTF-16, though it has no byte order mark"
        file.seek(0)
        is_utf_8, is_other = _tell_utf_8(file)
        if not is_other:
            return "utf-8", ""
        if is_utf_8:
            return "utf-8", "is UTF-8 except in some places; rows with other bytes are refused"
        return "cp1252", "is not UTF-8 and was read as Windows-1252; look at its accents, or save it as UTF-8"

    def _utf_16_without_mark(self, sample: bytes) -> str:
        """Latin text in UTF-16 has zeros at every other place."""
        first, second = sample[0::2].count(0), sample[1::2].count(0)
        if max(first, second) < len(sample) / 8 or min(first, second) > len(sample) / 64:
            raise TableError(f"{self._named}: is not a text table, it has null bytes; save it as CSV in UTF-8")
        return "utf-16-le" if second > first else "utf-16-be"


def _tell_utf_8(file: IO[bytes]) -> tuple[bool, bool]:
    """Look whether there are characters beyond ASCII in UTF-8, and whether there are bytes that are not UTF-8."""
    decoder = codecs.getincrementaldecoder("utf-8")("surrogateescape")
    is_utf_8 = is_other = False
    chunk = b"..."
    while chunk and not (is_utf_8 and is_other):
        chunk = file.read(READ_BYTES)
        text = decoder.decode(chunk, final=not chunk)
        if not text.isascii():
            is_utf_8 = is_utf_8 or READ_BEYOND_ASCII.search(text) is not None
            is_other = is_other or UNREAD.search(text) is not None
    return is_utf_8, is_other

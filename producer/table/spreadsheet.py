"""Excel workbooks (.xlsx), through openpyxl (the extra `xlsx`), which reads one row at a time.

Not calamine, which is faster: it lays a sheet out as a full rectangle, and a file of a kilobyte with one cell in the
last corner ends the process.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from datetime import date, time
from importlib import import_module
from pathlib import Path
from typing import Any
from zipfile import BadZipFile, ZipFile

from producer.errors import TableError
from producer.table.drawn_images import DrawnImages
from producer.table.raw import Cells, as_json, is_blank

LARGEST_UNPACKED_BYTES = 2**30
LARGEST_EXACT = 10**15
"""A spreadsheet keeps 15 digits of a number: a larger one is not what was written."""


class Spreadsheet:
    """The first visible sheet of a workbook; its first row that is not blank names the columns.

    Raises:
        TableError: openpyxl is missing, this is no workbook, or it has no header.
    """

    def __init__(self, path: Path, named: str) -> None:
        try:
            self._openpyxl = import_module("openpyxl")
        except ImportError as error:
            raise TableError(
                f"{named}: reading .xlsx needs openpyxl: pip install openpyxl; or save it as CSV"
            ) from error
        self._path = path
        self._named = named
        self._check_size()
        sheet, others = self._find_sheet()
        self.described = f"Excel, sheet {sheet!r}"
        self.notes: tuple[str, ...] = (
            (f"only the sheet {sheet!r} is read; it also has {', '.join(others)}",) if others else ()
        )
        names = [str(name).strip() if not is_blank(name) else "" for name in next(self._filled(), ())]
        while names and not names[-1]:
            names.pop()
        if not names:
            raise TableError(f"{named}: the first row must name the columns, such as image and prompt")
        self.columns = tuple(name or f"column_{place}" for place, name in enumerate(names, start=1))
        if len({*self.columns}) < len(self.columns):
            raise TableError(f"{named}: a column stands twice in the first row; rename one")

    def rows(self) -> Iterator[tuple[Cells, str]]:
        """Every row after the header that is not blank."""
        filled = self._filled()
        next(filled, None)
        for values in filled:
            yield {name: _plain(value) for name, value in zip(self.columns, values, strict=False)}, ""

    def _filled(self) -> Iterator[tuple[Any, ...]]:
        try:
            book = self._open()
            try:
                sheet = _visible(book)[0]
                sheet.reset_dimensions()  # what the file says of its size may be wrong
                with DrawnImages(self._path, sheet._worksheet_path) as images:
                    is_header = True  # a logo above or beside it names no column
                    for place, values in enumerate(sheet.iter_rows(values_only=True)):
                        if not all(is_blank(value) for value in values):
                            yield values if is_header else images.laid_in(place, values)
                            is_header = False
            finally:
                book.close()
        except Exception as error:  # whatever openpyxl and the XML under it meet in a damaged file
            raise TableError(f"{self._named}: cannot be read to its end ({error}); save it as CSV") from error

    def _find_sheet(self) -> tuple[str, list[str]]:
        try:
            book = self._open()
        except Exception as error:
            raise TableError(f"{self._named}: not a workbook that can be read ({error}); save it as CSV") from error
        try:
            names = [sheet.title for sheet in _visible(book)]
        finally:
            book.close()
        if not names:
            raise TableError(f"{self._named}: has no visible sheet")
        return names[0], names[1:]

    def _open(self) -> Any:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of extensions that have no meaning for values
            return self._openpyxl.load_workbook(self._path, read_only=True, data_only=True)

    def _check_size(self) -> None:
        try:
            with ZipFile(self._path) as packed:
                unpacked = sum(part.file_size for part in packed.infolist())
        except (BadZipFile, OSError, ValueError, NotImplementedError) as error:
            raise TableError(f"{self._named}: not an .xlsx workbook ({error}); save it as .xlsx or CSV") from error
        if unpacked > LARGEST_UNPACKED_BYTES:
            raise TableError(f"{self._named}: {unpacked:,} bytes once unpacked; save it as CSV")


def _visible(book: Any) -> list[Any]:
    return [sheet for sheet in book.worksheets if sheet.sheet_state == "visible"]


def _plain(value: Any) -> Any:
    if isinstance(value, float) and value.is_integer() and abs(value) < LARGEST_EXACT:
        return int(value)  # a spreadsheet knows one kind of number
    return value.isoformat() if isinstance(value, date | time) else as_json(value)

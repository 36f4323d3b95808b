"""Workbooks, Parquet files and folders of files, and what in them could take a machine down."""

from __future__ import annotations

import base64
import gzip
import io
import json
import sys
import time
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from producer.errors import TableError
from producer.table import parquet_rows, separated, spreadsheet, text
from producer.table.plan import RowDefaults
from producer.table.rows import TableRow
from producer.table.table import open_table
from producer.table.text import TextFile


def read(path: Path) -> list[TableRow]:
    return [*stream(path)]


def stream(path: Path) -> Iterator[TableRow]:
    with open_table(str(path)) as table:
        yield from table.rows(table.plan("s3://b", RowDefaults(), "batch"))


def jobs_of(path: Path) -> list[tuple[str, str, int | None]]:
    rows = read(path)
    assert [problem for row in rows for problem in row.problems] == []
    return [(row.job.image[0], row.job.prompt, row.job.params.seed) for row in rows if row.job]


def refusal_of(path: Path) -> str:
    """What is said of a table that cannot be read; empty when it can be."""
    try:
        read(path)
    except TableError as error:
        return str(error)
    return ""


def write_workbook(path: Path, *rows: list[Any], **sheets: str) -> None:
    openpyxl = pytest.importorskip("openpyxl")
    book = openpyxl.Workbook()
    for row in rows:
        book.active.append(row)
    for title, state in sheets.items():
        book.create_sheet(title).sheet_state = state
    book.save(path)


def write_parquet(path: Path, columns: dict[str, Any], **options: Any) -> None:
    arrow, parquet = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    parquet.write_table(arrow.table(columns), path, **options)


def test_a_workbook_is_read_with_numbers_and_dates_as_they_are(tmp_path: Path) -> None:
    from datetime import date

    header = ["Image", " Prompt ", "seed", "when", None]
    write_workbook(
        tmp_path / "t.xlsx", header, ["s3://b/a.png", "snow", 7.0, date(2026, 3, 1)], [None], ["s3://b/b.png", "rain"]
    )

    first, second = read(tmp_path / "t.xlsx")

    assert first.job is not None
    assert (first.job.params.seed, first.job.metadata) == (7, {"when": "2026-03-01T00:00:00"})
    assert second.job is not None
    assert second.job.prompt == "rain"


def test_pictures_on_a_sheet_are_those_of_the_blank_cells_below_them(tmp_path: Path) -> None:
    drawing = pytest.importorskip("openpyxl.drawing.image")
    red, blue = (png(name) for name in ("red", "blue"))
    book = pytest.importorskip("openpyxl").Workbook()
    header, *rows = ["image", "prompt", "look"], [None, "snow"], ["s3://b/a.png", "rain"], [None, "fog"], [None, "hail"]
    for row in ([None], header, *rows):
        book.active.append(row)
    pictures = [("A1", red), ("A3", red), ("A4", red), ("A5", red), ("A5", blue), ("C5", red), ("Z5", red), ("A9", red)]
    for place, data in pictures:
        book.active.add_image(drawing.Image(io.BytesIO(data)), place)
    book.save(tmp_path / "t.xlsx")

    *good, bad = read(tmp_path / "t.xlsx")

    images = [row.job.image if row.job else None for row in good]
    assert images == [(inline(red),), ("s3://b/a.png",), (inline(red), inline(blue))]
    assert [problem.column for problem in bad.problems] == ["image"]


def png(colour: str) -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (8, 8), colour).save(buffer, "PNG")
    return buffer.getvalue()


def inline(data: bytes) -> str:
    return f"data:image/png;base64,{base64.b64encode(data).decode()}"


def test_a_seed_that_the_workbook_has_rounded_is_refused(tmp_path: Path) -> None:
    write_workbook(tmp_path / "t.xlsx", ["image", "prompt", "seed"], ["s3://b/a.png", "snow", 1.8446744073709552e19])

    ((problem,),) = [row.problems for row in read(tmp_path / "t.xlsx")]

    assert (problem.column, problem.remedy) == ("seed", "should be a whole number")


def test_other_sheets_are_named_and_hidden_ones_are_not(tmp_path: Path) -> None:
    write_workbook(tmp_path / "t.xlsx", ["image", "prompt"], Prices="visible", Secret="hidden")

    with open_table(str(tmp_path / "t.xlsx")) as table:
        assert table.notes == ("only the sheet 'Sheet' is read; it also has Prices",)


def test_a_cell_in_the_last_corner_of_a_sheet_costs_no_rectangle(tmp_path: Path) -> None:
    openpyxl = pytest.importorskip("openpyxl")
    book = openpyxl.Workbook()
    book.active.append(["image", "prompt"])
    book.active.append(["s3://b/a.png", "snow"])
    book.active.cell(300_000, 16_384, "x")
    book.save(tmp_path / "t.xlsx")

    (row,) = read(tmp_path / "t.xlsx")

    assert row.job is not None, "what stands beside the named columns is not of the table"


def test_a_workbook_that_unpacks_to_too_much_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(spreadsheet, "LARGEST_UNPACKED_BYTES", 1_000_000)
    with zipfile.ZipFile(tmp_path / "t.xlsx", "w", zipfile.ZIP_DEFLATED) as packed:
        packed.writestr("xl/sharedStrings.xml", b"0" * 2_000_000)

    with pytest.raises(TableError, match="2,000,000 bytes once unpacked; save it as CSV"):
        read(tmp_path / "t.xlsx")


@pytest.mark.parametrize(
    ("module", "suffix", "said"),
    [("openpyxl", "xlsx", "pip install openpyxl"), ("pyarrow.parquet", "parquet", "pip install pyarrow")],
)
def test_a_format_whose_package_is_not_installed_says_how_to_get_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, module: str, suffix: str, said: str
) -> None:
    monkeypatch.setitem(sys.modules, module, None)
    (tmp_path / f"t.{suffix}").write_bytes(b"PAR1")
    (tmp_path / "t.xlsx").write_bytes(b"PK\x03\x04")

    with pytest.raises(TableError, match=said):
        read(tmp_path / f"t.{suffix}")


def test_a_folder_is_read_in_the_order_of_its_files(tmp_path: Path) -> None:
    folder = tmp_path / "shards"
    folder.mkdir()
    for number in range(3):
        line = json.dumps({"image": f"s3://b/{number}.png", "prompt": "snow", "seed": number})
        (folder / f"data-{number}.jsonl.gz").write_bytes(gzip.compress(line.encode()))
    (folder / "_SUCCESS").touch()
    (folder / ".hidden.csv").touch()

    assert jobs_of(folder) == [(f"s3://b/{number}.png", "snow", number) for number in range(3)]


def test_shards_may_differ_in_their_columns(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("image,prompt\ns3://b/a.png,snow\n")
    (tmp_path / "b.csv").write_text("prompt;image;seed\nrain;s3://b/b.png;7\n")

    assert jobs_of(tmp_path) == [("s3://b/a.png", "snow", None), ("s3://b/b.png", "rain", 7)]


def test_a_folder_without_one_kind_of_table_is_named(tmp_path: Path) -> None:
    with pytest.raises(TableError, match="a folder without a table"):
        read(tmp_path)
    (tmp_path / "dataset_infos.json").write_text("{}")
    (tmp_path / "data").mkdir()
    (tmp_path / "data/train.parquet").touch()
    with pytest.raises(TableError, match="there are tables in its folder data"):
        read(tmp_path)
    (tmp_path / "a.csv").touch()
    (tmp_path / "b.parquet").touch()
    with pytest.raises(TableError, match=r"has tables of several kinds \(\.csv, \.parquet\)"):
        read(tmp_path)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ('[{"image": "s3://b/a.png", "prompt": "snow"},\n{"image": "s3://b/b.png", "prompt": "rain"}\n', "element 3: "),
        ('[{"image": "s3://b/a.png", "prompt": "snow"}', "element 2: is not JSON (the file ends before the list's"),
        (
            '[{"image": "s3://b/a.png", "prompt": "snow"}]\n{"image": 1}',
            "element 2: is not JSON (text after the list's",
        ),
        ('[{"image": "s3://b/a.png", "prompt": "snow"}, ] \r\n\t\n', ""),
    ],
)
def test_a_list_is_read_whole_or_not_at_all(tmp_path: Path, text: str, said: str) -> None:
    (tmp_path / "t.json").write_text(text)

    refusal = refusal_of(tmp_path / "t.json")

    assert bool(refusal) == bool(said)
    assert said in refusal
    assert "\n" not in refusal


def test_many_columns_take_no_longer_than_their_length(tmp_path: Path) -> None:
    names = [f"c{number}" for number in range(60_000)]
    (tmp_path / "t.csv").write_text(
        "\n".join([",".join(["image", "prompt", *names]), "s3://b/a.png,snow" + ",1" * 60_000])
    )

    started = time.process_time()
    ((row,)) = read(tmp_path / "t.csv")

    assert row.job is not None
    assert len(row.job.metadata) == 60_000
    assert time.process_time() - started < 6, "with a list searched for every name it took 11 s"


def test_a_quote_that_is_never_closed_swallows_a_thousand_lines_at_most(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(separated, "MOST_LINES_OF_A_ROW", 10)
    (tmp_path / "t.csv").write_text('image,prompt\ns3://b/a.png,"snow\n' + "s3://b/b.png,rain\n" * 50)

    first, *others = read(tmp_path / "t.csv")

    assert "a quoted cell of more than 10 lines" in first.problems[0].remedy
    assert sum(row.job is not None for row in others) == 50


def test_a_line_without_end_is_not_read_to_its_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(text, "LONGEST_LINE", 1000)
    (tmp_path / "t.csv.gz").write_bytes(gzip.compress(b"image,prompt\n" + b"a" * 100_000_000, 1))

    with pytest.raises(TableError, match="a line of more than 1,000 characters"):
        read(tmp_path / "t.csv.gz")


def test_a_parquet_row_of_too_many_bytes_is_refused_before_it_is_unpacked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(parquet_rows, "LARGEST_ROW_BYTES", 1_000_000)
    write_parquet(
        tmp_path / "t.parquet", {"image": ["s3://b/a.png"], "prompt": ["y" * 2_000_000]}, use_dictionary=False
    )

    with pytest.raises(TableError, match=r"rows of 2,000,\d+ bytes; at most 1,000,000 are read"):
        read(tmp_path / "t.parquet")


@pytest.mark.parametrize("nested", [False, True])
def test_one_value_named_in_every_row_of_parquet_is_unpacked_for_one_row_at_a_time(
    tmp_path: Path, nested: bool
) -> None:
    arrow = pytest.importorskip("pyarrow")
    value, rows = "z" * 2_000_000, 60 if nested else 30
    column = [{"text": value}] * rows if nested else arrow.array([value] * rows).dictionary_encode()
    columns = {"image": ["s3://b/a.png"] * rows, "prompt": ["snow"] * rows, "note": column}
    write_parquet(tmp_path / "t.parquet", columns, compression="zstd")
    assert (tmp_path / "t.parquet").stat().st_size < 20_000
    del columns, column

    before, peak, count = arrow.total_allocated_bytes(), 0, 0
    for row in stream(tmp_path / "t.parquet"):
        count += 1
        assert "at most 1,048,576 are taken; leave out" in str(row.problems)
        peak = max(peak, arrow.total_allocated_bytes() - before)

    assert count == rows
    assert peak < rows * 1_500_000, "all rows unpacked take 2 MB each, and buffers as large again"


def test_damaged_parquet_is_one_line(tmp_path: Path) -> None:
    write_parquet(
        tmp_path / "t.parquet", {"image": ["s3://b/a.png"] * 100, "prompt": [f"snow {n}" for n in range(100)]}
    )
    content = bytearray((tmp_path / "t.parquet").read_bytes())
    for start in range(4, len(content) - 8, 7):
        damaged = bytearray(content)
        damaged[start : start + 40] = b"\xff" * len(damaged[start : start + 40])
        (tmp_path / "damaged.parquet").write_bytes(damaged)
        said = refusal_of(tmp_path / "damaged.parquet")
        assert "\n" not in said


@pytest.mark.parametrize(("content", "encoding"), [("snow", "UTF-8"), ("süß", "UTF-8")])
def test_the_encoding_is_named_for_people(tmp_path: Path, content: str, encoding: str) -> None:
    (tmp_path / "t.csv").write_text(content)

    assert TextFile(tmp_path / "t.csv", "t.csv").encoding == encoding

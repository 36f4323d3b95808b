"""Tables that people bring: those of `tables/README.md`, and others of the same kinds."""

from __future__ import annotations

import base64
import codecs
import csv
import gzip
import io
import json
import random
import shutil
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import pytest

from jobs.schema import EditJob
from producer.errors import TableError
from producer.report import Ending, ReportRow
from producer.result_files import Layout, write_results
from producer.table.columns import ColumnNames
from producer.table.plan import RowDefaults
from producer.table.rows import TableRow
from producer.table.table import Table, open_table

TABLES = Path(__file__).parent / "tables"
PINK = "make the background pink"
PNG = (TABLES / "a.png").read_bytes()
BASE64 = base64.b64encode(PNG).decode()
INLINE = f"data:image/png;base64,{BASE64}"
ROOT = "s3://bucket/out"


@dataclass(frozen=True)
class Row:
    """A wanted row: the ends of its images' URIs, its prompt, its parameters that are not the defaults."""

    images: tuple[str, ...] = ("a.png",)
    prompt: str = PINK
    params: dict[str, Any] = field(default_factory=dict)
    output: str = ""


@dataclass(frozen=True)
class Refused:
    """A wanted refusal: the column, and words of the remedy."""

    column: str
    said: str


Wanted = tuple[Row | Refused, ...]

GIVEN: dict[str, Wanted] = {
    "excel_semicolon.csv": (Row(params={"seed": 1}), Row(("b.png",), params={"seed": 2})),
    "excel_sep_line.csv": (Row(params={"seed": 1}),),
    "excel_cp1252.csv": (Row(prompt="make the café sign “blue” – softly"),),  # noqa: RUF001
    "capital_header.csv": (Row(),),
    "imagefolder/metadata.csv": (Row(),),
    "imagefolder": (Row(),),
    "pandas_list_repr.csv": (Row(("a.png", "b.png")),),
    "pandas_nan_text.csv": (Row(), Row(("b.png",))),
    "na_text.csv": (Row(), Row(("b.png",))),
    "nan_prompt.csv": (Refused("prompt", "is empty"), Row(("b.png",))),
    "hf_image.parquet": (Row((INLINE,)),),
    "hf_image_list.parquet": (Row((INLINE,)),),
    "parquet_dir": (Row(), Row()),
    "url_cloudinary.csv": (Row(("https://res.cloudinary.com/demo/image/upload/w_400,h_300,c_fill/sample.jpg",)),),
    "s3_key_comma.csv": (Row(("s3://bucket/Smith, John.png",)),),
    "name_tilde.csv": (Row(), Row(("~tilde.png",)), Row(("b.png",))),
    "four_long_names.csv": (Row(tuple(f"{'0' * 63}{number}.png" for number in range(4))),),
    "name_nfc.csv": (Row(("cafe\u0301.png",)),),
    "name_backslash.csv": (Row(("pics/cat.png",)),),
    "output_drive.csv": (Refused("output", "should not name a drive"),),
    "seed_comfyui.csv": (Row(params={"seed": 18446744073709539271}),),
    "seed_minus_one.csv": (Row(),),
    "format_jpg.csv": (Row(params={"output_format": "jpeg"}, output="000000.jpg"),),
    "format_upper.csv": (Row(params={"output_format": "png"}, output="000000.png"),),
    "replicate_names.csv": (
        Row(params={"guidance_scale": 9.0, "num_inference_steps": 5, "quality": 80, "aspect_ratio": "16:9"}),
    ),
}


@pytest.mark.parametrize("name", GIVEN)
def test_a_given_table_is_read_as_its_author_means_it(name: str) -> None:
    assert_rows(read(TABLES / name), GIVEN[name])


def lines(*rows: str) -> bytes:
    return "\n".join([*rows, ""]).encode()


def table_of(*rows: list[str]) -> bytes:
    file = io.StringIO()
    csv.writer(file).writerows(rows)
    return file.getvalue().encode()


def one_cell(cell: str) -> bytes:
    return table_of(["image", "prompt"], [cell, PINK])


def one_param(name: str, value: str) -> bytes:
    return table_of(["image", "prompt", name], ["a.png", PINK, value])


def json_line(**cells: Any) -> bytes:
    return json.dumps({"prompt": PINK, **cells}).encode()


A_AND_B = (Row(("a.png", "b.png")),)
PLAIN = f"image,prompt\na.png,{PINK}\n"
GRUEN = "mach es grün"

# name of the case: name of the file, its bytes, the rows wanted
MEMBERS: dict[str, tuple[str, bytes, Wanted]] = {
    # separators and encodings
    "tabs in a file called csv": ("t.csv", PLAIN.replace(",", "\t").encode(), (Row(),)),
    "commas in a file called tsv": ("t.tsv", PLAIN.encode(), (Row(),)),
    "bars": ("t.csv", PLAIN.replace(",", "|").encode(), (Row(),)),
    "a comma in a header of semicolons": (
        "t.csv",
        lines('image;prompt;"size, in cm"', f"a.png;{PINK};1,5"),
        (Row(),),
    ),
    "a sep line with quotes and a mark": (
        "t.csv",
        codecs.BOM_UTF8 + b'"sep=;"\r\n' + PLAIN.replace(",", ";").encode(),
        (Row(),),
    ),
    "a sep line with a tab": ("t.csv", b"SEP=\t\r\n" + PLAIN.replace(",", "\t").encode(), (Row(),)),
    "a sep line without a sign": ("t.csv", b"sep=\r\n" + PLAIN.replace(",", ";").encode(), (Row(),)),
    "a sep line with a quote alone": ("t.csv", b'sep="\n' + PLAIN.encode(), (Row(),)),
    "a sep line with its sign in quotes": ("t.csv", b'sep=";"\n' + PLAIN.replace(",", ";").encode(), (Row(),)),
    "a sep line with another sign": ("t.csv", b"sep=^\n" + PLAIN.replace(",", "^").encode(), (Row(),)),
    "UTF-16 with a mark, as Excel's Unicode text": (
        "t.txt",
        f"image\tprompt\r\na.png\t{GRUEN}\r\n".encode("utf-16"),
        (Row(prompt=GRUEN),),
    ),
    "UTF-16 without a mark": ("t.csv", f"image,prompt\na.png,{GRUEN}\n".encode("utf-16-le"), (Row(prompt=GRUEN),)),
    "UTF-16, the other end first": ("t.csv", codecs.BOM_UTF16_BE + PLAIN.encode("utf-16-be"), (Row(),)),
    "UTF-8 with a mark": ("t.csv", codecs.BOM_UTF8 + PLAIN.encode(), (Row(),)),
    "blank lines before the header": ("t.csv", b"\n\n" + PLAIN.encode(), (Row(),)),
    "ends of line of an old Mac": ("t.csv", PLAIN.replace("\n", "\r").encode(), (Row(),)),
    "one row in another encoding": (
        "t.csv",
        lines("image,prompt", f"a.png,{GRUEN}") + b"a.png,gr\xfcn\n" + lines(f"b.png,{PINK}"),
        (Row(prompt=GRUEN), Refused("row", "not UTF-8"), Row(("b.png",))),
    ),
    "one row in another encoding, with commas": (
        "t.csv",
        lines("image,prompt", f"a.png,{GRUEN}") + b"a.png,gr\xfcn,1,2\n",
        (Row(prompt=GRUEN), Refused("row", "not UTF-8")),
    ),
    "packed CSV": ("t.csv.gz", gzip.compress(PLAIN.encode()), (Row(),)),
    "packed CSV without its suffix": ("t.csv", gzip.compress(PLAIN.encode()), (Row(),)),
    "packed JSON Lines": ("t.jsonl.gz", gzip.compress(json_line(image="a.png")), (Row(),)),
    # quotes
    "a stray quote in a row of many": (
        "t.csv",
        lines("image,prompt", f"a.png,{PINK}", 'a.png,"blue" and pink', f"b.png,{PINK}"),
        (Row(), Refused("row", "written twice"), Row(("b.png",))),
    ),
    "a quote that is never closed": (
        "t.csv",
        lines("image,prompt", 'a.png,"blue', f"a.png,{PINK}", f'b.png,"{PINK}"'),
        (Refused("row", "written twice"), Row(), Row(("b.png",))),
    ),
    "a quote that is never closed, up to the end": (
        "t.csv",
        lines("image,prompt", f"a.png,{PINK}", 'a.png,"blue', f"b.png,{PINK}"),
        (Row(), Refused("row", "written twice"), Row(("b.png",))),
    ),
    "inches": ("t.csv", lines("image,prompt", 'a.png,a frame of 5" width'), (Row(prompt='a frame of 5" width'),)),
    "a prompt of several lines": (
        "t.csv",
        table_of(["image", "prompt"], ["a.png", "make it\nsnow"]),
        (Row(prompt="make it\nsnow"),),
    ),
    # names of columns
    "blanks, quotes and case in a header": ("t.csv", lines("  'Input Image' , PROMPT ", f"a.png,{PINK}"), (Row(),)),
    "camels": (
        "t.csv",
        lines("imageUrl,prompt,guidanceScale,numInferenceSteps", f"a.png,{PINK},3,5"),
        (Row(params={"guidance_scale": 3.0, "num_inference_steps": 5}),),
    ),
    "MagicBrush": (
        "t.jsonl",
        json.dumps({"source_img": "a.png", "target_img": "b.png", "instruction": PINK}).encode(),
        (Row(),),
    ),
    "InstructPix2Pix": ("t.jsonl", json.dumps({"original_image": "a.png", "edit_prompt": PINK}).encode(), (Row(),)),
    "images in columns of their own": (
        "t.csv",
        lines("input_image,input_image_2,input_image_3,prompt", f"a.png,b.png,,{PINK}"),
        A_AND_B,
    ),
    # blank cells and numbers
    "NULL of a database": ("t.csv", one_param("seed", "\\N"), (Row(),)),
    "a missing value of pandas": ("t.csv", one_param("height", "<NA>"), (Row(),)),
    "None for an output": ("t.csv", one_param("output", "None"), (Row(output="000000.png"),)),
    "null for a prompt": ("t.csv", lines("image,prompt", "a.png,null"), (Refused("prompt", "is empty"),)),
    "nan for an image": ("t.csv", one_cell("nan"), (Refused("image", "is empty"),)),
    "an error of the spreadsheet": (
        "t.csv",
        lines("image,prompt", "a.png,#NAME?"),
        (Refused("prompt", "error of the spreadsheet"),),
    ),
    "whole numbers with a point": ("t.csv", one_param("height", "512.0"), (Row(params={"height": 512}),)),
    "a decimal comma": ("t.csv", one_param("guidance_scale", "3,5"), (Row(params={"guidance_scale": 3.5}),)),
    "the largest seed": ("t.csv", one_param("seed", str(2**64 - 1)), (Row(params={"seed": 2**64 - 1}),)),
    "a seed that is too large": ("t.csv", one_param("seed", str(2**64)), (Refused("seed", "less than"),)),
    "a seed that a spreadsheet has rounded": (
        "t.csv",
        one_param("seed", "1.84467E+19"),
        (Refused("seed", "whole number"),),
    ),
    "minus one as a number": ("t.jsonl", json_line(image="a.png", seed=-1), (Row(),)),
    "capitals and a point in a format": (
        "t.csv",
        one_param("output_format", ".JPEG"),
        (Row(params={"output_format": "jpeg"}),),
    ),
    # lists
    "a list as JSON": ("t.csv", one_cell('["a.png", "b.png"]'), A_AND_B),
    "a list as numpy prints it": ("t.csv", one_cell("['a.png' 'b.png']"), A_AND_B),
    "a list as numpy prints it, on two lines": ("t.csv", one_cell("['a.png'\n 'b.png']"), A_AND_B),
    "an array as pandas prints it": ("t.csv", one_cell("array(['a.png', 'b.png'], dtype=object)"), A_AND_B),
    "a tuple": ("t.csv", one_cell("('a.png', 'b.png')"), A_AND_B),
    "an array of Postgres": ("t.csv", one_cell("{a.png,b.png}"), A_AND_B),
    "a list without quotes": ("t.csv", one_cell("[a.png, b.png]"), A_AND_B),
    "semicolons": ("t.csv", one_cell("a.png;b.png"), A_AND_B),
    "lines": ("t.csv", one_cell("a.png\nb.png"), A_AND_B),
    "a list that was cut": (
        "t.csv",
        one_cell("['a.png' 'b.png' ... 'c.png']"),
        (Refused("image", "write it in full"),),
    ),
    "a name with a comma in a list": ("t.csv", one_cell("one,two.png,a.png"), (Row(("one,two.png", "a.png")),)),
    "a name with a semicolon": ("t.csv", one_cell("semi;colon.png"), (Row(("semi;colon.png",)),)),
    "two URLs with commas": (
        "t.csv",
        one_cell("https://x.org/w_4,h_3/a.jpg, https://x.org/w_4,h_3/b.jpg"),
        (Row(("https://x.org/w_4,h_3/a.jpg", "https://x.org/w_4,h_3/b.jpg")),),
    ),
    "a key and a file": (
        "t.csv",
        one_cell("s3://bucket/Smith, John.png,a.png"),
        (Row(("s3://bucket/Smith, John.png", "a.png")),),
    ),
    "two data URIs": ("t.csv", one_cell(f"{INLINE},{INLINE}"), (Row((INLINE, INLINE)),)),
    # names of files
    "per cent": ("t.csv", one_cell("50%.png"), (Row(("50%.png",)),)),
    "a hash": ("t.csv", one_cell("a#b.png"), (Row(("a#b.png",)),)),
    "what looks escaped": ("t.csv", one_cell("a%20b.png"), (Row(("a%20b.png",)),)),
    "blanks and brackets": ("t.csv", one_cell("my cat (1).png"), (Row(("my cat (1).png",)),)),
    "accents decomposed in both": ("t.csv", one_cell("cafe\u0301.png"), (Row(("cafe\u0301.png",)),)),
    "a home that is none": ("t.csv", one_cell("~nobody-of-that-name/a.png"), (Refused("image", "no such file"),)),
    "a drive": ("t.csv", one_cell("C:\\pics\\cat.png"), (Refused("image", "a path of Windows"),)),
    "a drive with slashes": ("t.csv", one_cell("D:/pics/cat.png"), (Refused("image", "a path of Windows"),)),
    "a share": ("t.csv", one_cell("\\\\server\\pics\\cat.png"), (Refused("image", "a path of Windows"),)),
    "a dot and backslashes": ("t.csv", one_cell(".\\pics\\cat.png"), (Row(("pics/cat.png",)),)),
    "another case": ("t.csv", one_cell("A.PNG"), (Refused("image", "there is 'a.png'"),)),
    "a folder": ("t.csv", one_cell("pics"), (Refused("image", "is a folder"),)),
    "a name too long for any": ("t.csv", one_cell("x" * 5000), (Refused("image", "too long"),)),
    "a null byte in JSON": ("t.jsonl", json_line(image="a\0.png"), (Refused("image", "no such file"),)),
    # outputs
    "an output without suffix": ("t.csv", one_param("output", "sub/first"), (Row(output="sub/first.png"),)),
    "an output without suffix, as JPEG": (
        "t.csv",
        lines("image,prompt,output,output_format", f"a.png,{PINK},first,JPG"),
        (Row(params={"output_format": "jpeg"}, output="first.jpg"),),
    ),
    "an output with a point": ("t.csv", one_param("output", "v1.5 final"), (Row(output="v1.5 final.png"),)),
    "an output in here": ("t.csv", one_param("output", "./x.png"), (Row(output="out/x.png"),)),
    "an output with a backslash": ("t.csv", one_param("output", "sub\\x.png"), (Refused("output", "backslash"),)),
    "an output over its input": (
        "t.csv",
        lines("image,prompt,output", f"s3://b/a.png,{PINK},s3://b/a.png"),
        (Refused("output", "would overwrite the image that it is made of"),),
    ),
    "an output over another row's input": (
        "t.csv",
        lines("image,prompt,output", f"s3://b/a.png,{PINK},s3://b/c.png", f"s3://b/b.png,{PINK},s3://b/a.png"),
        (Row(("s3://b/a.png",), output="s3://b/c.png"), Refused("output", "would overwrite the image of a row above")),
    ),
    "an input that is another row's output": (
        "t.csv",
        lines("image,prompt,output", f"s3://b/a.png,{PINK},s3://b/c.png", f"s3://b/c.png,{PINK},s3://b/d.png"),
        (
            Row(("s3://b/a.png",), output="s3://b/c.png"),
            Refused("image", "is overwritten by the output of a row above"),
        ),
    ),
    # images inside
    "base64 in CSV": ("t.csv", one_cell(BASE64), (Row((INLINE,)),)),
    "base64 in an object of JSON": ("t.jsonl", json_line(image={"bytes": BASE64, "path": None}), (Row((INLINE,)),)),
    "bytes as numbers in JSON": ("t.jsonl", json_line(image={"bytes": [*PNG]}), (Row((INLINE,)),)),
    "a path in an object of JSON": ("t.jsonl", json_line(image={"bytes": None, "path": "a.png"}), (Row(),)),
    "a link in an object of JSON": (
        "t.jsonl",
        json_line(image={"src": "https://x.org/a.png"}),
        (Row(("https://x.org/a.png",)),),
    ),
    "a list of both in JSON": ("t.jsonl", json_line(image=["a.png", {"bytes": BASE64}]), (Row(("a.png", INLINE)),)),
    "bytes as pandas writes them into CSV": ("t.csv", one_cell(str({"bytes": PNG, "path": None})), (Row((INLINE,)),)),
    "base64 that is cut": ("t.jsonl", json_line(image={"bytes": BASE64[:-3]}), (Refused("image", "in base64"),)),
    "bytes that are none": (
        "t.jsonl",
        json_line(image={"bytes": 5_000_000_000}),
        (Refused("image", "bytes that are none"),),
    ),
    "an object of nothing": ("t.jsonl", json_line(image={"height": 5}), (Refused("image", "should be a URI"),)),
    # JSON
    "a list of objects": (
        "t.json",
        json.dumps([{"image": "a.png", "prompt": PINK}] * 2, indent=2).encode(),
        (Row(), Row()),
    ),
    "a list in a file of lines": ("t.jsonl", b"[" + json_line(image="a.png") + b"]", (Row(),)),
    "lines in a file called json": (
        "t.json",
        json_line(image="a.png") + b"\n" + json_line(image="b.png"),
        (Row(), Row(("b.png",))),
    ),
    "an element that is no object": (
        "t.json",
        b"[1, " + json_line(image="a.png") + b"]",
        (Refused("row", "not a JSON object"), Row()),
    ),
    "a line nested a hundred thousand deep": (
        "t.jsonl",
        json_line(image="a.png") + b'\n{"x": ' + b"[" * 100_000 + b"]" * 100_000 + b"}\n" + json_line(image="b.png"),
        (Row(), Refused("row", "too deep"), Row(("b.png",))),
    ),
    "a cell nested deeper than a job's": (
        "t.jsonl",
        json_line(image="a.png", x=json.loads("[" * 99 + "]" * 99)),
        (Refused("x", "deep"),),
    ),
    "half a character in a cell": (
        "t.jsonl",
        b'{"image": "a.png", "prompt": "x", "note": "\\ud800"}',
        (Refused("note", "surrogate"),),
    ),
    "half a character in a name": (
        "t.jsonl",
        json_line(image="a.png") + b'\n{"\\ud800": 1}',
        (Row(), Refused("row", "surrogate")),
    ),
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tables")
    shutil.copytree(TABLES, folder, dirs_exist_ok=True)
    return folder


@pytest.mark.parametrize("case", MEMBERS)
def test_a_table_of_the_same_kind_is_read_as_its_author_means_it(case: str, folder: Path) -> None:
    name, content, wanted = MEMBERS[case]
    (folder / name).write_bytes(content)

    assert_rows(read(folder / name), wanted)


NOTES: dict[str, tuple[bytes, str, str]] = {
    "guessed encoding": (b"image,prompt\na.png,gr\xfcn\n", "", "was read as Windows-1252"),
    "a name of another tool": (b"image,prompt,steps\n", "steps", "used as num_inference_steps"),
    "a name that may mean another thing": (b"image,prompt,cfg\n", "cfg", "did you mean guidance_scale?"),
    "a name without a counterpart": (b"image,prompt,negative_prompt\n", "negative_prompt", "not used; Kontext has no"),
    "a slip": (b"image,prompt,heigth\n", "heigth", "did you mean height?"),
    "another slip": (b"image,prompt,guidence_scale\n", "guidence_scale", "did you mean guidance_scale?"),
    "two of a kind": (b"image,prompt,steps,num_inference_steps\n", "steps", "not used; num_inference_steps is"),
    "two columns of images": (b"image,image_url,prompt\n", "image_url", "not used; image is"),
}


@pytest.mark.parametrize("case", NOTES)
def test_what_was_guessed_and_what_is_not_used_is_said(case: str, tmp_path: Path) -> None:
    content, column, said = NOTES[case]
    (tmp_path / "t.csv").write_bytes(content)

    with open_table(str(tmp_path / "t.csv")) as table:
        notes = [*table.notes] if not column else [table.meaning.notes[column]]

    assert [note for note in notes if said in note] == notes != []


def test_columns_of_the_user_are_kept_without_a_word(tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_text("image,prompt,campaign,customer,target_img,price\n")

    with open_table(str(tmp_path / "t.csv")) as table:
        assert table.meaning.notes == {}
        assert table.meaning.kept == ("campaign", "customer", "target_img", "price")


def test_columns_are_named_on_the_command_line(folder: Path) -> None:
    (folder / "t.csv").write_text(f"Picture file,what to do,name,image\na.png,{PINK},first,b.png\n")

    with open_table(str(folder / "t.csv"), ColumnNames.chosen("picture file", "what to do", "name")) as table:
        assert_rows(rows_of(table), (Row(output="out/first.png"),))
    with pytest.raises(TableError, match="needs an image column, named nowhere; its columns are: Picture file"):
        open_table(str(folder / "t.csv"), ColumnNames.chosen("nowhere", None, None)).__enter__()


REFUSED_AS_A_WHOLE: dict[str, tuple[str, bytes, str]] = {
    "an old workbook": ("t.xls", b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1", "save it as .xlsx or CSV"),
    "a damaged workbook": ("t.xlsx", b"PK\x03\x04garbage", "not an .xlsx workbook"),
    "an image": ("a.csv", PNG, "producer edit"),
    "a Git LFS pointer": ("t.csv", b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n", "git lfs pull"),
    "bytes": ("t.csv", bytes(range(256)) * 20, "null bytes"),
    "a packed file that is cut": ("t.csv.gz", gzip.compress(PLAIN.encode() * 100)[:-12], "cannot be unpacked"),
    "a Parquet file that is cut": ("t.parquet", (TABLES / "hf_image.parquet").read_bytes()[:500], "not a Parquet file"),
    "another format": ("t.docx", b"text", "is not a table; use .csv"),
    "a list that is no JSON": ("t.json", b'[{"image": "a.png", "prompt": "x"}, {"image": ]', "element 2: is not JSON"),
    "a list that is cut": ("t.json", b'[{"image": "a.png", "prompt": "x"}, {"image": "a', "element 2: is not JSON"),
    "a list that is cut after a comma": ("t.json", b'[{"image": "a.png", "prompt": "x"},', "the file ends before"),
    "a list with a comma twice": (
        "t.json",
        b'[{"image": "a.png", "prompt": "x"},, {}]',
        "element 2: .* a comma too many",
    ),
    "a list with a comma before all": (
        "t.json",
        b'[,{"image": "a.png", "prompt": "x"}]',
        "element 1: .*a comma too many",
    ),
    "a list without a comma": ("t.json", b'[{"image": "a.png", "prompt": "x"} {}]', "element 2: .*a comma is missing"),
    "a list that is too deep": ("t.json", b'[{"x": ' + b"[" * 100_000 + b"}]", "nests too deep"),
    "no object at all": ("t.jsonl", b"1\n2\n", "has no JSON object"),
    "a header in another encoding": (
        "t.csv",
        "image,prompt,größe\na.png,ü,1\n".encode().replace("ö".encode(), b"\xf6"),
        "header is not UTF-8",
    ),
    "a column twice": ("t.csv", b"image,prompt,image\n", "column 'image' stands twice"),
    "no line at all": ("t.csv", b"", "the first line must name the columns"),
}


@pytest.mark.parametrize("case", REFUSED_AS_A_WHOLE)
def test_what_is_no_table_is_named_in_one_line(case: str, tmp_path: Path) -> None:
    name, content, said = REFUSED_AS_A_WHOLE[case]
    (tmp_path / name).write_bytes(content)

    with pytest.raises(TableError, match=said) as refusal:
        read(tmp_path / name)

    assert "\n" not in str(refusal.value)


TOKENS = (
    *(b'"', b"'", b"[", b"]", b"{", b"}", b",", b";", b"\t", b"\n", b"\r", b"\0", b"\xff", b"\xc3", b"\\", b"\\ud800"),
    *(b"~", b"C:\\", b"..", b"nan", b"1e999", b"data:", b"http://[", b"s3://", b"file:///%ff", b"b'", b"array("),
    *(codecs.BOM_UTF8, codecs.BOM_UTF16_LE, b"sep=;", "\u202e".encode(), b"9" * 5000, b"[" * 2000, b"image"),
)


@pytest.mark.parametrize("seed", range(4))
def test_a_damaged_table_is_rows_or_one_line_and_its_results_can_be_written(folder: Path, seed: int) -> None:
    rng = random.Random(seed)
    tables = [(path.name, path.read_bytes()) for path in sorted(TABLES.glob("*.csv"))]
    tables += [(name, content) for name, content, _ in MEMBERS.values() if len(content) < 5000]
    for number in range(100):
        name, content = rng.choice(tables)
        damaged = bytearray(content)
        for _ in range(rng.randint(1, 5)):
            place = rng.randrange(len(damaged) + 1)
            damaged[place : place + rng.choice((0, 0, 1, 8))] = rng.choice((b"", *TOKENS))
        path = folder / f"damaged-{seed}-{number}{''.join(Path(name).suffixes)}"
        path.write_bytes(damaged)
        try:
            with open_table(str(path)) as table:
                write_all(folder / "results.csv", table)
        except TableError as error:
            assert len(str(error).splitlines()) == 1  # noqa: PT017 - either end is right


def write_all(path: Path, table: Table) -> None:
    rows = [ReportRow(row.cells, (), "", Ending("refused", error=str(row.problems))) for row in rows_of(table)]
    write_results(path, Layout(table.columns, path.parent), rows)
    write_results(path, Layout(table.columns, path.parent), rows, "jsonl")


def read(path: Path, accepted: ColumnNames | None = None) -> list[TableRow]:
    with open_table(str(path), accepted) as table:
        return rows_of(table)


def rows_of(table: Table) -> list[TableRow]:
    return list(table.rows(table.plan(ROOT, RowDefaults(), "batch")))


def assert_rows(rows: list[TableRow], wanted: Wanted) -> None:
    assert len(rows) == len(wanted), [problem for row in rows for problem in row.problems]
    for row, expected in zip(rows, wanted, strict=True):
        if isinstance(expected, Refused):
            assert row.job is None
            assert [problem.column for problem in row.problems] == [expected.column]
            assert expected.said in row.problems[0].remedy
        else:
            assert row.problems == ()
            assert row.job is not None
            assert_job(row.job, expected)


def assert_job(job: EditJob, wanted: Row) -> None:
    names = [unquote(uri) if uri.startswith("file:") else uri for uri in job.image]
    assert len(names) == len(wanted.images)
    assert all(name.endswith(end) for name, end in zip(names, wanted.images, strict=True)), names
    assert job.prompt == wanted.prompt
    assert {
        name: value for name, value in job.params.model_dump(exclude_defaults=True).items() if value
    } == wanted.params
    assert (job.output or "").endswith(wanted.output)

"""Tables of edits: what is read, what every wrong cell is told, and which ids follow."""

from __future__ import annotations

import csv
import io
import json
import sys
import tracemalloc
from pathlib import Path
from typing import Any

import pytest

from jobs.errors import SettingsError
from jobs.schema import EditJob
from producer.errors import TableError
from producer.table.plan import RowDefaults
from producer.table.rows import RowProblem, TableRow
from producer.table.table import open_table

ROOT = "s3://bucket/out"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder with pictures to name."""
    (tmp_path / "in").mkdir()
    for name in ("cat.png", "dog.png", "in/odd name.png", "a,b.png"):
        (tmp_path / name).write_bytes(b"picture")
    return tmp_path


def read(path: Path, batch: str = "batch", **defaults: Any) -> list[TableRow]:
    with open_table(str(path)) as table:
        return list(table.rows(table.plan(ROOT, RowDefaults.read(**defaults), batch)))


def jobs_of(folder: Path, text: str, name: str = "data.csv", **defaults: Any) -> list[EditJob]:
    (folder / name).write_text(text)
    rows = read(folder / name, **defaults)
    assert [problem for row in rows for problem in row.problems] == []
    return [row.job for row in rows if row.job is not None]


def problems_of(folder: Path, text: str, name: str = "data.csv") -> list[RowProblem]:
    (folder / name).write_text(text)
    return [problem for row in read(folder / name) for problem in row.problems]


def test_a_row_becomes_a_job_with_everything_its_cells_say(folder: Path) -> None:
    text = (
        "image,prompt,seed,num_inference_steps,guidance_scale,height,width,output,quality,callback_url,campaign\n"
        "cat.png,make it snow,7,20,3.5,512,768,winter/cat.jpg,80,https://example.com/done,spring\n"
    )

    (job,) = jobs_of(folder, text)

    assert job.image == ((folder / "cat.png").as_uri(),)
    assert job.params.model_dump(exclude_defaults=True) == {
        "num_inference_steps": 20,
        "guidance_scale": 3.5,
        "seed": 7,
        "width": 768,
        "height": 512,
        "quality": 80,
    }
    assert job.output == f"{ROOT}/winter/cat.jpg"
    assert job.callback is not None
    assert job.callback.url == "https://example.com/done"
    assert job.metadata == {"campaign": "spring"}
    assert job.batch == "batch"


def test_csv_as_spreadsheets_write_it_is_read(folder: Path) -> None:
    text = '\ufeffimage,prompt\r\ncat.png,"make it snow,\r\nthen ""freeze"" it"\r\n\r\n,,\r\ndog.png,rain\r\n'

    first, second = jobs_of(folder, text)

    assert first.prompt == 'make it snow,\r\nthen "freeze" it'
    assert second.id.startswith("batch-000001-")


def test_tsv_jsonl_and_parquet_say_the_same_as_csv(folder: Path) -> None:
    parquet = pytest.importorskip("pyarrow.parquet")
    table = pytest.importorskip("pyarrow").Table.from_pylist(
        [{"image": "cat.png", "prompt": "snow", "seed": 7}, {"image": "dog.png", "prompt": "rain", "seed": None}]
    )
    parquet.write_table(table, folder / "data.parquet")
    json_lines = '{"image": "cat.png", "prompt": "snow", "seed": 7}\n\n{"image": ["dog.png"], "prompt": "rain"}\n'
    expected = jobs_of(folder, "image,prompt,seed\ncat.png,snow,7\ndog.png,rain,\n")

    for jobs in (
        jobs_of(folder, "image\tprompt\tseed\ncat.png\tsnow\t7\ndog.png\train\t\n", "data.tsv"),
        jobs_of(folder, json_lines, "data.jsonl"),
        [row.job for row in read(folder / "data.parquet")],
    ):
        assert [(job.image, job.prompt, job.params) for job in jobs if job] == [
            (job.image, job.prompt, job.params) for job in expected
        ]


@pytest.mark.parametrize(
    "text", ["image,prompt\ns3://b/cat.png,snow\n", '{"image": "s3://b/cat.png", "prompt": "snow"}\n']
)
def test_standard_input_is_csv_or_json_lines(text: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(text.encode())))

    with open_table("-") as table:
        plan = table.plan(ROOT, RowDefaults())
        (row,) = table.rows(plan)

    assert row.job is not None
    assert row.job.prompt == "snow"
    assert plan.batch.startswith("stdin-")


@pytest.mark.parametrize(
    ("cell", "names"),
    [
        ("cat.png", ["cat.png"]),
        ("in/odd name.png", ["in/odd name.png"]),
        ("cat.png, dog.png", ["cat.png", "dog.png"]),
        ('["cat.png", "dog.png"]', ["cat.png", "dog.png"]),
        ("a,b.png", ["a,b.png"]),  # a file of that name is there
    ],
)
def test_pictures_are_named_relative_to_the_table(folder: Path, cell: str, names: list[str]) -> None:
    (job,) = jobs_of(folder, _csv(["image", "prompt"], [cell, "snow"]))

    assert list(job.image) == [(folder / name).as_uri() for name in names]


def test_uris_stay_as_they_are_and_data_uris_keep_their_comma(folder: Path) -> None:
    uris = ["https://example.com/a.png", "s3://bucket/a.png", "data:image/png;base64,AAAA"]

    jobs = jobs_of(folder, _csv(["input_images", "instruction"], *[[uri, "snow"] for uri in uris]))

    assert [job.image for job in jobs] == [(uri,) for uri in uris]


@pytest.mark.parametrize(
    ("column", "value", "remedy"),
    [
        ("image", "", "is empty; give the URI or path of a picture"),
        ("image", "nowhere.png", "no such file"),
        ("image", "ftp://host/a.png", "is not a URI with one of the schemes"),
        ("image", "[1]", "should be a URI, several separated by commas, or a JSON list"),
        ("image", '["cat.png"', "is not a list; write it as JSON"),
        ("image", "cat.png,cat.png,cat.png,cat.png,cat.png", "expected 1 to 4 pictures, not 5"),
        ("prompt", "", "is empty; say what to change in the picture"),
        ("id", "a/b", "should be at most 128 letters, digits and . _ : -"),
        ("index", "-1", "should be a whole number, 0 or more"),
        ("height", "100000", "should be less than or equal to 4096"),
        ("width", "15", "should be greater than or equal to 16"),
        ("num_inference_steps", "0", "should be greater than or equal to 1"),
        ("num_inference_steps", "many", "should be a whole number"),
        ("guidance_scale", "high", "should be a number"),
        ("seed", "1.5", "should be a whole number"),
        ("output_format", "gif", "should be 'png', 'jpeg' or 'webp'"),
        ("quality", "101", "should be less than or equal to 100"),
        ("callback_url", "mailto:me", "is not a URI with one of the schemes https, http"),
        ("output", "/etc/cat.png", "should be a name under the output folder"),
        ("output", "a/../../cat.png", "without '..'"),
        ("output", "file:///tmp/cat.png", "should be a name under the output folder"),
        ("output", "s3://bucket/../cat.png", "without '..'"),
        ("output", "cat.bmp", "cannot write .bmp"),
    ],
)
def test_a_wrong_cell_is_named_with_row_column_value_and_remedy(
    folder: Path, column: str, value: str, remedy: str
) -> None:
    good = {"image": "cat.png", "prompt": "snow"}
    columns = list({**good, column: ""})
    cells = [{**good, column: value}.get(name, "") for name in columns]

    (problem,) = problems_of(folder, _csv(columns, [good.get(name, "") for name in columns], cells))

    assert (problem.row, problem.column) == (2, column)
    assert problem.value == value
    assert remedy in problem.remedy


def test_every_wrong_cell_of_a_row_is_named_at_once(folder: Path) -> None:
    problems = problems_of(folder, "image,prompt,height,seed\nnowhere.png,,9,x\n")

    assert [problem.column for problem in problems] == ["image", "prompt", "seed", "height"]
    assert str(problems[-1]) == "row 1, height '9': should be greater than or equal to 16"


def test_a_format_that_contradicts_the_outputs_suffix_is_named(folder: Path) -> None:
    (problem,) = problems_of(folder, "image,prompt,output,output_format\ncat.png,snow,cat.jpg,png\n")

    assert problem.column == "output"


@pytest.mark.parametrize("column", ["id", "output"])
def test_the_second_row_with_one_name_is_refused(folder: Path, column: str) -> None:
    rows = [["cat.png", "snow", "same.png"], ["dog.png", "rain", "same.png"], ["cat.png", "hail", "other.png"]]

    (problem,) = problems_of(folder, _csv(["image", "prompt", column], *rows))

    assert (problem.row, problem.column) == (2, column)
    assert "taken by a row above" in problem.remedy


def test_rows_that_cannot_be_read_are_named_and_the_others_go_on(folder: Path) -> None:
    lines = '{"image": "cat.png", "prompt": "snow"}\nnot json\n[1]\n{"image": "dog.png", "prompt": "\\ud800"}\n'
    too_long = problems_of(folder, "image,prompt\ncat.png,snow, but little\n")
    unread = problems_of(folder, lines, "data.jsonl")

    assert too_long[0].remedy.startswith("has 3 cells for 2 columns")
    assert [problem.row for problem in unread] == [2, 3, 4]


def test_a_folder_named_with_half_of_a_character_is_a_problem_of_its_row(folder: Path) -> None:
    cell = '["in \\ud800/cat.png"]'

    (problem,) = problems_of(folder, _csv(["image", "prompt"], [cell, "snow"], ["cat.png", "rain"]))

    assert (problem.row, problem.column) == (1, "image")
    assert "no such file" in problem.remedy


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"", "the first line must name the columns"),
        (b"photo,prompt\n", "needs an image column, named image or image_url"),
        (
            b"image,words\n",
            "needs a prompt column, named prompt or instruction; its columns are: image, words; .* --prompt-column",
        ),
        (b"image,prompt,image\n", "column 'image' stands twice"),
    ],
)
def test_a_table_without_what_is_needed_is_refused_as_a_whole(folder: Path, content: bytes, said: str) -> None:
    (folder / "data.csv").write_bytes(content)

    with pytest.raises(TableError, match=said):
        read(folder / "data.csv")


def test_a_missing_table_and_an_unknown_kind_are_told(folder: Path) -> None:
    for name, said in (("nowhere.csv", "no such file"), ("cat.png", "is not a table; use .csv")):
        with pytest.raises(TableError, match=said):
            read(folder / name)


def test_parquet_without_pyarrow_says_how_to_get_it(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pyarrow.parquet", None)
    (folder / "data.parquet").write_bytes(b"PAR1")

    with pytest.raises(TableError, match="pip install pyarrow"):
        read(folder / "data.parquet")


def test_options_fill_blank_cells_only(folder: Path) -> None:
    text = "image,prompt,seed,output\ncat.png,snow,7,cat.png\ndog.png,rain,,dog.webp\ndog.png,hail,,\n"

    first, second, third = jobs_of(folder, text, seed=1, output_format="jpeg", height=512)

    assert [job.params.seed for job in (first, second, third)] == [7, 1, 1]
    assert third.output == f"{ROOT}/batch/000002.jpg"
    assert first.params.output_format is None, "the row's own suffix wins"
    assert {job.params.height for job in (first, second, third)} == {512}


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"num_inference_steps": 0}, "--num-inference-steps 0: should be greater than or equal to 1"),
        ({"output_format": "gif"}, "--output-format gif: should be 'png', 'jpeg' or 'webp'"),
        ({"aspect_ratio": "16:9", "width": 64}, "--aspect-ratio 16:9: contradicts width 64; leave out width"),
        ({"size_mode": "crop"}, "--size-mode crop: should be 'match', 'fit' or 'reference'"),
        ({"priority": "urgent"}, "--priority urgent: should be 'high', 'normal' or 'low'"),
        ({"tenant": "a b"}, "--tenant a b: "),
        ({"callback_url": "ftp://host"}, "--callback-url ftp://host: 'ftp://host' is not a URI"),
    ],
)
def test_a_wrong_option_is_named(options: dict[str, Any], said: str) -> None:
    with pytest.raises(SettingsError, match=said):
        RowDefaults.read(**options)


@pytest.mark.parametrize(
    ("options", "columns", "cells", "kept"),
    [
        ({"width": 640}, "aspect_ratio", "16:9", {"aspect_ratio": "16:9"}),
        ({"aspect_ratio": "1:1"}, "width", "640", {"width": 640}),
        ({"width": 640, "height": 480}, "width", "320", {"width": 320}),
        ({"width": 640}, "size_mode", "fit", {"width": 640, "size_mode": "fit"}),
        ({"aspect_ratio": "1:1"}, "aspect_ratio", "", {"aspect_ratio": "1:1"}),
    ],
)
def test_a_rows_own_way_of_asking_for_a_size_wins(
    folder: Path, options: dict[str, Any], columns: str, cells: str, kept: dict[str, Any]
) -> None:
    (job,) = jobs_of(folder, f"image,prompt,{columns}\ncat.png,snow,{cells}\n", **options)

    assert job.params.model_dump(include={"width", "height", "aspect_ratio"}, exclude_none=True) == {
        name: value for name, value in kept.items() if name != "size_mode"
    }


@pytest.mark.parametrize(
    ("columns", "cells", "said"),
    [
        (
            "width,aspect_ratio",
            "640,16:9",
            "aspect_ratio '16:9': contradicts width 640; leave out width, or aspect_ratio",
        ),
        ("aspect_ratio", "5:1", "aspect_ratio '5:1': should be input, or a shape from 21:9 to 9:21 such as 16:9"),
        ("size_mode", "crop", "size_mode 'crop': should be 'match', 'fit' or 'reference'"),
    ],
)
def test_sizes_that_contradict_are_named(folder: Path, columns: str, cells: str, said: str) -> None:
    (problem,) = problems_of(folder, f"image,prompt,{columns}\ncat.png,snow,{cells}\n")

    assert str(problem) == f"row 1, {said}"


def test_outputs_are_numbered_by_row_or_by_the_index_column(folder: Path) -> None:
    plain = jobs_of(folder, "image,prompt\ncat.png,snow\ndog.png,rain\n")
    indexed = jobs_of(folder, "image,prompt,index\ncat.png,snow,40\ndog.png,rain,41.0\n")

    assert [job.output for job in plain] == [f"{ROOT}/batch/000000.png", f"{ROOT}/batch/000001.png"]
    assert [job.output for job in indexed] == [f"{ROOT}/batch/000040.png", f"{ROOT}/batch/000041.png"]


def test_the_same_table_has_the_same_ids_and_any_change_has_others(folder: Path) -> None:
    path = folder / "data.csv"

    def identity(text: str, root: str = ROOT, **defaults: Any) -> tuple[str, list[str]]:
        path.write_text(text)
        with open_table(str(path)) as table:
            plan = table.plan(root, RowDefaults.read(**defaults))
            return plan.batch, [row.job_id for row in table.rows(plan)]

    text = "image,prompt\ncat.png,snow\ndog.png,rain\n"
    batch, job_ids = identity(text)

    assert identity(text) == (batch, job_ids)
    assert batch.startswith("data-")
    assert job_ids[1].startswith(f"{batch}-000001-")
    assert identity(text + "cat.png,hail\n")[0] != batch
    assert identity(text, seed=1)[0] != batch
    assert identity(text, root="s3://other")[0] != batch


def test_a_changed_row_is_another_job_and_its_neighbours_stay(folder: Path) -> None:
    path = folder / "data.csv"
    path.write_text("image,prompt\ncat.png,snow\ndog.png,rain\n")
    before = [row.job_id for row in read(path)]
    path.write_text("image,prompt\ncat.png,snow\ndog.png,hail\n")
    after = [row.job_id for row in read(path)]

    assert before[0] == after[0]
    assert before[1] != after[1]


@pytest.mark.parametrize("batch", ["-x", "a b", "x" * 101])
def test_a_batch_name_that_cannot_be_is_refused(folder: Path, batch: str) -> None:
    (folder / "data.csv").write_text("image,prompt\ncat.png,snow\n")

    with pytest.raises(SettingsError, match="--batch"):
        read(folder / "data.csv", batch)


def test_cells_that_are_not_text_survive_as_metadata(folder: Path) -> None:
    line = {"image": "cat.png", "prompt": "snow", "tags": ["a", "b"], "price": 1.5, "none": None}

    (job,) = jobs_of(folder, json.dumps(line) + "\n", "data.jsonl")

    assert job.metadata == {"tags": ["a", "b"], "price": 1.5}


def test_a_long_table_is_read_in_bounded_memory(tmp_path: Path) -> None:
    rows = 10_000
    with (tmp_path / "long.csv").open("w") as file:
        file.write("image,prompt,campaign\n")
        file.writelines(f"s3://bucket/{row}.png,make it snow on {row},spring\n" for row in range(rows))

    tracemalloc.start()
    with open_table(str(tmp_path / "long.csv")) as table:
        assert sum(row.job is not None for row in table.rows(table.plan(ROOT, RowDefaults()))) == rows
    _, peak_bytes = tracemalloc.get_traced_memory()
    tracemalloc.stop()

    assert peak_bytes < 4 * 2**20, "kept in a list, 10,000 jobs take 20 MiB"


def _csv(columns: list[str], *rows: list[str]) -> str:
    file = io.StringIO()
    csv.writer(file).writerows([columns, *rows])
    return file.getvalue()

"""results.csv and the gallery."""

from __future__ import annotations

import csv
import errno
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from jobs.schema import JobState
from producer import Client
from producer.errors import TableError
from producer.report import Ending, ReportRow, table_report
from producer.result_files import Layout, read_earlier, write_results
from producer.table.plan import RowDefaults
from producer.table.separated import LARGEST_CELL_BYTES
from producer.table.table import open_table
from tests.producer.conftest import finish


def test_every_row_stands_in_its_order_with_its_columns_and_its_ending(folder: Path, client: Client) -> None:
    rows = ["cat.png,snow,spring,1", "nowhere.png,rain,summer,2", 'dog.png,"hail, and ice",autumn,3', "dog.png,fog,,4"]
    (folder / "data.csv").write_text("\n".join(["image,prompt,campaign,seed", *rows, ""]))
    with open_table(str(folder / "data.csv")) as table:
        plan = table.plan((folder / "out").as_uri(), RowDefaults(), "spring")
        jobs = [row.job for row in table.rows(plan) if row.job is not None]
        list(client.submit_many(jobs[:2]))
        finish(client, jobs[0].id)
        error = {"code": "engine_failed", "message": "no"}
        finish(client, jobs[1].id, JobState.FAILED, output=None, error=error)
        write_results(
            folder / "results.csv", Layout(table.columns, folder), table_report(table, plan, client.ledger.get_many)
        )

    with (folder / "results.csv").open(newline="") as file:
        header, *lines = csv.reader(file)
    assert header == [
        *("image", "prompt", "campaign", "seed"),
        *("state", "output", "result_seed", "attempts", "seconds", "error", "job_id"),
    ]
    assert [line[:4] for line in lines] == [next(csv.reader([row])) for row in rows]
    assert [line[4] for line in lines] == ["succeeded", "refused", "failed", "not queued"]
    assert lines[0][5:8] == ["out/spring/000000.png", "1", "1"]
    assert lines[1][9].startswith("image 'nowhere.png': no such file")
    assert lines[2][9] == "engine_failed: no"


def test_rows_that_are_not_done_now_end_as_they_did_before(folder: Path) -> None:
    (folder / "data.csv").write_text("image,prompt\ncat.png,snow\ncat.png,rain\nnowhere.png,fog\ncat.png,hail\n")
    with open_table(str(folder / "data.csv")) as table:
        plan = table.plan("s3://bucket", RowDefaults(), "spring")
        done, failed, gone, new = [row.job_id for row in table.rows(plan)]
        before = {
            done: Ending("succeeded", "s3://bucket/x.png", job_id=done),
            failed: Ending("failed", error="engine_failed: no", job_id=failed),
            gone: Ending("failed", error="input_not_found: gone", job_id=gone),
        }

        endings = [row.ending for row in table_report(table, plan, lambda ids: [None] * len(ids), before)]

    assert endings[:2] == [before[done], before[failed]]
    assert endings[2].error.startswith("image 'nowhere.png': no such file")
    assert endings[3] == Ending("not queued", job_id=new)


def test_a_job_of_the_same_id_that_asks_for_something_else_is_a_conflict(folder: Path, client: Client) -> None:
    (folder / "data.csv").write_text("id,image,prompt\none,cat.png,snow\n")
    with open_table(str(folder / "data.csv")) as table:
        plan = table.plan("s3://bucket", RowDefaults(), "spring")
        client.submit(next(job for row in table.rows(plan) if (job := row.job)))
    (folder / "data.csv").write_text("id,image,prompt\none,cat.png,rain\n")

    with open_table(str(folder / "data.csv")) as table:
        (row,) = table_report(table, plan, client.ledger.get_many)

    assert (row.ending.state, row.ending.job_id) == ("conflict", "one")


def test_the_old_results_stay_when_writing_fails(tmp_path: Path) -> None:
    path = tmp_path / "results.csv"
    path.write_text("old")

    def rows() -> Iterator[ReportRow]:
        yield ReportRow({}, (), "", Ending("queued"))
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with pytest.raises(TableError, match=r"results\.csv: cannot be written \(No space left on device\)"):
        write_results(path, Layout(("image",), path.parent), rows())

    assert [file.name for file in tmp_path.iterdir()] == ["results.csv"]
    assert path.read_text() == "old"


def test_of_earlier_rows_count_failures_and_successes_whose_file_is_there(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(b"picture")
    (tmp_path / "empty.png").touch()
    endings = [
        Ending("succeeded", (tmp_path / "a.png").as_uri(), 7, 1, 0.5, "", "a"),
        Ending("succeeded", (tmp_path / "empty.png").as_uri(), 7, 1, 0.5, "", "b"),
        Ending("succeeded", (tmp_path / "gone.png").as_uri(), 7, 1, 0.5, "", "c"),
        Ending("failed", "", 7, 3, 0.5, "engine_failed: no", "d"),
        Ending("cancelled", job_id="e"),
        Ending("running", job_id="f"),
        Ending("not queued", job_id="g"),
    ]
    write_results(
        tmp_path / "results.csv",
        Layout(("state",), tmp_path),
        (ReportRow({"state": "NY"}, (), "", end) for end in endings),
    )

    assert read_earlier(tmp_path / "results.csv", Layout(("state",), tmp_path)) == {
        ending.job_id: ending for ending in endings if ending.job_id in "ade"
    }
    assert read_earlier(tmp_path / "nowhere.csv", Layout(("state",), tmp_path)) == {}


def test_cells_of_a_hundred_kilobytes_and_more_are_read_again(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(b"picture")
    done = Ending("succeeded", (tmp_path / "a.png").as_uri(), 7, 1, 0.5, "", "a")
    write_results(
        tmp_path / "results.csv", Layout(("note",), tmp_path), [ReportRow({"note": "x" * 200_000}, (), "", done)]
    )
    csv.field_size_limit(131_072)  # Python's own limit, which only reading a CSV table lifts

    assert read_earlier(tmp_path / "results.csv", Layout(("note",), tmp_path)) == {"a": done}


@pytest.mark.parametrize(
    "content",
    [b"state\n\xff\n", b'state\n"' + b"x" * (LARGEST_CELL_BYTES + 1)],
    ids=["not UTF-8", "a quote never closed"],
)
def test_results_that_cannot_be_read_are_named_with_the_way_on(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "results.csv").write_bytes(content)

    with pytest.raises(TableError, match=r"results\.csv: cannot be read \(.*\); .* use --overwrite"):
        read_earlier(tmp_path / "results.csv", Layout(("image",), tmp_path))

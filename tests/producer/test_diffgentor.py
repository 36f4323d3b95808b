"""The known command line `diffgentor edit --backend flux_kontext_official ...`, as people type it."""

from __future__ import annotations

import csv
import json
from importlib import import_module
from pathlib import Path

import pytest

from jobs import machine
from jobs.errors import SettingsError
from producer.embedded.gpus import choose_gpus
from producer.table.raw import RawRow
from producer.table.selection import RowSelection
from tests.producer.conftest import Command

KNOWN = ("edit", "--backend", "flux_kontext_official", "--model_name", "model")


@pytest.fixture
def table(folder: Path) -> Path:
    """A table as that tool's users have it; the model is an empty folder, since the stand-in needs none."""
    (folder / "model").mkdir()
    (folder / "data.csv").write_text(
        "index,input_images,instruction,output_path,height\n"
        "10,cat.png,snow,animals/cat_with_hat,512\n"
        '11,"[""dog.png"", ""cat.png""]",rain,animals/dog.jpg,\n'
        "12,dog.png,hail,,\n"
    )
    return folder


def results(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def test_the_known_command_does_a_table(table: Path, diffgentor: Command) -> None:
    options = ["--num_inference_steps", "30", "--guidance_scale", "2.5", "--seed", "7"]

    ended = diffgentor(*KNOWN, "--input", "data.csv", "--output_dir", "./output", *options)

    assert ended.returncode == 0, ended.stderr
    rows = results(table / "output/results.csv")
    assert [row["output_image"] for row in rows] == ["000010.png", "000011.png", "000012.png"]
    assert {row["seed"] for row in rows} == {"7"}
    assert rows[0]["output_path"] == "animals/cat_with_hat", "a column without meaning comes back as it was"
    assert (table / "output/000010.png").read_bytes() == b"cat"


def test_outputs_have_the_names_of_a_column_and_results_lie_where_they_were_asked_for(
    table: Path, diffgentor: Command
) -> None:
    named = ["--output_name_column", "output_path", "--output_csv", "report/all.csv"]

    ended = diffgentor(*KNOWN, "--input", "data.csv", *named)

    assert ended.returncode == 0, ended.stderr
    rows = results(table / "report/all.csv")
    assert [row["output_image"] for row in rows] == ["animals/cat_with_hat.png", "animals/dog.jpg", "000012.png"]
    assert (table / "output/animals/cat_with_hat.png").exists()
    again = diffgentor(*KNOWN, "--input", "data.csv", *named)
    assert "3 rows done before" in again.stderr


@pytest.mark.parametrize(
    ("chosen", "places"),
    [
        ("0:2", [0, 1]),
        ("0,2", [0, 2]),
        ("1:", [1, 2]),
        (":1", [0]),
        ("0:100", [0, 1, 2]),
        ("2, 0:1", [0, 2]),
        ("7", []),
    ],
)
def test_rows_are_chosen_by_their_places(chosen: str, places: list[int]) -> None:
    rows = [RawRow(number, {}) for number in (1, 2, 3)]

    assert [row.number - 1 for row in RowSelection.parse(chosen, "--filter_rows").of(rows)] == places


def test_filter_rows_is_applied_and_the_number_of_rows_said(table: Path, diffgentor: Command) -> None:
    ended = diffgentor(*KNOWN, "--input", "data.csv", "--filter_rows", "1:100")

    assert ended.returncode == 0, ended.stderr
    assert "2 rows selected" in ended.stderr
    states = [row["state"] for row in results(table / "output/results.csv")]
    assert states == ["not queued", "succeeded", "succeeded"]


def test_rows_done_under_one_filter_stay_done_under_the_next(table: Path, diffgentor: Command) -> None:
    diffgentor(*KNOWN, "--input", "data.csv", "--filter_rows", "0:1")
    first = results(table / "output/results.csv")[0]

    diffgentor(*KNOWN, "--input", "data.csv", "--filter_rows", "1:")

    rows = results(table / "output/results.csv")
    assert [row["state"] for row in rows] == ["succeeded"] * 3
    assert rows[0] == first


def test_no_resume_does_everything_again(table: Path, diffgentor: Command) -> None:
    diffgentor(*KNOWN, "--input", "data.csv")
    before = results(table / "output/results.csv")

    idle = diffgentor(*KNOWN, "--input", "data.csv", "--resume")
    again = diffgentor(*KNOWN, "--input", "data.csv", "--no_resume")

    assert "3 rows done before" in idle.stderr
    assert "done before" not in again.stderr
    assert [row["seed"] for row in results(table / "output/results.csv")] != [row["seed"] for row in before]


def test_doing_some_rows_again_leaves_the_results_of_the_others(table: Path, diffgentor: Command) -> None:
    diffgentor(*KNOWN, "--input", "data.csv")
    before = results(table / "output/results.csv")

    again = diffgentor(*KNOWN, "--input", "data.csv", "--filter_rows", "1:2", "--no_resume")
    after = results(table / "output/results.csv")
    idle = diffgentor(*KNOWN, "--input", "data.csv", "--filter_rows", "0:2")

    assert [row["state"] for row in after] == ["succeeded"] * 3
    assert [row == old for row, old in zip(after, before, strict=True)] == [True, False, True]
    assert "done before" not in again.stderr
    assert "1 done, 0 failed, 0 refused" in again.stderr, "the selected row alone"
    assert "2 rows done before" in idle.stderr
    assert "2 done, 0 failed, 0 refused" in idle.stderr
    assert results(table / "output/results.csv") == after


def test_a_folder_of_parquet_files_is_one_table(table: Path, diffgentor: Command) -> None:
    arrow, parquet = import_module("pyarrow"), import_module("pyarrow.parquet")
    (table / "shards").mkdir()
    for number, (image, text) in enumerate([("../cat.png", "snow"), ("../dog.png", "rain")]):
        rows = [{"image": image, "edit": text, "index": number}]
        parquet.write_table(arrow.Table.from_pylist(rows), table / f"shards/data-{number}.parquet")

    ended = diffgentor(*KNOWN, "--input", "shards", "--instruction_key", "edit")

    assert ended.returncode == 0, ended.stderr
    assert [row["output_image"] for row in results(table / "output/results.csv")] == ["000000.png", "000001.png"]
    assert (table / "output/000001.png").read_bytes() == b"dog"


def test_options_reach_the_worker(table: Path, diffgentor: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    (table / "notes").mkdir()
    (table / "gpus").mkdir()
    for name in ("a", "b", "c"):
        (table / "gpus" / name).mkdir()
    monkeypatch.setattr(machine, "DRIVER", table / "gpus")
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    chosen = ["--num_gpus", "2", "--max_retries", "5", "--image_cache_dir", "cache"]
    variables = {"DG_FLUX_KONTEXT_OFFLOAD": "true", "DG_FLUX_KONTEXT_MAX_SEQUENCE_LENGTH": "256"}

    ended = diffgentor(*KNOWN, "--input", "data.csv", *chosen, STANDIN_NOTES=str(table / "notes"), **variables)

    assert ended.returncode == 0, ended.stderr
    notes = [json.loads(path.read_text()) for path in sorted((table / "notes").iterdir())]
    assert notes[0]["CUDA_VISIBLE_DEVICES"] in ("0", "1")  # one of them may not have begun before all was done
    for note in notes:
        assert note["DG_FLUX_KONTEXT_MODEL"] == str(table / "model")
        assert note["DG_MAX_ATTEMPTS"] == "6"
        assert note["DG_INPUT_CACHE_DIR"] == str(table / "cache")
        assert note.items() >= variables.items()


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--backend", "diffusers"], "--backend diffusers: here is --backend flux_kontext_official only; diffgentor"),
        (["--backend", "flux"], "--backend flux: unknown; here is --backend flux_kontext_official only"),
        (["--model_name", "/nowhere"], "--model_name /nowhere: no such folder; give the model's folder or"),
        (["--filter_rows", "5:2"], "--filter_rows '5:2': expected places of rows such as 0:100, 100: or 0,5"),
        (["--filter_rows", "1" * 5000], "--filter_rows '1111"),
        (["--filter_rows", "90:"], "data.csv: no row that could be done"),
        (["--num_nodes", "4"], "--num_nodes: several machines share a table through one queue: producer submit"),
        (["--prompt_enhance_type", "flux2"], "--prompt_enhance_type: prompts are used as they stand"),
        (["--nonsense", "4"], "--nonsense: no such option; see diffgentor edit --help"),
        (["--max_retries", "-1"], "--max_retries -1: expected 0 or more"),
        (["--num_gpus", "0"], "--num-gpus 0: expected 1 or more"),
        (["--instruction_key", "edit"], "data.csv: needs a prompt column, named edit; its columns are: index"),
        (["--output_name_column", "name"], "data.csv: needs an output column, named name; its columns are: index"),
        (["--guidance_scale", "1000"], "--guidance-scale 1000.0: should be less than or equal to 100"),
    ],
)
def test_what_cannot_be_done_is_answered_by_one_line(
    table: Path, diffgentor: Command, words: list[str], said: str
) -> None:
    ended = diffgentor(*KNOWN, "--input", "data.csv", *words)

    assert ended.returncode == 2
    assert f"error: {said}" in ended.stderr
    assert len([line for line in ended.stderr.splitlines() if line.startswith("error:")]) == 1
    assert "Traceback" not in ended.stderr


def test_without_a_backend_the_other_tool_would_take_diffusers(table: Path, diffgentor: Command) -> None:
    ended = diffgentor("edit", "--model_name", "Qwen/Qwen-Image-Edit", "--input", "data.csv")

    assert ended.returncode == 2
    assert "--backend diffusers" in ended.stderr


def test_options_without_a_use_are_named_once(table: Path, diffgentor: Command) -> None:
    ended = diffgentor(*KNOWN, "--input", "data.csv", "--batch_size", "4", "--enable_compile", "--torch_dtype=float16")

    assert ended.returncode == 0, ended.stderr
    assert "not used by flux_kontext_official: --batch_size, --enable_compile, --torch_dtype\n" in ended.stderr


@pytest.mark.parametrize("command", ["t2i", "serve"])
def test_other_commands_name_the_tool_that_serves_them(diffgentor: Command, command: str) -> None:
    ended = diffgentor(command, "--backend", "diffusers", "--prompt", "A cat")

    assert ended.returncode == 2
    assert f"error: {command}: diffgentor itself serves it" in ended.stderr


@pytest.mark.parametrize(
    ("asked", "variables", "driver", "chosen"),
    [
        (None, {}, 0, [None]),
        (1, {}, 0, [None]),
        (None, {}, 1, [None]),
        (None, {}, 3, ["0", "1", "2"]),
        (2, {}, 3, ["0", "1"]),
        (None, {"CUDA_VISIBLE_DEVICES": "4,7"}, 8, ["4", "7"]),
        (None, {"CUDA_VISIBLE_DEVICES": ""}, 8, [None]),
        (None, {"DG_FLUX_KONTEXT_DEVICE": "cpu"}, 8, [None]),
        (None, {"DG_FLUX_KONTEXT_DEVICE": "cuda:1"}, 8, [None]),
        (1, {}, 3, ["0"]),
    ],
)
def test_each_visible_gpu_has_a_worker(
    tmp_path: Path, asked: int | None, variables: dict[str, str], driver: int, chosen: list[str | None]
) -> None:
    for number in range(driver):
        (tmp_path / f"0000:{number}").mkdir()

    assert choose_gpus(asked, variables, tmp_path) == chosen


def test_more_gpus_than_there_are_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "0000:1").mkdir()

    for variables, said in [
        ({}, "1 GPU visible here"),
        ({"CUDA_VISIBLE_DEVICES": ""}, "0 GPUs visible here"),
        ({"DG_FLUX_KONTEXT_DEVICE": "cpu"}, "DG_FLUX_KONTEXT_DEVICE=cpu has one worker"),
    ]:
        with pytest.raises(SettingsError, match=f"--num-gpus 2: {said}"):
            choose_gpus(2, variables, tmp_path)

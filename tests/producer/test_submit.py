"""`producer submit` and what follows a batch, as people and scripts run them."""

from __future__ import annotations

import csv
import io
import json
import signal
import subprocess
import threading
from pathlib import Path

import pytest
from redis import Redis

from jobs.ledger import Outbox
from jobs.queue import QUEUE
from jobs.registry import WorkerInfo, WorkerRegistry, WorkerState
from jobs.schema import JobState
from producer import Client
from producer.result_files import RESULT_COLUMNS
from tests.producer.conftest import Command, finish, producer_command, producer_environment
from tests.servers.redis import RedisServer
from tests.waiting import PATIENCE_SECONDS, eventually


def test_a_table_is_queued_and_its_batch_printed(folder: Path, producer: Command, client: Client) -> None:
    ended = producer("submit", "data.csv", "--output", "s3://bucket/out")

    batch = ended.stdout.strip()
    assert ended.returncode == 0
    assert ended.stderr == f"batch {batch}: 2 queued, 0 already there, 0 refused\n"
    records = client.ledger.get_many(list(client.ledger.batch_job_ids(batch)))
    assert [record.job.output for record in records if record] == [
        f"s3://bucket/out/{batch}/000000.png",
        f"s3://bucket/out/{batch}/000001.png",
    ]


def test_the_same_table_twice_queues_nothing_twice(folder: Path, producer: Command, redis_client: Redis) -> None:
    first = producer("submit", "data.csv")
    again = producer("submit", "data.csv")

    assert again.returncode == 0
    assert again.stdout == first.stdout
    assert "0 queued, 2 already there" in again.stderr
    assert redis_client.llen(QUEUE) == 2


def test_options_may_be_written_with_underscores(folder: Path, producer: Command, client: Client) -> None:
    ended = producer("submit", "data.csv", "--num_inference_steps", "7", "--guidance_scale=3")

    (first, _) = client.ledger.batch_job_ids(ended.stdout.strip())
    assert client.get(first).job.params.num_inference_steps == 7


def test_a_wrong_variable_of_the_worker_does_not_stop_a_submit(folder: Path, producer: Command) -> None:
    ended = producer("submit", "data.csv", DG_FLUX_KONTEXT_PRECISION="fp4", DG_CALLBACK_SECRET="hunter2")

    assert ended.returncode == 0, ended.stderr
    assert "2 queued" in ended.stderr


def test_wrong_rows_are_named_and_the_good_ones_go(folder: Path, producer: Command, redis_client: Redis) -> None:
    (folder / "bad.csv").write_text("image,prompt,height\ncat.png,snow,\nnowhere.png,rain,\ndog.png,hail,9\n")

    ended = producer("submit", "bad.csv")

    assert ended.returncode == 1
    lines = ended.stderr.splitlines()
    assert lines[0].startswith("row 2, image 'nowhere.png': no such file")
    assert lines[1] == "row 3, height '9': should be greater than or equal to 16"
    assert lines[2].endswith("1 queued, 0 already there, 2 refused")
    assert redis_client.llen(QUEUE) == 1


@pytest.mark.parametrize(("option", "code"), [("--strict", 2), ("--dry-run", 1)])
def test_strict_and_dry_run_queue_nothing(
    folder: Path, producer: Command, redis_client: Redis, option: str, code: int
) -> None:
    (folder / "bad.csv").write_text("image,prompt\ncat.png,snow\ncat.png,\n")

    ended = producer("submit", "bad.csv", option)

    assert ended.returncode == code
    assert "row 2, prompt" in ended.stderr
    assert redis_client.llen(QUEUE) == 0


def test_a_dry_run_needs_no_redis(folder: Path, producer: Command, redis_server: RedisServer) -> None:
    redis_server.kill()

    assert producer("submit", "data.csv", "--dry-run").returncode == 0


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["submit", "nowhere.csv"], "error: nowhere.csv: no such file"),
        (["submit", "data.csv", "--seed", "x"], "Invalid value for '--seed'"),
        (["submit", "data.csv", "--height", "100000"], "error: --height 100000: should be less than or equal to 4096"),
        (["submit", "data.csv", "--results", "r.csv"], "--results needs --wait"),
        (["submit", "data.csv", "--output", "ftp://host"], "error: DG_OUTPUT_URI"),
        (["status", "nowhere"], "error: no batch and no job 'nowhere'"),
        (["watch", "nowhere"], "error: no batch and no job 'nowhere'"),
        (["results", "nowhere"], "error: no batch and no job 'nowhere'"),
        (["cancel", "nowhere"], "error: no batch and no job 'nowhere'"),
        (["edit", "nowhere.png", "snow"], "relative paths start from the folder that you are in"),
        (["edit", ".", "snow"], "error: .: is a folder; name a picture in it"),
        (["submit", "data.csv", "--loras", "a;b.safetensors"], "error: --loras a;b.safetensors: no such file"),
        (
            ["submit", "data.csv", "--loras", "a;b.safetensors"],
            "; relative paths start from the folder that you are in",
        ),
        (["submit", "data.csv", "--loras", "."], "error: --loras .: is a folder; name a LoRA file in it"),
    ],
)
def test_what_cannot_be_used_is_one_line_and_exit_code_2(
    folder: Path, producer: Command, arguments: list[str], said: str
) -> None:
    ended = producer(*arguments)

    assert ended.returncode == 2
    assert said in ended.stderr
    assert "Traceback" not in ended.stderr
    assert ended.stdout == ""


def test_redis_down_is_exit_code_3(folder: Path, producer: Command, redis_server: RedisServer) -> None:
    redis_server.kill()

    for arguments in (["submit", "data.csv"], ["status"], ["watch", "some"]):
        ended = producer(*arguments)

        assert ended.returncode == 3
        assert ended.stderr.startswith("error: Redis at 127.0.0.1")
        assert len(ended.stderr.splitlines()) == 1


def test_a_full_queue_is_exit_code_4_and_the_rest_goes_later(
    folder: Path, producer: Command, client: Client, redis_client: Redis
) -> None:
    full = producer("submit", "data.csv", DG_MAX_QUEUED="1")
    (job_id,) = redis_client.zrange("dg:queued", 0, -1)
    finish(client, job_id)
    later = producer("submit", "data.csv", DG_MAX_QUEUED="1")

    assert full.returncode == 4
    assert "queue full (1 of 1) after 1 row; go on later, or with --wait-for-room" in full.stderr
    assert later.returncode == 0
    assert "1 queued, 1 already there" in later.stderr


def test_a_submit_can_wait_for_room(folder: Path, producer: Command, client: Client, redis_client: Redis) -> None:
    def work() -> None:
        for _ in range(2):
            finish(client, eventually(lambda: client.ledger.oldest_queued(1))[0])

    worker = threading.Thread(target=work)
    worker.start()
    ended = producer("submit", "data.csv", "--wait-for-room", DG_MAX_QUEUED="1")
    worker.join()

    assert ended.returncode == 0
    assert "2 queued" in ended.stderr


def test_a_conflict_is_told_and_exit_code_1(folder: Path, producer: Command) -> None:
    producer("submit", "data.csv", "--batch", "spring", "--seed", "1")

    ended = producer("submit", "data.csv", "--batch", "spring", "--seed", "2")

    assert ended.returncode == 1
    assert "2 in conflict with other jobs" in ended.stderr


def test_json_has_one_object_a_line_and_nothing_else(folder: Path, producer: Command) -> None:
    (folder / "bad.csv").write_text("image,prompt\ncat.png,snow\ncat.png,\n")

    ended = producer("submit", "bad.csv", "--json")

    problem, submitted = map(json.loads, ended.stdout.splitlines())
    assert (problem["event"], problem["row"], problem["column"]) == ("problem", 2, "prompt")
    assert (submitted["event"], submitted["queued"], submitted["refused"]) == ("submitted", 1, 1)


def test_standard_input_is_a_table(folder: Path, producer: Command) -> None:
    ended = producer("submit", "-", stdin='{"image": "cat.png", "prompt": "snow"}\n')

    assert ended.returncode == 0
    assert ended.stdout.startswith("stdin-")


def test_waiting_shows_progress_and_writes_the_results(
    folder: Path, redis_server: RedisServer, client: Client, redis_client: Redis
) -> None:
    command = producer_command("submit", "data.csv", "--wait", "--results", "results.csv", "--json")
    process = subprocess.Popen(command, cwd=folder, env=producer_environment(redis_server), stdout=subprocess.PIPE)
    first, second = eventually(lambda: waiting(redis_client, 2))
    finish(client, first)
    finish(client, second, JobState.FAILED, error={"code": "engine_failed", "message": "no"}, output=None)
    stdout, _ = process.communicate(timeout=PATIENCE_SECONDS)

    lines = [json.loads(line) for line in stdout.splitlines()]
    assert process.returncode == 1, "one job has failed"
    progress, failures = lines[-2:]
    assert (progress["event"], progress["succeeded"], progress["failed"]) == ("progress", 1, 1)
    assert (failures["event"], failures["code"], failures["count"]) == ("failures", "engine_failed", 1)
    with (folder / "results.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["state"] for row in rows] == ["succeeded", "failed"]
    assert rows[1]["error"] == "engine_failed: no"


def test_ctrl_c_while_waiting_leaves_the_jobs_and_says_how_to_go_on(
    folder: Path, redis_server: RedisServer, redis_client: Redis
) -> None:
    command = producer_command("submit", "data.csv", "--wait", "--batch", "spring")
    environment = producer_environment(redis_server)
    process = subprocess.Popen(command, cwd=folder, env=environment, stderr=subprocess.PIPE, text=True)
    assert process.stderr is not None
    while "queued, 0 running" not in process.stderr.readline():
        pass
    process.send_signal(signal.SIGINT)
    _, stderr = process.communicate(timeout=PATIENCE_SECONDS)

    assert process.returncode == 130
    assert "watch them with: producer watch spring" in stderr
    assert "Traceback" not in stderr
    assert redis_client.zcard("dg:queued") == 2


def test_status_tells_the_queue_a_batch_and_a_job(
    folder: Path, producer: Command, client: Client, redis_client: Redis
) -> None:
    producer("submit", "data.csv", "--batch", "spring")
    job_id = waiting(redis_client, 2)[1]
    WorkerRegistry(redis_client).beat(WorkerInfo("gpu-1", WorkerState.BUSY, device="cuda:0"))

    assert producer("status").stdout == "2 queued, 0 delayed, 0 running, 0 callbacks\ngpu-1: busy; cuda:0\n"
    assert producer("status", "spring").stdout.startswith("batch spring: 2 queued, 0 running")
    assert json.loads(producer("status", "spring", "--json").stdout)["queued"] == 2
    assert producer("status", job_id).stdout == f"job {job_id}: queued, 0 attempts\n  1 job before it in the queue\n"
    assert json.loads(producer("status", job_id, "--json").stdout)["queue_position"] == 1
    assert json.loads(producer("status", "--json").stdout)["workers"][0]["name"] == "gpu-1"


def test_status_without_a_worker_says_how_to_start_one(producer: Command) -> None:
    assert "start one with: worker run" in producer("status").stderr


def test_cancel_ends_a_job_or_a_batch(folder: Path, producer: Command, client: Client, redis_client: Redis) -> None:
    producer("submit", "data.csv", "--batch", "spring")

    one = producer("cancel", waiting(redis_client, 2)[0])
    rest = producer("cancel", "spring", "--json")

    assert (one.returncode, rest.returncode) == (0, 0)
    assert one.stderr == "cancelled 1 queued, stopping 0 running, 0 had ended before\n"
    assert json.loads(rest.stdout)["ended_before"] == 1
    assert client.status("spring")[JobState.CANCELLED] == 2
    assert producer("watch", "spring").returncode == 1


def test_what_failed_is_queued_again_by_job_by_batch_and_by_its_error(
    folder: Path, producer: Command, client: Client, redis_client: Redis
) -> None:
    producer("submit", "data.csv", "--batch", "spring")
    one, other = waiting(redis_client, 2)
    redis_client.delete(QUEUE)
    for job_id, code in ((one, "worker_lost"), (other, "input_not_found")):
        finish(client, job_id, JobState.FAILED, error={"code": code, "message": "it ended"})

    by_code = producer("retry", "spring", "--code", "worker_lost", "--json")
    by_job = producer("retry", other)
    again = producer("retry", "spring", "--json")

    assert json.loads(by_code.stdout) == {"name": "spring", "retried": 1, "cancelled": 0}
    assert (by_job.returncode, by_job.stderr) == (0, "1 job back in the queue\n")
    assert json.loads(again.stdout)["retried"] == 0
    assert client.status("spring")[JobState.QUEUED] == 2
    assert redis_client.llen(QUEUE) == 2, "their messages are sent"
    assert "is one job" in producer("retry", other, "--code", "worker_lost").stderr
    assert producer("retry", "nowhere").returncode == 2


def test_callbacks_are_listed_given_up_and_sent_again(
    folder: Path, producer: Command, client: Client, redis_client: Redis
) -> None:
    producer("submit", "data.csv", "--batch", "spring", "--callback-url", "https://example.org/hook")
    for job_id in waiting(redis_client, 2):
        finish(client, job_id)
    one, other = Outbox(client.ledger).take(2, hide_seconds=60)
    Outbox(client.ledger).settle(one.webhook_id, "dropped", "HTTP 410")
    Outbox(client.ledger).settle(other.webhook_id, "pending", "HTTP 500", delay_seconds=60)

    def listed(*arguments: str) -> list[str]:
        lines = producer("callbacks", *arguments, "--json").stdout.splitlines()
        return [json.loads(line)["webhook_id"] for line in lines]

    assert listed() == listed("--state", "pending") == listed("spring") == [other.webhook_id]
    assert listed("--state", "dropped") == listed(one.job_id, "--state", "dropped") == [one.webhook_id]
    assert listed("spring", "--state", "delivered") == []
    words = producer("callbacks", "spring").stdout
    assert words.startswith(f"{other.webhook_id}: pending, 1 attempt, HTTP 500, due 20")

    assert producer("callbacks", "--replay").stderr == "1 callback sent again\n"
    assert sorted(listed()) == sorted([one.webhook_id, other.webhook_id])
    assert producer("callbacks", one.job_id, "--drop").stderr == "1 callback given up\n"
    assert listed() == [other.webhook_id]
    assert listed("--state", "dropped") == [one.webhook_id]
    for wrong in (["--replay", "--drop"], ["--state", "delivered"], ["--drop", "--state", "dropped"], ["nowhere"]):
        assert producer("callbacks", *wrong).returncode == 2


def test_results_come_from_the_ledger_or_with_the_table_in_its_order(
    folder: Path, producer: Command, client: Client, redis_client: Redis
) -> None:
    (folder / "data.csv").write_text("image,prompt,campaign\ncat.png,,lost\ncat.png,snow,spring\ndog.png,rain,autumn\n")
    producer("submit", "data.csv", "--batch", "spring")
    finish(client, waiting(redis_client, 2)[1])

    ledger = rows_of(producer("results", "spring").stdout)
    table = rows_of(producer("results", "spring", "--table", "data.csv").stdout)
    as_json = [json.loads(line) for line in producer("results", "spring", "--json").stdout.splitlines()]

    assert [(row["campaign"], row["state"]) for row in ledger] == [("spring", "queued"), ("autumn", "succeeded")]
    assert [row["state"] for row in table] == ["refused", "queued", "succeeded"]
    assert "prompt: is empty" in table[0]["error"]
    assert [line["result"]["state"] for line in as_json] == ["queued", "succeeded"]
    assert as_json[0]["result"].keys() == set(RESULT_COLUMNS)
    assert as_json[1]["result"]["attempts"] == 1, "numbers are numbers"
    assert as_json[0]["result"]["seconds"] is None


def test_the_gallery_is_one_page(folder: Path, producer: Command) -> None:
    producer("submit", "data.csv", "--batch", "spring")

    ended = producer("gallery", "spring", "-o", "pages/gallery.html")

    assert ended.returncode == 0
    assert (folder / "pages/gallery.html").read_text().count('"state": "queued"') == 2


def test_a_table_with_a_column_called_result_keeps_it(folder: Path, producer: Command) -> None:
    (folder / "data.csv").write_text("image,prompt,result\ncat.png,snow,good\n")
    producer("submit", "data.csv", "--batch", "spring")

    (line,) = producer("results", "spring", "--json").stdout.splitlines()

    assert json.loads(line)["result"] == "good"
    assert json.loads(line)["result_result"]["state"] == "queued"


@pytest.mark.parametrize("command", ["results", "gallery"])
def test_a_file_that_cannot_be_written_is_named_in_one_line(folder: Path, producer: Command, command: str) -> None:
    producer("submit", "data.csv", "--batch", "spring")

    ended = producer(command, "spring", "-o", "cat.png/page")

    assert ended.returncode == 2
    assert ended.stderr.startswith("error: cat.png/page: cannot be written (")
    assert len(ended.stderr.splitlines()) == 1


def waiting(redis_client: Redis, count: int) -> list[str]:
    """The jobs that wait, in the order of their rows, once there are `count`."""
    job_ids = sorted(redis_client.zrange("dg:queued", 0, -1))
    return job_ids if len(job_ids) == count else []


def rows_of(text: str) -> list[dict[str, str]]:
    return list(csv.DictReader(io.StringIO(text)))


def test_priority_and_tenant_come_by_option_and_by_column_and_status_counts_tenants(
    folder: Path, producer: Command, client: Client
) -> None:
    picture = folder / "cat.png"
    table = folder / "turns.csv"
    table.write_text(f"image,prompt,priority,id\n{picture},snow,,a\n{picture},rain,high,b\n{picture},sun,urgent,c\n")

    ended = producer("submit", str(table), "--tenant", "lab", "--priority", "low")

    assert "priority" in ended.stderr
    jobs = [client.get(name).job for name in ("a", "b")]
    assert [(job.priority, job.tenant) for job in jobs] == [("low", "lab"), ("high", "lab")]
    assert "tenant lab: 2 queued, 0 running" in producer("status").stdout


def test_events_of_callbacks_and_the_store_profile_come_by_option_and_by_column(
    folder: Path, producer: Command, client: Client
) -> None:
    image, hook = folder / "cat.png", "https://a.example/hook"
    table = folder / "news.csv"
    table.write_text(
        "image,prompt,callback_url,callback_events,store_profile,id\n"
        f'{image},snow,{hook},"started, failed",,a\n'
        f"{image},rain,{hook},,archive,b\n"
        f"{image},sun,{hook},finished,,c\n"
        f"{image},fog,,failed,,d\n"
    )

    ended = producer("submit", str(table), "--callback-events", "progress", "--store-profile", "shop")

    jobs = [client.get(name).job for name in ("a", "b")]
    assert [job.callback.events for job in jobs if job.callback] == [("started", "failed"), ("progress",)]
    assert [job.store_profile for job in jobs] == ["shop", "archive"]
    assert "row 3, callback_events 'finished': should be 'started', 'progress'" in ended.stderr
    assert "row 4, callback_events 'failed': needs a callback_url" in ended.stderr


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--callback-events", "failed"], "--callback-events needs --callback-url"),
        (["--callback-events", "ended", "--callback-url", "https://a.example/"], "error: --callback-events ended"),
        (["--store-profile", "a b"], "error: --store-profile a b"),
    ],
)
def test_an_option_that_no_job_can_have_queues_nothing(
    options: list[str], said: str, folder: Path, producer: Command
) -> None:
    ended = producer("submit", "data.csv", *options)

    assert (ended.returncode, said in " ".join(ended.stderr.split())) == (2, True), ended.stderr


def test_chosen_rows_go_first_and_the_rest_of_the_same_batch_later(
    folder: Path, producer: Command, client: Client
) -> None:
    first = producer("submit", "data.csv", "--rows", "1")
    whole = producer("submit", "data.csv")

    assert (first.returncode, whole.returncode) == (0, 0), first.stderr + whole.stderr
    assert first.stdout == whole.stdout
    assert "1 row selected" in first.stderr
    assert "1 queued, 0 already there" in first.stderr
    assert "1 queued, 1 already there" in whole.stderr
    assert client.status(whole.stdout.strip())[JobState.QUEUED] == 2
    assert "--rows '2:1': expected places of rows" in producer("submit", "data.csv", "--rows", "2:1").stderr


def test_a_table_that_is_forced_is_done_again_as_a_batch_of_its_own(
    folder: Path, producer: Command, client: Client
) -> None:
    first, *again = [producer("submit", "data.csv", "--batch", "spring", "--force").stdout.strip() for _ in range(3)]
    third = producer("submit", "data.csv", "--batch", "spring-3")

    assert [first, *again] == ["spring", "spring-2", "spring-3"]
    assert "0 queued, 2 already there" in third.stderr, "how to go on with it"
    assert {client.status(name)[JobState.QUEUED] for name in (first, *again)} == {2}
    outputs = {
        client.get(job_id).job.output for name in (first, *again) for job_id in client.ledger.batch_job_ids(name)
    }
    assert len(outputs) == 6

"""What people see of a batch's end, and before it is queued: failures by code, closed folders, plans, lists."""

from __future__ import annotations

import json
import threading
from pathlib import Path

import pytest
from redis import Redis

from jobs.errors import BrokerUnavailable, ErrorCode
from jobs.registry import WorkerInfo, WorkerRegistry, WorkerState
from jobs.schema import JobState
from producer import Client
from producer.failures import REMEDIES, group_failures
from producer.progress import Pace, follow
from tests.producer.conftest import Command, finish, make_job
from tests.servers.redis import RedisServer
from tests.waiting import PATIENCE_SECONDS, eventually


@pytest.fixture
def ended(client: Client) -> Client:
    """A batch of five: one done, two forbidden, one not found, one cancelled."""
    list(client.submit_many(make_job(f"job-{number}", batch="spring") for number in range(5)))
    finish(client, "job-0")
    for number, code in ((1, "input_not_found"), (2, "input_forbidden"), (3, "input_forbidden")):
        finish(client, f"job-{number}", JobState.FAILED, error={"code": code, "message": f"no {number}"})
    client.cancel("job-4")
    return client


def test_failures_are_grouped_by_code_with_an_example_a_remedy_and_the_way_on(ended: Client, producer: Command) -> None:
    watched = producer("watch", "spring")

    assert watched.returncode == 1
    assert watched.stderr.splitlines()[1:4] == [
        "2 input_forbidden, such as job job-2: no 2",
        f"  remedy: {REMEDIES[ErrorCode.INPUT_FORBIDDEN]}",
        "  then: producer retry spring --code input_forbidden",
    ]
    assert "DG_FILE_ROOTS" in REMEDIES[ErrorCode.INPUT_FORBIDDEN]
    assert [(group.code, group.count) for group in group_failures(ended.ledger, "spring")] == [
        ("input_forbidden", 2),
        ("input_not_found", 1),
        ("cancelled", 1),
    ]


def test_failures_are_objects_with_json(ended: Client, producer: Command) -> None:
    lines = [json.loads(line) for line in producer("watch", "spring", "--json").stdout.splitlines()]

    failures = [line for line in lines if line["event"] == "failures"]
    assert failures[0] == {
        "event": "failures",
        "code": "input_forbidden",
        "count": 2,
        "job_id": "job-2",
        "message": "no 2",
        "remedy": REMEDIES[ErrorCode.INPUT_FORBIDDEN],
        "retry": "producer retry spring --code input_forbidden",
    }


def test_every_code_has_a_remedy() -> None:
    assert REMEDIES.keys() == set(ErrorCode)


def test_a_batch_without_failures_says_nothing_more(client: Client, producer: Command) -> None:
    client.submit(make_job("one", batch="spring"))
    finish(client, "one")

    assert len(producer("watch", "spring").stderr.splitlines()) == 1


def test_retry_of_a_batch_says_what_stays_cancelled(ended: Client, producer: Command) -> None:
    retried = producer("retry", "spring")
    rest = producer("retry", "spring", "--code", "cancelled")

    assert retried.stderr.splitlines() == [
        "3 jobs back in the queue",
        "1 cancelled stay as they are; take them up with: producer retry spring --code cancelled",
    ]
    assert rest.stderr == "1 job back in the queue\n"


def test_batches_are_listed_newest_first_and_forgotten_ones_leave_the_list(
    client: Client, producer: Command, redis_client: Redis
) -> None:
    for name in ("spring", "summer", "autumn"):
        client.submit(make_job(f"{name}-1", batch=name))
    finish(client, "summer-1")
    redis_client.delete(client.ledger.key("batch", "spring"))  # as when its time is over

    listed = [json.loads(line) for line in producer("batches", "--json").stdout.splitlines()]

    assert [line["batch"] for line in listed] == ["autumn", "summer"]
    assert (listed[1]["succeeded"], listed[1]["queued"]) == (1, 0)
    assert "summer: 20" in producer("batches").stdout
    client.submit(make_job("winter-1", batch="winter"))
    assert redis_client.zcard(client.ledger.key("batches")) == 3


def test_a_job_is_watched_to_its_end_and_its_results_are_those_of_a_batch_of_one(
    ended: Client, producer: Command, folder: Path
) -> None:
    good, bad = producer("watch", "job-0"), producer("watch", "job-2")
    report = producer("results", "job-0", "--json")
    page = producer("gallery", "job-0")

    assert (good.returncode, bad.returncode) == (0, 1)
    assert good.stdout.startswith("job job-0: succeeded, 1 attempt")
    assert "input_forbidden: no 2" in bad.stdout
    assert json.loads(report.stdout)["result"]["job_id"] == "job-0"
    assert page.stdout == "gallery.html\n"


@pytest.mark.parametrize(
    ("roots", "warned"),
    [((), True), (("/elsewhere",), True), (("TABLE",), False), (("/",), False), (None, False)],
)
def test_submit_warns_when_no_worker_may_read_the_local_inputs(
    folder: Path, producer: Command, redis_client: Redis, roots: tuple[str, ...] | None, warned: bool
) -> None:
    opened = None if roots is None else tuple(root.replace("TABLE", str(folder)) for root in roots)
    WorkerRegistry(redis_client).beat(WorkerInfo("gpu-1", WorkerState.READY, file_roots=opened))

    submitted = producer("submit", "data.csv")

    assert submitted.returncode == 0
    said = f"warning: no worker that is up may read {folder}; 2 jobs will fail with input_forbidden"
    assert (said in submitted.stderr) is warned
    assert (f"DG_FILE_ROOTS={folder}, or submit with --upload s3://" in submitted.stderr) is warned


def test_submit_warns_of_local_loras_too(folder: Path, producer: Command, redis_client: Redis) -> None:
    (folder / "loras").mkdir()
    (folder / "loras/snow.safetensors").write_bytes(b"lora")
    (folder / "web.csv").write_text("image,prompt\nhttps://example.org/a.png,snow\n")
    WorkerRegistry(redis_client).beat(WorkerInfo("gpu-1", WorkerState.READY, file_roots=("/elsewhere",)))

    submitted = producer("submit", "web.csv", "--loras", "loras/snow.safetensors")

    assert f"warning: no worker that is up may read {folder}/loras; 1 job will fail" in submitted.stderr


def test_one_worker_that_may_read_them_is_enough_and_none_at_all_is_no_news(
    folder: Path, producer: Command, redis_client: Redis
) -> None:
    alone = producer("submit", "data.csv", "--batch", "first")
    WorkerRegistry(redis_client).beat(WorkerInfo("gpu-1", WorkerState.READY, file_roots=()))
    WorkerRegistry(redis_client).beat(WorkerInfo("gpu-2", WorkerState.READY, file_roots=("/",)))
    beside = producer("submit", "data.csv", "--batch", "second")

    assert "warning" not in alone.stderr + beside.stderr


def test_a_report_of_an_older_or_a_newer_worker_is_read(redis_client: Redis) -> None:
    registry = WorkerRegistry(redis_client)
    for name, report in (
        ("old", {"name": "old", "state": "ready", "jobs": []}),
        ("new", {"name": "new", "state": "busy", "jobs": ["a"], "file_roots": ["/a"], "colour": "blue"}),
    ):
        redis_client.set(f"dg:worker:{name}", json.dumps(report))
        redis_client.sadd("dg:workers", name)

    new, old = registry.workers()

    assert (old.file_roots, new.file_roots, new.jobs) == (None, ("/a",), ("a",))


def test_a_dry_run_tells_what_is_there_already(folder: Path, producer: Command, client: Client) -> None:
    batch = producer("submit", "data.csv").stdout.strip()
    finish(client, next(client.ledger.batch_job_ids(batch)))
    (folder / "more.csv").write_text((folder / "data.csv").read_text())

    planned = json.loads(producer("submit", "data.csv", "--dry-run", "--json").stdout.splitlines()[-1])
    fresh = json.loads(producer("submit", "more.csv", "--dry-run", "--json").stdout.splitlines()[-1])

    assert (planned["event"], planned["batch"], planned["rows"], planned["refused"]) == ("planned", batch, 2, 0)
    assert planned["to_queue"] == 0
    assert planned["already_there"] == dict.fromkeys(JobState, 0) | {"succeeded": 1, "queued": 1}
    assert (fresh["to_queue"], sum(fresh["already_there"].values())) == (2, 0)
    assert "there already: 1 queued, 1 succeeded" in producer("submit", "data.csv", "--dry-run").stderr


def test_the_same_table_again_says_how_what_failed_is_taken_up(folder: Path, producer: Command, client: Client) -> None:
    batch = producer("submit", "data.csv").stdout.strip()
    for job_id in client.ledger.batch_job_ids(batch):
        finish(client, job_id, JobState.FAILED, error={"code": "input_forbidden", "message": "no"})

    again, planned = producer("submit", "data.csv"), producer("submit", "data.csv", "--dry-run")

    assert f"2 of those already there have failed; take them up with: producer retry {batch}\n" in again.stderr
    assert f"failed ones are taken up with: producer retry {batch}\n" in planned.stderr


def test_a_dry_run_without_redis_says_that_it_does_not_know(
    folder: Path, producer: Command, redis_server: RedisServer
) -> None:
    redis_server.kill()

    planned = producer("submit", "data.csv", "--dry-run", "--json")

    assert planned.returncode == 0
    assert json.loads(planned.stdout.splitlines()[-1])["already_there"] is None
    assert "is not known: Redis at" in planned.stderr


def test_a_redis_that_restarts_is_waited_for_with_a_word(
    client: Client, redis_server: RedisServer, capsys: pytest.CaptureFixture[str]
) -> None:
    client.submit(make_job("one", batch="spring"))
    looks: list[int] = []

    def look_on() -> None:
        for look in follow(Client(redis_server.url), "spring"):
            looks.append(look.ended)

    watcher = threading.Thread(target=look_on, daemon=True)
    watcher.start()
    eventually(lambda: looks, what="a first look")
    redis_server.kill()
    said: list[str] = []

    def is_said() -> bool:
        said.append(capsys.readouterr().err)
        return "waiting for it" in "".join(said)

    eventually(is_said)
    redis_server.start()
    finish(client, "one")
    watcher.join(PATIENCE_SECONDS)

    assert not watcher.is_alive()
    assert "Redis answers again" in "".join(said) + capsys.readouterr().err


def test_a_redis_that_is_not_there_at_first_ends_a_watch(client: Client, redis_server: RedisServer) -> None:
    redis_server.kill()

    with pytest.raises(BrokerUnavailable):
        next(follow(client, "spring"))


def test_the_pace_counts_from_the_first_job_that_runs() -> None:
    pace = Pace()

    loading = [pace.rate(float(second), running=0, ended=0) for second in range(60)]
    begun = pace.rate(60.0, running=1, ended=0)
    after = pace.rate(64.0, running=1, ended=2)

    assert set(loading) == {0.0}
    assert begun == 0.0
    assert after == pytest.approx(0.4), "two jobs in the five seconds since the last look at a model that loads"


def test_the_pace_of_slow_jobs_is_that_of_the_last_few() -> None:
    pace = Pace()
    for second in range(0, 1000, 5):
        rate = pace.rate(float(second), running=1, ended=second // 100)

    assert rate == pytest.approx(0.01, rel=0.35)


def test_the_pace_stays_between_two_ends_and_falls_when_the_next_one_is_overdue() -> None:
    pace = Pace()
    pace.rate(0.0, running=1, ended=0)

    rates = [pace.rate(float(second), running=1, ended=1) for second in (10, 15, 25, 40)]

    assert rates == [pytest.approx(rate) for rate in (0.1, 0.1, 0.1, 0.025)]

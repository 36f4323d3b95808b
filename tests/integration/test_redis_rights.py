"""Each process with no more rights in Redis than `deploy/redis/users.acl` gives it, on a real Redis."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from base64 import b64encode
from collections.abc import Iterator
from pathlib import Path

import pytest
from PIL import Image
from redis import Redis
from redis.exceptions import NoPermissionError

from jobs.connection import connect
from jobs.errors import BrokerRefused, BrokerUnavailable
from jobs.ledger import Ledger, Outbox
from jobs.schema import EditJob, JobState
from jobs.settings import BrokerSettings, load_settings
from producer import Client
from tests.integration.conftest import SECRET
from tests.servers.http import Answer, HttpServer
from tests.servers.redis import RedisServer, running_redis
from tests.servers.worker import running_worker
from tests.waiting import PATIENCE_SECONDS, eventually
from worker.metrics.queue import QueueCollector
from worker.settings import Settings
from worker.top import Top

RULES = Path(__file__).parent.parent.parent / "deploy" / "redis"
LOGINS = {name: f"{name}:change-me-{name}" for name in ("admin", "producer", "worker", "callbacks", "exporter")}
STRANGERS_KEY = "somebody-elses:key"


def strict_redis() -> Path:
    """A Redis from 7 on, whose rules tell reading from writing."""
    binary = shutil.which("redis-server") or shutil.which("valkey-server")
    version = subprocess.run([binary, "--version"], capture_output=True, text=True).stdout if binary else ""
    found = re.search(r"v=(\d+)", version)
    if binary is None or found is None or int(found[1]) < 7:
        pytest.skip("there is no Redis from 7 on here")
    return Path(binary)


@pytest.fixture(params=["users.acl", "users-7.acl"])
def guarded_redis(tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[RedisServer]:
    binary = strict_redis() if request.param == "users-7.acl" else None
    with running_redis(tmp_path, LOGINS["admin"], binary=binary, aclfile=RULES / request.param) as server:
        yield server


@pytest.fixture
def strictly_guarded_redis(tmp_path: Path) -> Iterator[RedisServer]:
    with running_redis(tmp_path, LOGINS["admin"], binary=strict_redis(), aclfile=RULES / "users-7.acl") as server:
        yield server


def test_each_process_does_its_whole_job_with_its_own_rights(
    guarded_redis: RedisServer, tmp_path: Path, http_server: HttpServer
) -> None:
    hook = http_server.answer("/hook", Answer(200))
    common = {
        "DG_OUTPUT_URI": (tmp_path / "out").as_uri(),
        "DG_PRIVATE_HOSTS": "127.0.0.1",
        "DG_CALLBACK_SECRET": SECRET,
        "DG_FLUX_KONTEXT_ENGINE": "standin",
        "STANDIN_STEP_SECONDS": "0.01",
    }
    producer = {"broker_url": guarded_redis.url_of(LOGINS["producer"]), "output_uri": common["DG_OUTPUT_URI"]}
    client = Client(settings=load_settings(BrokerSettings, **producer, max_queued=10))
    picture = _picture(tmp_path / "in.png")
    worker = {**common, "DG_BROKER_URL": guarded_redis.url_of(LOGINS["worker"])}
    sender = {**common, "DG_BROKER_URL": guarded_redis.url_of(LOGINS["callbacks"])}

    jobs = [EditJob(id=name, image=picture, prompt="make it snow", batch="b", callback={"url": hook}) for name in "abc"]
    assert [item.verdict for item in client.submit_many(jobs)] == ["created"] * 3
    assert client.cancel("c") is JobState.QUEUED
    assert client.retry("c") is JobState.CANCELLED
    with (
        running_worker("w1", tmp_path, worker) as running,
        running_worker("callbacks", tmp_path, sender, command=("-m", "worker", "callbacks"), ready=None) as sending,
    ):
        for name in "abc":
            assert client.wait(name, PATIENCE_SECONDS).state is JobState.SUCCEEDED
        eventually(lambda: [client.get(name).callback for name in "abc"] == ["delivered"] * 3)
        eventually(lambda: client.registry.workers())
        assert client.status("b")[JobState.SUCCEEDED] == 3
        assert client.ledger.position("a") is None
        assert Top(client.ledger, client.registry).look().renderables
        assert Outbox(client.ledger).replay(["msg_a_succeeded"]) == 1
        running.process.terminate()
        assert running.exit_code() == 0
        eventually(lambda: client.get("a").callback == "delivered")  # with the worker gone, by the other process
    assert shown_to(guarded_redis.url_of(LOGINS["exporter"]))["kontext_redis_up"] == 1
    assert Outbox(Ledger(connect(guarded_redis.url_of(LOGINS["callbacks"])))).length() == 0
    assert "permission" not in running.log.lower() + sending.log.lower()
    denied = _denied(guarded_redis)
    assert denied == []


@pytest.mark.parametrize("name", ["producer", "worker", "callbacks", "exporter"])
def test_no_process_reads_other_keys_or_runs_commands_that_its_work_does_not_need(
    guarded_redis: RedisServer, name: str
) -> None:
    with guarded_redis.client() as admin:
        admin.set(STRANGERS_KEY, "1")

    with Redis.from_url(guarded_redis.url_of(LOGINS[name])) as redis:
        for command in (
            ("GET", STRANGERS_KEY),
            ("DEL", STRANGERS_KEY),
            ("EVAL", "return redis.call('GET', ARGV[1])", "0", STRANGERS_KEY),
            ("FLUSHALL",),
            ("KEYS", "*"),
            ("CONFIG", "GET", "*"),
            ("ACL", "LIST"),
            ("MONITOR",),
            ("SHUTDOWN",),
        ):
            with pytest.raises(Exception, match=r"(?i)permission|can't (run|access)"):
                redis.execute_command(*command)


def test_the_callbacks_process_can_neither_submit_nor_take_nor_end_jobs(guarded_redis: RedisServer) -> None:
    producer = Ledger(connect(guarded_redis.url_of(LOGINS["producer"])))
    callbacks = Ledger(connect(guarded_redis.url_of(LOGINS["callbacks"])))
    job = EditJob(id="a", image="s3://in/a.png", prompt="snow")
    list(producer.submit([job], "s3://out"))

    with pytest.raises(BrokerRefused, match="refuses: "):
        callbacks.claim("a", "w1", 30)
    with pytest.raises(BrokerRefused, match="refuses: "):
        callbacks.cancel("a")
    with pytest.raises(BrokerRefused, match="refuses: "):
        list(callbacks.submit([EditJob(id="b", image="s3://in/a.png", prompt="snow")], "s3://out"))
    with pytest.raises(NoPermissionError):
        callbacks.redis.lpush("edits", json.dumps({}))

    assert producer.queue_counts() == {"queued": 1, "delayed": 0, "running": 0, "callbacks": 0}
    assert producer.get("a").state is JobState.QUEUED


@pytest.mark.parametrize(
    ("name", "command"),
    [
        ("producer", ("DEL", "edits")),
        ("producer", ("PEXPIRE", "edits", "1")),
        ("producer", ("LPOP", "edits")),
        ("producer", ("RPOP", "edits")),
        ("producer", ("BRPOP", "edits", "1")),
        ("producer", ("LTRIM", "edits", "1", "0")),
        ("producer", ("SET", "edits", "x")),
        ("producer", ("RENAME", "edits", "dg:x")),
        ("callbacks", ("HSET", "dg:job:a", "state", "succeeded")),
        ("callbacks", ("EVAL", "return redis.call('HSET', KEYS[1], 'state', 'failed')", "1", "dg:job:a")),
        ("callbacks", ("EVAL", "return redis.call('HSET', 'dg:job:a', 'state', 'failed')", "1", "dg:")),
        ("callbacks", ("PEXPIRE", "dg:job:a", "1")),
        ("callbacks", ("ZADD", "dg:queued", "1", "a")),
        ("callbacks", ("LPUSH", "edits", "x")),
        ("callbacks", ("LRANGE", "edits", "0", "-1")),
        ("exporter", ("HSET", "dg:job:a", "state", "succeeded")),
        ("exporter", ("SREM", "dg:queued", "a")),
        ("exporter", ("LPUSH", "edits", "x")),
        ("worker", ("FLUSHDB",)),
        ("worker", ("GET", STRANGERS_KEY)),
    ],
)
def test_what_the_page_says_a_user_cannot_is_refused_by_raw_commands_too(
    strictly_guarded_redis: RedisServer, name: str, command: tuple[str, ...]
) -> None:
    with strictly_guarded_redis.client() as admin:
        admin.hset("dg:job:a", "state", "queued")
        admin.lpush("edits", "message")

    with (
        Redis.from_url(strictly_guarded_redis.url_of(LOGINS[name])) as redis,
        pytest.raises(Exception, match=r"(?i)permission|can't (run|access)"),
    ):
        redis.execute_command(*command)

    with strictly_guarded_redis.client() as admin:
        assert admin.hgetall("dg:job:a") == {"state": "queued"}
        assert admin.lrange("edits", 0, -1) == ["message"]


def test_nobody_comes_in_without_a_password(guarded_redis: RedisServer) -> None:
    for login in ("", "producer:wrong"):
        with pytest.raises(BrokerUnavailable, match="refuses the password: correct DG_BROKER_URL"):
            Client(guarded_redis.url_of(login)).status("b")


def test_the_exporter_changes_no_job(guarded_redis: RedisServer) -> None:
    exporter = Ledger(connect(guarded_redis.url_of(LOGINS["exporter"])))

    with pytest.raises(BrokerRefused, match="refuses: "):
        list(exporter.submit([EditJob(id="b", image="s3://in/a.png", prompt="snow")], "s3://out"))
    with pytest.raises(NoPermissionError):
        exporter.redis.delete("dg:job:a")


def shown_to(url: str) -> dict[str, float]:
    collector = QueueCollector(load_settings(Settings, broker_url=url))
    return {sample.name: sample.value for metric in collector.collect() for sample in metric.samples}


def _picture(path: Path) -> str:
    Image.new("RGB", (64, 48), "orange").save(path)
    return f"data:image/png;base64,{b64encode(path.read_bytes()).decode()}"


def _denied(server: RedisServer) -> list[str]:
    """What Redis has refused to somebody, but for the words of introduction of redis-py, which it can do without."""
    with server.client() as admin:
        refused = [(entry["username"], entry["object"]) for entry in admin.acl_log()]
    return [f"{name}: {what}" for name, what in refused if not what.startswith("client")]

"""Probes and metrics as a kubelet and Prometheus see them: over HTTP."""

from __future__ import annotations

import re
import socket
import time
from base64 import b64encode
from collections.abc import Iterator
from http.client import HTTPConnection
from pathlib import Path

import pytest
import redis
from PIL import Image
from prometheus_client import CollectorRegistry, Counter, generate_latest
from prometheus_client.metrics_core import Metric
from prometheus_client.parser import text_string_to_metric_families
from prometheus_client.registry import Collector

from jobs.dead_letters import DeadLetters
from jobs.errors import ErrorCode, SettingsError
from jobs.ledger import Ledger
from jobs.registry import WorkerInfo, WorkerRegistry, WorkerState
from jobs.schema import EditJob, JobState, Outcome
from jobs.settings import load_settings
from producer import Client
from tests.servers.redis import RedisServer, free_port, running_redis
from tests.servers.worker import running_worker
from tests.waiting import PATIENCE_SECONDS, eventually, stretched
from tests.worker.life import a_whole_life
from worker.events import NO_CODE, Event, Events, JobEnded, JobTaken
from worker.metrics.activity import delivery_metrics, worker_metrics
from worker.metrics.queue import FRESH_SECONDS, QueueCollector, queue_registry
from worker.metrics.server import MetricsServer, serve_metrics
from worker.settings import Settings

PAGE = Path(__file__).parent.parent.parent / "docs" / "metrics.md"
ROW = r"^\| `(kontext_\w+)` \|([^|]*)\|"


class BrokenCollector(Collector):
    def describe(self) -> list[Metric]:
        return []

    def collect(self) -> Iterator[Metric]:
        raise RuntimeError("no such counter")


def ask(port: int, path: str, method: str = "GET") -> tuple[int, str]:
    connection = HTTPConnection("127.0.0.1", port, timeout=PATIENCE_SECONDS)
    connection.request(method, path)
    answer = connection.getresponse()
    text = answer.read().decode()
    connection.close()
    return answer.status, text


def samples(collector: Collector) -> dict[str, float]:
    """Every sample by its name and the value of its label, as `name value`."""
    return {
        " ".join([sample.name, *sample.labels.values()]): sample.value
        for metric in collector.collect()
        for sample in metric.samples
    }


@pytest.fixture
def collector(redis_server: RedisServer) -> QueueCollector:
    return QueueCollector(load_settings(Settings, broker_url=redis_server.url))


def test_probes_answer_ok_or_the_reason() -> None:
    reasons = {"live": None, "ready": "loading: 40 % read"}
    server = MetricsServer("127.0.0.1", 0, CollectorRegistry(), lambda: reasons["live"], lambda: reasons["ready"])

    assert ask(server.port, "/livez") == (200, "ok\n")
    assert ask(server.port, "/readyz?verbose") == (503, "loading: 40 % read\n")
    assert ask(server.port, "/livez", "HEAD") == (200, "")
    assert ask(server.port, "/") == (404, "here are /livez, /readyz and /metrics\n")
    server.close()


def test_metrics_are_shown_and_a_broken_collector_costs_only_its_scrape() -> None:
    registry = CollectorRegistry()
    Counter("edits", "Edits.", registry=registry).inc()
    server = MetricsServer("127.0.0.1", 0, registry)

    assert "edits_total 1.0" in ask(server.port, "/metrics")[1]
    registry.register(BrokenCollector())
    assert ask(server.port, "/metrics") == (500, "RuntimeError: no such counter\n")
    assert ask(server.port, "/livez") == (200, "ok\n")
    server.close()


def test_a_taken_port_is_named() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        settings = load_settings(Settings, metrics_port=port)

        with pytest.raises(SettingsError, match=rf"^DG_METRICS_PORT={port}: cannot listen on 127.0.0.1:{port} \(Addr"):
            serve_metrics(settings, CollectorRegistry())


def test_no_port_is_open_unless_one_is_asked_for() -> None:
    assert serve_metrics(load_settings(Settings), CollectorRegistry()) is None


def test_the_queue_is_counted_and_its_ages_are_measured(
    redis_client: redis.Redis, collector: QueueCollector, ledger: Ledger, tmp_path: Path
) -> None:
    ledger = Ledger(redis_client)
    job = {"image": "s3://b/in.png", "prompt": "make it snow", "callback": {"url": "https://example.org/hook"}}
    list(ledger.submit([EditJob(id=name, **job) for name in "abcd"], tmp_path.as_uri()))
    claims = [ledger.claim(name, "w1", 30) for name in "ab"]
    ledger.requeue("b", claims[1].token, "engine_failed", delay_seconds=60)
    claimed = ledger.claim("c", "w1", 30)
    ledger.finish("c", claimed.token, JobState.SUCCEEDED, Outcome())
    an_hour_ago = ledger.now_us() - 3_600_000_000
    redis_client.zadd("dg:queued", {"d": an_hour_ago})
    redis_client.zadd("dg:outbox", {"msg_c_succeeded": an_hour_ago})
    registry = WorkerRegistry(redis_client)
    for name, state in (("w1", WorkerState.BUSY), ("w2", WorkerState.BUSY), ("w3", WorkerState.LOADING)):
        registry.beat(WorkerInfo(name, state))
    DeadLetters(redis_client, "dg:dead-letters").put(b"{", "no JSON", "w1")

    found = samples(collector)

    assert {key: found[f"kontext_jobs {key}"] for key in ("queued", "delayed", "running")} == {
        "queued": 1,
        "delayed": 1,
        "running": 1,
    }
    assert found["kontext_oldest_queued_seconds"] == pytest.approx(3600, abs=60)
    assert found["kontext_callbacks_pending"] == 1
    assert found["kontext_callback_overdue_seconds"] == pytest.approx(3600, abs=60)
    assert (found["kontext_workers busy"], found["kontext_workers loading"], found["kontext_workers stuck"]) == (
        2,
        1,
        0,
    )
    assert found["kontext_dead_letters"] == 1
    assert found["kontext_redis_persistence_ok"] == 1
    assert 0 < found["kontext_redis_memory_bytes"] < found["kontext_redis_memory_limit_bytes"]
    assert 0 < found["kontext_redis_round_trip_seconds"] < 10


def test_without_redis_the_exporter_says_so_and_invents_nothing(redis_server: RedisServer) -> None:
    registry, why_not_ready = queue_registry(load_settings(Settings, broker_url=redis_server.url))
    redis_server.kill()

    shown = {sample.name: sample.value for metric in registry.collect() for sample in metric.samples}

    assert shown["kontext_redis_up"] == 0
    assert [name for name in shown if name.startswith("kontext_")] == ["kontext_redis_up"]
    assert why_not_ready() == "Redis does not answer"


def test_a_redis_that_cannot_write_is_not_called_away(tmp_path: Path) -> None:
    data = tmp_path / "data"
    data.mkdir()
    with running_redis(tmp_path, dir=data, appendonly="no", save="3600 1") as server, server.client() as client:
        client.sadd("dg:workers", "w1")  # it is silent, and would be removed
        data.rmdir()
        client.bgsave()
        eventually(lambda: client.info()["rdb_last_bgsave_status"] == "err")
        with pytest.raises(redis.ResponseError, match="MISCONF"):
            client.ping()

        found = samples(QueueCollector(load_settings(Settings, broker_url=server.url)))

    assert found["kontext_redis_up"] == 1
    assert found["kontext_redis_persistence_ok"] == 0
    assert found["kontext_jobs queued"] == found["kontext_workers ready"] == 0


def test_a_redis_that_hangs_is_told_before_prometheus_gives_up(
    redis_server: RedisServer, collector: QueueCollector
) -> None:
    assert samples(collector)["kontext_redis_up"] == 1
    redis_server.pause()
    time.sleep(FRESH_SECONDS)
    started = time.monotonic()
    try:
        assert samples(collector) == {"kontext_redis_up": 0}
        assert time.monotonic() - started < stretched(8)
    finally:
        redis_server.resume()
    eventually(lambda: samples(collector)["kontext_redis_up"] == 1)
    assert "kontext_jobs queued" in samples(collector)


def test_the_exporter_serves_until_sigterm(redis_server: RedisServer, tmp_path: Path) -> None:
    port = free_port()
    environment = {"DG_BROKER_URL": redis_server.url, "DG_METRICS_PORT": str(port)}
    command = ("-m", "worker", "exporter")
    with running_worker("exporter", tmp_path, environment, ready=None, command=command) as exporter:
        eventually(lambda: _answers(port))
        with running_worker("second", tmp_path, environment, ready=None, command=command) as second:
            assert second.exit_code() == 2
        shown = {family.name for family in text_string_to_metric_families(ask(port, "/metrics")[1])}
        assert {"kontext_redis_up", "kontext_jobs", "process_resident_memory_bytes"} <= shown
        assert ask(port, "/readyz") == (200, "ok\n")
        exporter.process.terminate()
        assert exporter.exit_code() == 0
    assert second.log.startswith(f"error: DG_METRICS_PORT={port}: cannot listen on 127.0.0.1:{port} (Address")
    assert second.log.count("\n") == 1


def _answers(port: int) -> bool:
    try:
        return ask(port, "/livez")[0] == 200
    except OSError:
        return False


def test_the_page_lists_what_the_exporter_shows_and_nothing_else(collector: QueueCollector) -> None:
    shown: dict[str, set[str]] = {}
    for metric in collector.collect():
        words = {word for sample in metric.samples for pair in sample.labels.items() for word in pair}
        shown[metric.name] = words

    assert listed("Of the service") == shown


def test_the_page_lists_what_a_worker_shows_after_a_life_of_every_event_and_nothing_else() -> None:
    registry = a_whole_life()

    shown = {
        name: {label for sample in family.samples for label in sample.labels} - {"le"}
        for family in text_string_to_metric_families(generate_latest(registry).decode())
        if (name := f"{family.name}_total" if family.type == "counter" else family.name).startswith("kontext_")
        and not name.endswith("_created")
    }

    page = {**listed("Of a worker"), **listed("Of callbacks")}
    assert page.keys() == shown.keys()
    assert [name for name, labels in shown.items() if not labels <= page[name]] == []
    stages = {
        sample.labels["stage"] for metric in registry.collect() for sample in metric.samples if "stage" in sample.labels
    }
    assert stages <= page["kontext_stage_seconds"]


def test_every_event_counts_once() -> None:
    registry = a_whole_life()

    assert {
        name: registry.get_sample_value(name, labels)
        for name, labels in (
            ("kontext_jobs_ended_total", {"outcome": "failed", "code": "engine_failed"}),
            ("kontext_attempts_total", {}),
            ("kontext_jobs_requeued_total", {"code": "input_unreachable"}),
            ("kontext_stage_seconds_sum", {"stage": "sample"}),
            ("kontext_gpu_busy_seconds_total", {}),
            ("kontext_steps_total", {}),
            ("kontext_leases_expired_total", {}),
            ("kontext_reconciler_runs_total", {}),
            ("kontext_reconciler_repairs_total", {}),
            ("kontext_callbacks_total", {"verdict": "dropped"}),
            ("kontext_callback_seconds_sum", {}),
            ("kontext_cache_hits_total", {}),
            ("kontext_worker_state", {"state": "busy"}),
        )
    } == {
        "kontext_jobs_ended_total": 1,
        "kontext_attempts_total": 1,
        "kontext_jobs_requeued_total": 1,
        "kontext_stage_seconds_sum": 4.5,
        "kontext_gpu_busy_seconds_total": 5,
        "kontext_steps_total": 28,
        "kontext_leases_expired_total": 3,
        "kontext_reconciler_runs_total": 1,
        "kontext_reconciler_repairs_total": 3,
        "kontext_callbacks_total": 1,
        "kontext_callback_seconds_sum": 0.5,
        "kontext_cache_hits_total": 7,
        "kontext_worker_state": 1,
    }


def test_what_alerts_count_is_there_before_it_happens() -> None:
    registry, listeners = worker_metrics()
    callbacks, _ = delivery_metrics()
    ended = {"outcome": JobState.FAILED, "code": ErrorCode.OUTPUT_FORBIDDEN}

    assert registry.get_sample_value("kontext_jobs_ended_total", ended) == 0
    assert callbacks.get_sample_value("kontext_callbacks_total", {"verdict": "dropped"}) == 0
    before = ended_series(registry)
    for event in (
        JobEnded("a", 1, 5.0, NO_CODE, JobState.SUCCEEDED, 0.5),
        *(JobEnded("b", 1, 5.0, code, JobState.FAILED, 0.5) for code in ErrorCode if code != "cancelled"),
        JobEnded("c", 1, 5.0, ErrorCode.CANCELLED, JobState.CANCELLED, 0.5),
    ):
        Events(*listeners).send(event)
    assert ended_series(registry) == before


def ended_series(registry: CollectorRegistry) -> list[dict[str, str]]:
    """The labels under which jobs that ended are counted."""
    return [
        sample.labels
        for metric in registry.collect()
        for sample in metric.samples
        if sample.name == "kontext_jobs_ended_total"
    ]


def test_a_listener_that_is_broken_harms_no_event() -> None:
    registry, listeners = worker_metrics()
    heard: list[Event] = []

    def broken(event: Event) -> None:
        raise RuntimeError("no such counter")

    Events(broken, *listeners, heard.append).send(JobTaken("a", 1, 0.5))

    assert len(heard) == 1
    assert registry.get_sample_value("kontext_attempts_total") == 1


def test_a_worker_shows_its_work_and_names_a_taken_port(redis_server: RedisServer, tmp_path: Path) -> None:
    port = free_port()
    environment = {
        "DG_BROKER_URL": redis_server.url,
        "DG_METRICS_PORT": str(port),
        "DG_FLUX_KONTEXT_ENGINE": "standin",
        "DG_OUTPUT_URI": tmp_path.as_uri(),
    }
    with running_worker("w1", tmp_path, environment):
        with running_worker("w2", tmp_path, environment, ready=None) as second:
            assert second.exit_code() == 2
        assert ask(port, "/livez") == (200, "ok\n")
        eventually(lambda: ask(port, "/readyz") == (200, "ok\n"))
        client = Client(redis_server.url)
        Image.new("RGB", (64, 48), "orange").save(tmp_path / "in.png")
        picture = b64encode((tmp_path / "in.png").read_bytes()).decode()
        image, output = f"data:image/png;base64,{picture}", f"{tmp_path.as_uri()}/a.png"
        client.submit(EditJob(id="a", image=image, prompt="make it snow", output=output))
        assert client.wait("a", PATIENCE_SECONDS).state is JobState.SUCCEEDED
        eventually(lambda: 'kontext_jobs_ended_total{code="-",outcome="succeeded"} 1.0' in ask(port, "/metrics")[1])
        shown = ask(port, "/metrics")[1]
        assert 'kontext_stage_seconds_count{stage="sample"} 1.0' in shown
        assert "kontext_steps_total 30.0" in shown
    assert second.log.splitlines()[-1].startswith(f"error: DG_METRICS_PORT={port}: cannot listen on 127.0.0.1:{port}")


def listed(section: str) -> dict[str, set[str]]:
    """The metrics of a section of the page, each with the words of its labels."""
    text = PAGE.read_text().partition(f"## {section}")[2].partition("\n## ")[0]
    return {name: set(re.findall(r"`([\w-]+)`", labels)) for name, labels in re.findall(ROW, text, re.MULTILINE)}


def _answers(port: int) -> bool:
    try:
        return ask(port, "/livez")[0] == 200
    except OSError:
        return False

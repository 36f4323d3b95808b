"""One worker, given everything in the tables of this folder: each case gets its exact answer, and the worker goes on.

One test, because one process has to meet it all; it lists every case that went otherwise.
"""

from __future__ import annotations

import contextlib
import os
import re
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from celery import Celery

from jobs.dead_letters import DeadLetters
from jobs.errors import ErrorCode
from jobs.ledger import Outbox
from jobs.queue import QUEUE, TASK
from jobs.schema import EditJob, JobState
from producer.errors import TableError
from producer.table.plan import RowDefaults
from producer.table.table import open_table
from tests.hostile import callbacks, image_files, jobs, messages, names, tables, web
from tests.integration.conftest import Service, StartWorker
from tests.servers.redis import free_port
from tests.servers.s3 import S3Server
from tests.storage.raw_server import Script, by_path, raw_server
from tests.waiting import eventually
from worker.health import read_health

Answer = tuple[ErrorCode | JobState, str]
ONE_STEP = {"num_inference_steps": 1}
LEAST_CASES = 300


@dataclass
class Report:
    """What was asked of the worker, and where it answered otherwise."""

    asked: int = 0
    wrong: list[str] = field(default_factory=list)

    def compare(self, case: str, got: str, code: str, said: str, wanted: str, words: str) -> None:
        self.asked += 1
        if code != wanted or not re.search(words, said):
            self.wrong.append(f"{case}: got {got} {said!r}, wanted {wanted} {words!r}")


@dataclass(frozen=True)
class World:
    """The places that cases name, as `{in}` or `{tricky}`, and the worker's settings that go with them."""

    places: dict[str, str]
    environment: dict[str, str]
    outside: Path
    asked_inside: list[bytes]

    def name(self, uri: str) -> str:
        """The URI with its places filled in."""
        for place, value in self.places.items():
            uri = uri.replace(f"{{{place}}}", value)
        return uri


@contextmanager
def world(service: Service, s3_server: S3Server, bucket: str) -> Iterator[World]:
    """Servers and folders with everything that cases speak of."""
    asked: list[bytes] = []
    scripts: dict[str, Script] = {}

    def inside(connection: Any, closing: threading.Event) -> None:
        asked.append(b"somebody asked")

    with (
        raw_server(inside, address="127.0.0.9") as inside_port,
        raw_server(by_path(scripts), reads_head=False) as tricky_port,
    ):
        places = {
            "in": str(service.folder / "in"),
            "out": str(service.folder / "out"),
            "bucket": bucket,
            "inside": f"http://127.0.0.9:{inside_port}",
            "inside_port": str(inside_port),
            "tricky": f"http://127.0.0.1:{tricky_port}",
            "tricky_port": str(tricky_port),
            "closed": f"http://127.0.0.1:{free_port()}",
        }
        environment = {
            "STANDIN_STEP_SECONDS": "0",
            "DG_LEASE_SECONDS": "30",
            "DG_MAX_ATTEMPTS": "1",
            "DG_OUTAGE_SECONDS": "0",
            "DG_MAX_INPUT_BYTES": str(web.LARGEST_INPUT_BYTES),
            "DG_BUCKETS": f"{bucket},no-such-bucket,prefixed/inside",
            **s3_server.environment,
        }
        made = World(places, environment, make_folders(service.folder), asked)
        scripts.update({path_of(name): script for name, (script, _, _) in web.ANSWERS.items()})
        for name, (location, status, _, _) in web.REDIRECTS.items():
            scripts[path_of(name)] = web.redirects_to(made.name(location), status)
        yield made


def make_folders(folder: Path) -> Path:
    """The worker's folders with traps in them; the folder beside them that nothing may read or write."""
    readable, writable, outside = folder / "in", folder / "out", folder / "outside"
    for path in (readable / "folder.png", writable, outside, folder / "in-evil", folder / "out-evil"):
        path.mkdir(parents=True)
    for path in (outside / "secret.png", folder / "secret.png", folder / "in-evil" / "cat.png", readable / "cat.png"):
        path.write_bytes(image_files.PNG)
    (readable / "large.png").write_bytes(bytes(web.LARGEST_INPUT_BYTES + 1))
    (readable / "link").symlink_to(outside)
    (readable / "linked.png").symlink_to(outside / "secret.png")
    (writable / "link").symlink_to(outside)
    os.mkfifo(readable / "pipe.png")
    return outside


def path_of(name: str) -> str:
    return "/" + re.sub(r"\W+", "-", name)


def all_jobs(made: World) -> dict[str, tuple[Any, str, str]]:
    """Every case that is a job: what is sent, the wanted code or state, and words of the error."""
    good = {"image": "file://{in}/cat.png", "prompt": "make it snow", "params": ONE_STEP}
    found: dict[str, tuple[Any, str, str]] = {
        f"job: {name}": (raw, ErrorCode.INVALID_JOB, re.escape(words)) for name, (raw, words) in jobs.JOBS.items()
    }
    uris = {
        "output": names.OUTPUTS,
        "image": {**names.INPUTS, **web.ADDRESSES},
    }
    for role, cases in uris.items():
        for name, (uri, wanted, words) in cases.items():
            found[f"{role}: {name}"] = ({**good, role: uri}, wanted, re.escape(words))
    for name, (_, wanted, words) in web.ANSWERS.items():
        found[f"answer: {name}"] = ({**good, "image": "{tricky}" + path_of(name)}, wanted, re.escape(words))
    for name, (_, _, wanted, words) in web.REDIRECTS.items():
        found[f"redirect: {name}"] = ({**good, "image": "{tricky}" + path_of(name)}, wanted, re.escape(words))
    for name, (data, wanted, words) in image_files.IMAGES.items():
        path = Path(made.places["in"]) / f"{len(found)}.png"
        path.write_bytes(data)
        found[f"file: {name}"] = ({**good, "image": path.as_uri()}, wanted, words)
    for name, (url, words) in callbacks.REFUSED.items():
        found[f"callback: {name}"] = ({**good, "callback": {"url": url}}, ErrorCode.INVALID_JOB, re.escape(words))
    return {case: (filled(raw, made), wanted, words) for case, (raw, wanted, words) in found.items()}


def filled(raw: Any, made: World) -> Any:
    """A job with the places in its URIs filled in."""
    if not isinstance(raw, dict):
        return raw
    uris = {name: made.name(raw[name]) for name in ("image", "output") if isinstance(raw.get(name), str)}
    callback = raw.get("callback")
    if isinstance(callback, dict):
        uris["callback"] = {**callback, "url": made.name(callback["url"])}
    return {**raw, **uris}


def send(service: Service, sent: dict[str, Any]) -> None:
    """Send jobs as any Celery client does, by the id of each."""
    with Celery(broker=service.settings.broker_url) as celery:
        for job_id, raw in sent.items():
            celery.send_task(TASK, queue=QUEUE, args=[raw], task_id=job_id)


def wait_for_ends(service: Service, job_ids: list[str]) -> None:
    def waiting() -> list[str]:
        records = zip(job_ids, service.ledger.get_many(job_ids), strict=True)
        return [job_id for job_id, record in records if record is None or not record.state.is_terminal]

    eventually(lambda: not waiting(), what="the end of every hostile job")


def check_jobs(service: Service, made: World, report: Report) -> None:
    cases = all_jobs(made)
    ids = {case: f"job-{number}" for number, case in enumerate(cases)}
    send(service, {ids[case]: raw for case, (raw, _, _) in cases.items()})
    wait_for_ends(service, [*ids.values()])
    for case, (_, wanted, words) in cases.items():
        result = service.ledger.get(ids[case]).result
        got = result.error.code if result.error else result.state
        report.compare(case, got, got, result.error.message if result.error else "", wanted, words)


def check_messages(service: Service, valid: dict[str, Any], report: Report) -> None:
    cases, redis = messages.hostile_messages(valid), service.ledger.redis
    for message, _ in cases.values():
        redis.lpush(QUEUE, message)
    letters = DeadLetters(redis, service.ledger.key("dead-letters"))
    eventually(lambda: letters.count() >= len(cases), what="every malformed message among the dead letters")
    reasons = {(letter.size_bytes, letter.message): letter.reason for letter in letters}
    for case, (message, words) in cases.items():
        raw = message.encode()
        said = reasons.get((len(raw), raw[:16_384].decode()), "no dead letter")
        assert said.isprintable()
        assert len(said) < 300
        report.compare(f"message: {case}", "", "", said, "", re.escape(words))
    report.compare("messages", "", str(letters.count()), "", str(len(cases)), "")


def check_callbacks(service: Service, made: World, report: Report) -> None:
    cases = {name: (made.name(url), verdict, said) for name, (url, verdict, said) in callbacks.ADDRESSES.items()}
    with contextlib.ExitStack() as servers:
        for name, (script, verdict, said) in callbacks.ANSWERS.items():
            # A host of its own each: one that did not answer gets one request at a time.
            port = servers.enter_context(raw_server(script))
            cases[name] = f"http://127.0.0.1:{port}/hook", verdict, said
        ids = {name: f"callback-{number}" for number, name in enumerate(cases)}
        image = Path(made.places["in"], "cat.png").as_uri()
        for name, (url, _, _) in cases.items():
            service.submit(ids[name], image=image, callback={"url": url}, params=ONE_STEP)
        wait_for_ends(service, [*ids.values()])
        outbox = Outbox(service.ledger)

        def tried() -> bool:
            return all(entry.attempts or entry.state != "pending" for entry in outbox.of_jobs([*ids.values()]))

        eventually(tried, what="a first attempt at every callback")
        entries = {entry.job_id: entry for entry in outbox.of_jobs([*ids.values()])}
    for name, (_, verdict, said) in cases.items():
        entry = entries[ids[name]]
        assert service.ledger.get(ids[name]).state is JobState.SUCCEEDED
        report.compare(f"callback: {name}", entry.state, entry.state, entry.said, verdict, re.escape(said))


def check_tables(service: Service, report: Report) -> None:
    folder = service.folder / "tables"
    folder.mkdir()
    for name, (file_name, content, wanted, detail) in tables.TABLES.items():
        path = folder / file_name
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
        kind, said, found = read_table(path)
        for job in found:
            service.client.submit(job)
        report.compare(f"table: {name}", kind, kind, said, wanted, re.escape(str(detail)))
        assert "\n" not in said
        path.unlink()


def read_table(path: Path) -> tuple[str, str, list[EditJob]]:
    """What became of a table: `table`, `row` or `jobs`; what was said; its jobs."""
    try:
        with open_table(str(path)) as table:
            rows = list(table.rows(table.plan("s3://bucket", RowDefaults(), path.stem)))
    except TableError as error:
        return "table", str(error), []
    problems = [str(problem) for row in rows for problem in row.problems]
    found = [row.job for row in rows if row.job]
    return ("row", "; ".join(problems), found) if problems else ("jobs", f"{len(found)}", found)


def test_every_hostile_case_gets_its_answer_and_the_worker_goes_on(
    service: Service, start_worker: StartWorker, s3_server: S3Server, s3_bucket: str
) -> None:
    report, valid = Report(), messages.valid_message(service.settings.broker_url)
    with world(service, s3_server, s3_bucket) as made:
        worker = start_worker(**made.environment)

        check_messages(service, valid, report)
        check_jobs(service, made, report)
        check_callbacks(service, made, report)
        check_tables(service, report)

        assert not report.wrong, "\n".join([f"{len(report.wrong)} of {report.asked}:", *report.wrong])
        assert report.asked >= LEAST_CASES
        assert made.asked_inside == [], "the inside network was reached"
        assert sorted(path.name for path in made.outside.iterdir()) == ["secret.png"]
        assert not (service.folder / "out-evil" / "a.png").exists()
        assert not Path("/tmp/kontext-edits-was-here").exists(), "a pickle was opened"
        service.submit("last", image=Path(made.places["in"], "cat.png").as_uri(), params=ONE_STEP)
        last = service.ended("last")
        assert (last.state, last.attempts) == (JobState.SUCCEEDED, 1)
        assert worker.process.poll() is None
        (health,) = read_health(service.folder / "runtime")
        assert health.why_not_ready(time.time()) is None
        assert "Traceback" not in worker.log
        assert all(line.isprintable() for line in worker.log.splitlines())

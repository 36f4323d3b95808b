"""`/v1/edits`: the contract's jobs over HTTP."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx2
import pytest

from jobs.registry import WorkerInfo, WorkerState
from jobs.schema import JobState
from producer import Client
from tests.producer.conftest import finish
from tests.producer.http.conftest import DATA, OpenDoor, RunningDoor, Workers, error_of, png, size_of
from tests.servers.redis import RedisServer
from tests.waiting import eventually

WAIT = {"Prefer": "wait=600"}


def submit(http: httpx2.Client, headers: dict[str, str] | None = None, **job: Any) -> httpx2.Response:
    return http.post("/v1/edits", json={"image": DATA, "prompt": "make it snow", **job}, headers=headers or {})


def upload(http: httpx2.Client, headers: dict[str, str] | None = None, **job: Any) -> httpx2.Response:
    fields = {"job": json.dumps({"prompt": "make it snow", **job})}
    return http.post("/v1/edits", files={"image": ("cat.png", png(), "image/png")}, data=fields, headers=headers or {})


def events_of(http: httpx2.Client, job_id: str) -> Iterator[tuple[str, dict[str, Any]]]:
    """The events of a stream, to its end."""
    name = ""
    with http.stream("GET", f"/v1/edits/{job_id}/events") as response:
        assert response.headers["content-type"].startswith("text/event-stream")
        for line in response.iter_lines():
            kind, _, value = line.partition(": ")
            if kind == "event":
                name = value
            elif kind == "data":
                yield name, json.loads(value)


def test_a_job_is_queued_and_waited_for(http: httpx2.Client, workers: Workers) -> None:
    queued = submit(http, params={"seed": 7, "width": 32, "height": 16})
    ended = http.get(queued.headers["location"], headers=WAIT)

    assert queued.status_code in (200, 202)
    assert ended.headers["preference-applied"] == "wait=600"
    body = ended.json()
    assert (ended.status_code, body["state"], body["result"]["seed"]) == (200, "succeeded", 7)
    image = http.get(body["image_url"])
    assert (image.status_code, image.headers["content-type"], size_of(image.content)) == (200, "image/png", (32, 16))
    assert image.headers["content-security-policy"] == "default-src 'none'; sandbox"


def test_an_upload_is_stored_once_by_its_content(http: httpx2.Client, workers: Workers, tmp_path: Path) -> None:
    first, second = upload(http, WAIT), upload(http, WAIT)

    assert (first.status_code, second.status_code) == (200, 200)
    assert first.json()["id"] != second.json()["id"]
    (stored,) = (tmp_path / "out/uploads/local").iterdir()
    assert stored.read_bytes() == png()
    assert stored.suffix == ".png"


def test_the_idempotency_key_is_the_jobs_id(http: httpx2.Client, client: Client) -> None:
    first, again = (upload(http, {"Idempotency-Key": "order-5"}) for _ in range(2))
    other = upload(http, {"Idempotency-Key": "order-5"}, prompt="rain")

    assert first.json()["id"] == again.json()["id"] == "order-5"
    assert client.ledger.waiting() == 1
    assert (other.status_code, error_of(other)["code"]) == (409, "idempotency_conflict")
    assert submit(http, {"Idempotency-Key": "no blanks"}).status_code == 400


def test_steps_are_followed_as_they_come(http: httpx2.Client, workers: Workers) -> None:
    job_id = upload(http, prompt="hold").json()["id"]
    eventually(lambda: (http.get(f"/v1/edits/{job_id}").json()["progress"] or {}).get("step") == 3)

    events = events_of(http, job_id)
    name, view = next(events)
    workers.released.set()
    *_, (last_name, last_view) = events

    assert (name, view["progress"]) == ("running", {"stage": "sampling", "step": 3, "total_steps": 30})
    assert (last_name, last_view["result"]["width"]) == ("succeeded", 64)


def test_a_waiting_job_knows_its_position(http: httpx2.Client, client: Client) -> None:
    ids = [upload(http).json()["id"] for _ in range(2)]

    views = [http.get(f"/v1/edits/{job_id}").json() for job_id in ids]

    assert [view["position"] for view in views] == [0, 1]
    assert [view["waiting"] for view in views] == ["waiting for a worker"] * 2
    client.registry.beat(WorkerInfo("worker-1", WorkerState.LOADING))
    assert http.get(f"/v1/edits/{ids[0]}").json()["waiting"] == "loading the model"


def test_jobs_are_cancelled_and_retried(http: httpx2.Client, client: Client) -> None:
    job_id = upload(http).json()["id"]

    cancelled = http.delete(f"/v1/edits/{job_id}")
    again = http.post(f"/v1/edits/{job_id}/retry")
    finish(client, job_id)
    too_late = http.post(f"/v1/edits/{job_id}/retry")

    assert (cancelled.status_code, cancelled.json()["state"]) == (200, "cancelled")
    assert cancelled.json()["result"]["error"]["code"] == "cancelled"
    assert (again.status_code, again.json()["state"]) == (202, "queued")
    assert (too_late.status_code, error_of(too_late)["code"]) == (409, "has_succeeded")


def test_a_batch_has_counts_and_a_page_of_jobs(http: httpx2.Client, client: Client) -> None:
    ids = [upload(http, batch="spring").json()["id"] for _ in range(3)]
    finish(client, ids[0])

    batch = http.get("/v1/batches/spring", params={"limit": 2, "offset": 1}).json()

    assert (batch["total"], batch["counts"]["succeeded"], batch["counts"]["queued"]) == (3, 1, 2)
    assert [job["id"] for job in batch["jobs"]] == ids[1:]
    assert http.get("/v1/batches/nowhere").status_code == 404


def test_a_full_queue_is_429_with_a_time(open_door: OpenDoor) -> None:
    with open_door(max_queued=1).http() as http:
        upload(http)
        refused = upload(http)

    assert (refused.status_code, error_of(refused)["code"]) == (429, "queue_full")
    assert int(refused.headers["retry-after"]) > 0


def test_a_wait_ends_when_the_door_closes(door: RunningDoor, http: httpx2.Client, client: Client) -> None:
    job_id = upload(http).json()["id"]
    # Whether it comes before the request or during it, the request ends.
    threading.Timer(0.3, lambda: setattr(door.app.state.door, "is_closing", True)).start()

    waited = http.get(f"/v1/edits/{job_id}", headers=WAIT)

    assert (waited.status_code, waited.json()["state"]) == (200, "queued")


def test_a_redis_that_is_away_is_503_and_the_door_lives_on(http: httpx2.Client, redis_server: RedisServer) -> None:
    assert http.get("/readyz").status_code == 200
    redis_server.kill()

    refused = [http.get("/readyz"), upload(http)]
    redis_server.start()

    assert [response.status_code for response in refused] == [503, 503]
    assert all(int(response.headers["retry-after"]) > 0 for response in refused)
    assert http.get("/livez").status_code == 200
    eventually(lambda: upload(http).status_code == 202)


BAD_JOBS: list[tuple[dict[str, Any], int, str, str]] = [
    ({"prompt": ""}, 400, "invalid_job", "prompt"),
    ({"prompt": "x\ud800"}, 400, "invalid_json", ""),
    ({"params": {"seed": "soon"}}, 400, "invalid_job", "params.seed"),
    ({"params": {"mood": 1}}, 400, "invalid_job", "params.mood"),
    ({"colour": "red"}, 400, "invalid_job", "colour"),
    ({"image": []}, 400, "invalid_value", "image"),
    ({"image": [DATA] * 5}, 400, "invalid_value", "image"),
    ({"image": 5}, 400, "invalid_job", "image"),
    ({"image": "file:///etc/passwd"}, 400, "input_forbidden", "image"),
    ({"image": "s3://pictures/cat.png"}, 400, "input_forbidden", "image"),
    ({"image": "cat.png"}, 400, "input_forbidden", "image"),
    ({"image": "data:image/png;base64,"}, 400, "input_not_an_image", "image"),
    ({"image": "http://127.0.0.1:1/cat.png"}, 400, "input_forbidden", "image"),
    ({"image": "http://169.254.169.254/latest/meta-data"}, 400, "input_forbidden", "image"),
    ({"output": "file:///tmp/x.png"}, 400, "invalid_value", "output"),
    ({"output": "s3://pictures/x.png"}, 400, "invalid_value", "output"),
    ({"params": {"loras": ["file:///x.safetensors"]}}, 400, "invalid_value", "params.loras"),
    ({"params": {"loras": ["https://a.example/x.safetensors"]}}, 400, "invalid_value", "params.loras"),
    ({"callback": {"url": "http://127.0.0.1/hook"}}, 400, "input_forbidden", "callback.url"),
    ({"callback": {"url": "http://[::1]/hook"}}, 400, "input_forbidden", "callback.url"),
    ({"id": "a b"}, 400, "invalid_value", "Idempotency-Key"),
]


def test_what_callers_may_not_send_is_refused_and_queues_nothing(http: httpx2.Client, client: Client) -> None:
    for job, status, code, param in BAD_JOBS:
        body = json.dumps({"image": DATA, "prompt": "make it snow", **job})
        response = http.post("/v1/edits", content=body, headers={"Content-Type": "application/json"})
        error = error_of(response)

        assert (response.status_code, error["code"], error["param"] or "") == (status, code, param), (job, error)
        assert "DG_" not in error["message"], "what operators can do is nothing for callers"
    assert client.ledger.waiting() == 0


def test_bodies_that_are_none_are_refused(http: httpx2.Client) -> None:
    as_json = {"Content-Type": "application/json"}
    bodies: list[tuple[bytes, dict[str, str], int]] = [
        (b"{", as_json, 400),
        (b"[]", as_json, 400),
        (b"\xff", as_json, 400),
        (b"[" * 100_000, as_json, 400),
        (b'{"a":' * 40 + b"1" + b"}" * 40, as_json, 400),
        (b"prompt=snow", {"Content-Type": "application/x-www-form-urlencoded"}, 415),
        (b"{}", {}, 415),
        (b"no form", {"Content-Type": "multipart/form-data"}, 400),
        (b"no form", {"Content-Type": "multipart/form-data; boundary=x"}, 400),
    ]
    for body, headers, status in bodies:
        for path in ("/v1/edits", "/v1/images/edits"):
            response = http.post(path, content=body, headers=headers)

            assert response.status_code == status, (body[:20], response.text)
            error_of(response)


def test_unknown_paths_and_methods_have_the_same_form(http: httpx2.Client) -> None:
    assert error_of(http.get("/v1/nowhere"))["code"] == "not_found"
    assert error_of(http.get("/v1/edits"))["code"] == "method_not_allowed"
    assert error_of(http.get("/v1/edits/nowhere"))["message"] == "no job 'nowhere'"
    for path in ("", "/events", "/image"):
        assert http.get(f"/v1/edits/nowhere{path}").status_code == 404


def test_an_image_is_not_there_before_its_job_has_succeeded(http: httpx2.Client) -> None:
    job_id = upload(http).json()["id"]

    assert error_of(http.get(f"/v1/edits/{job_id}/image"))["code"] == "no_image"


@pytest.mark.parametrize("is_announced", [True, False], ids=["announced", "in chunks"])
def test_bodies_beyond_the_limit_are_refused(open_door: OpenDoor, is_announced: bool) -> None:
    door = open_door(max_input_bytes=1000)
    big = b"x" * 2_000_000
    with door.http() as http:
        files = {"image": ("cat.png", big, "image/png")}
        request = http.build_request("POST", "/v1/edits", files=files, data={"job": '{"prompt": "snow"}'})
        content = request.read() if is_announced else iter([request.read()])
        response = http.post("/v1/edits", content=content, headers={"Content-Type": request.headers["content-type"]})
        inside = http.post(
            "/v1/edits", files={"image": ("cat.png", big[:2000], "image/png")}, data={"job": '{"prompt": "snow"}'}
        )

    assert (response.status_code, error_of(response)["code"]) == (413, "request_too_large"), response.text
    assert (inside.status_code, error_of(inside)["code"]) == (413, "input_too_large")


def test_another_door_shows_the_same_jobs(open_door: OpenDoor, workers: Workers) -> None:
    with open_door().http() as one, open_door().http() as other:
        job_id = upload(one, WAIT).json()["id"]

        assert other.get(f"/v1/edits/{job_id}").json()["state"] == JobState.SUCCEEDED

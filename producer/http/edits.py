"""`/v1/edits` and `/v1/batches`: the contract's jobs over HTTP."""

from __future__ import annotations

import json
import math
import re
from collections.abc import AsyncIterator
from itertools import islice
from typing import Any
from uuid import uuid4

from starlette.datastructures import UploadFile
from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse

from jobs.errors import ErrorCode, JobNotFound
from jobs.ledger import JobRecord
from jobs.schema import CONTENT_TYPES, JOB_ID_PATTERN, MAX_IMAGES, JobState
from producer.http.bodies import UPLOAD_FIELDS, content_type, open_form, read_json, uploads_in
from producer.http.door import LONGEST_WAIT_SECONDS, Door
from producer.http.faults import HttpFault, not_found, wrong
from producer.http.intake import GivenImage
from producer.http.keys import Caller
from producer.http.views import BatchJobView, BatchView

KEEP_ALIVE_LOOKS = 15
"""Looks without news after which a stream sends a comment, so that proxies do not close it."""

LONGEST_KEY = 90
"""Characters of an Idempotency-Key: some of an id's are left for the tenant."""

MOST_SHOWN, SHOWN_BY_DEFAULT = 1000, 100
LARGEST_OFFSET = 10**7
NO_CACHE = {"Cache-Control": "no-store"}


async def submit(request: Request) -> Response:
    """POST /v1/edits: a job as JSON, or as a form with files `image` and the rest of the job in `job`."""
    door: Door = request.app.state.door
    caller = door.enter(request)
    if content_type(request) == "multipart/form-data":
        async with open_form(request, door.settings.max_input_bytes) as form:
            if unknown := set(form) - {*UPLOAD_FIELDS, "job"}:
                raise wrong(min(unknown), "unknown field; a form has image and job", "unknown_parameter")
            return await _submit(request, door, caller, _job_field(form.get("job")), uploads_in(form))
    if content_type(request) != "application/json":
        raise HttpFault(415, "unsupported_media_type", "expected application/json or multipart/form-data")
    raw = await read_json(request)
    given = raw.pop("image", None)
    images = [given] if isinstance(given, str) else given
    if not isinstance(images, list) or not all(isinstance(image, str) for image in images):
        raise wrong("image", f"expected a URI or a list of 1 to {MAX_IMAGES}", ErrorCode.INVALID_JOB)
    return await _submit(request, door, caller, raw, images)


async def _submit(
    request: Request, door: Door, caller: Caller, raw: dict[str, Any], images: list[GivenImage]
) -> Response:
    raw.setdefault("id", None)
    named = raw.pop("id") or idempotency_key(request)
    job_id = caller.own(checked_id(named)) if named else uuid4().hex
    await door.accept(caller, [{**raw, "id": job_id}], images)
    (record,) = await door.wait(request, [job_id], preferred_wait(request))
    return await answer(request, door, record, 202)


async def show_or_cancel(request: Request) -> Response:
    """GET and DELETE /v1/edits/{id}, one route, so that `Allow` names both."""
    return await (cancel if request.method == "DELETE" else show)(request)


async def show(request: Request) -> Response:
    """GET /v1/edits/{id}: how a job stands; with `Prefer: wait=n` once it has ended, or after n seconds."""
    door: Door = request.app.state.door
    record = await door.find(door.enter(request), request.path_params["id"])
    (record,) = await door.wait(request, [record.job.id], preferred_wait(request))
    return await answer(request, door, record, 200)


async def cancel(request: Request) -> Response:
    """DELETE /v1/edits/{id}: cancel; a job that has ended stays as it is."""
    door: Door = request.app.state.door
    record = await door.find(door.enter(request), request.path_params["id"])
    await door.client.cancel(record.job.id)
    return await answer(request, door, await door.client.get(record.job.id), 202)


async def retry(request: Request) -> Response:
    """POST /v1/edits/{id}/retry: queue a failed or cancelled job again."""
    door: Door = request.app.state.door
    caller = door.enter(request)
    record = await door.find(caller, request.path_params["id"])
    await door.client.run(door.access.spend, caller, 1)
    if await door.client.retry(record.job.id) is JobState.SUCCEEDED:
        raise HttpFault(409, "has_succeeded", f"job {record.job.id!r} has succeeded; send a new one")
    return await answer(request, door, await door.client.get(record.job.id), 202)


async def image(request: Request) -> Response:
    """GET /v1/edits/{id}/image: the output; by key, or by a link that was signed for it."""
    door: Door = request.app.state.door
    job_id = request.path_params["id"]
    if await door.client.run(door.access.is_signed, request, job_id):
        record = await door.client.get(job_id)
    else:
        record = await door.find(door.enter(request), job_id)
    output = record.result.output
    if record.state is not JobState.SUCCEEDED or output is None:
        raise HttpFault(409, "no_image", f"job {record.job.id!r} is {record.state}: it has no image")
    data = await door.client.run(door.storage.read, output)
    kind = CONTENT_TYPES[record.job.params.output_format or "png"]
    name = re.sub(r"[^A-Za-z0-9._-]", "_", output.rpartition("/")[2])
    headers = {
        "Cache-Control": "private, max-age=3600",
        "Content-Disposition": f'inline; filename="{name}"',
        "Content-Security-Policy": "default-src 'none'; sandbox",
    }
    return Response(data, media_type=kind, headers=headers)


async def events(request: Request) -> Response:
    """GET /v1/edits/{id}/events: server-sent events, one for each change, named after the state."""
    door: Door = request.app.state.door
    record = await door.find(door.enter(request), request.path_params["id"])

    async def stream() -> AsyncIterator[str]:
        quiet = 0
        try:
            async for view in door.follow(request, record):
                quiet = quiet + 1 if view is None else 0
                if view is not None:
                    yield f"event: {view.state}\ndata: {view.model_dump_json()}\n\n"
                elif quiet % KEEP_ALIVE_LOOKS == 0:
                    yield ": still there\n\n"
        except JobNotFound:
            yield "event: gone\ndata: {}\n\n"

    return StreamingResponse(stream(), media_type="text/event-stream", headers={**NO_CACHE, "X-Accel-Buffering": "no"})


async def batch(request: Request) -> Response:
    """GET /v1/batches/{id}: counts, and a page of its jobs."""
    door: Door = request.app.state.door
    caller = door.enter(request)
    name = caller.own(request.path_params["id"])
    limit = _number(request, "limit", SHOWN_BY_DEFAULT, MOST_SHOWN)
    offset = _number(request, "offset", 0, LARGEST_OFFSET)

    def read() -> BatchView:
        ledger = door.client.client.ledger
        counts = ledger.batch_counts(name)
        ids = list(islice(ledger.batch_job_ids(name), offset, offset + limit))
        records = [record for record in ledger.get_many(ids) if record is not None]
        jobs = [BatchJobView(id=record.job.id, state=record.state) for record in records]
        return BatchView(id=name, total=sum(counts.values()), counts=counts, jobs=jobs)

    try:
        view = await door.client.run(read)
    except JobNotFound as error:
        raise not_found(request.path_params["id"], "batch") from error
    return JSONResponse(view.model_dump(mode="json"), headers=NO_CACHE)


async def answer(request: Request, door: Door, record: JobRecord, open_status: int) -> Response:
    """The job as an answer: 200 once it has ended, otherwise `open_status`."""
    view = await door.view(request, record)
    headers = {**NO_CACHE, "Location": f"{door.base(request)}/v1/edits/{record.job.id}"}
    if asked := preferred_wait(request):
        headers["Preference-Applied"] = f"wait={asked:g}"
    status = 200 if record.state.is_terminal else open_status
    return Response(view.model_dump_json(), status, headers, "application/json")


def idempotency_key(request: Request) -> str | None:
    """The id that the caller gives the job: the same one twice is one job."""
    key = request.headers.get("idempotency-key")
    return key.strip().strip('"') if key else None


def checked_id(name: object) -> str:
    """An id of a caller.

    Raises:
        HttpFault: it has not the form of one.
    """
    if not isinstance(name, str) or len(name) > LONGEST_KEY or not re.fullmatch(JOB_ID_PATTERN, name):
        raise wrong("Idempotency-Key", f"expected up to {LONGEST_KEY} letters, digits, '.', '_', ':' and '-'")
    return name


def preferred_wait(request: Request) -> float:
    """Seconds of `Prefer: wait=n` (RFC 7240), at most `LONGEST_WAIT_SECONDS`; 0 without it."""
    found = re.search(r"(?:^|[,;\s])wait\s*=\s*\"?(\d{1,9})\"?\s*(?:$|[,;])", request.headers.get("prefer", ""))
    return min(float(found[1]), LONGEST_WAIT_SECONDS) if found else 0.0


def _job_field(text: UploadFile | str | None) -> dict[str, Any]:
    try:
        value = json.loads(text) if isinstance(text, str) else None
    except (ValueError, RecursionError) as error:
        raise wrong("job", f"is not JSON: {error}", ErrorCode.INVALID_JOB) from error
    if not isinstance(value, dict) or "image" in value:
        raise wrong("job", "expected a JSON object without image, which is a field of the form", ErrorCode.INVALID_JOB)
    return value


def _number(request: Request, name: str, default: int, most: int) -> int:
    text = request.query_params.get(name, str(default))
    value = int(text) if text.isascii() and text.isdigit() and len(text) < 10 else math.nan
    if not 0 <= value <= most:
        raise wrong(name, f"expected a number from 0 to {most}")
    return int(value)

"""`POST /v1/images/edits` in the form of OpenAI's API, for clients that speak it."""

from __future__ import annotations

import base64
import json
import re
import time
from collections.abc import Mapping
from typing import Any
from uuid import uuid4

from pydantic import ValidationError
from starlette.datastructures import FormData, UploadFile
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from jobs.errors import ErrorCode
from jobs.ledger import JobRecord
from jobs.schema import EditParams, JobState
from producer.http.bodies import UPLOAD_FIELDS, content_type, open_form, read_json, uploads_in
from producer.http.door import LONGEST_WAIT_SECONDS, Door
from producer.http.edits import NO_CACHE, checked_id, idempotency_key, preferred_wait
from producer.http.faults import NEVER_AGAIN, HttpFault, wrong
from producer.http.intake import GivenImage
from producer.http.keys import Caller
from producer.http.views import ImagesView, ImageView

MOST_IMAGES = 4
WAIT_SECONDS = 120.0

IMAGE_FIELDS = (*UPLOAD_FIELDS, "images")
TAKEN_WITHOUT_EFFECT = {
    "model": None,
    "background": {"auto", "opaque"},
    "input_fidelity": {"low", "high"},
    "moderation": {"auto", "low"},
    "partial_images": {"0"},
    "stream": {"false"},
    "safety_identifier": None,
}
"""Fields of that API that change nothing here, with the values that mean so; None: any."""

QUALITIES = {"auto", "standard", "low", "medium", "high", "hd", "xhigh", "max"}
"""What that API calls the quality; ours is a number, of jpeg and webp."""

NOT_HERE = {
    "mask": "say in the prompt what to change; this model takes no masks",
    "stream": "follow GET /v1/edits/{id}/events instead",
    "partial_images": "follow GET /v1/edits/{id}/events instead",
    "background": "the image has no transparency",
}
OURS = {*EditParams.model_fields, "priority", "timeout_seconds", "batch", "metadata", "callback"}
FAILED_FOR_GOOD = {ErrorCode.INVALID_JOB, ErrorCode.OUTPUT_FORBIDDEN, ErrorCode.CANCELLED, ErrorCode.DEADLINE_EXCEEDED}


async def edit(request: Request) -> Response:
    """Edit, wait for the result, and answer with it; 202 with the job's address when it takes longer than `timeout`."""
    door: Door = request.app.state.door
    caller = door.enter(request)
    kind = content_type(request)
    if kind == "multipart/form-data":
        async with open_form(request, door.settings.max_input_bytes) as form:
            return await _edit(request, door, caller, _fields(form), uploads_in(form))
    if kind == "application/json":
        fields = await read_json(request)
        return await _edit(request, door, caller, fields, _addresses(fields))
    raise HttpFault(415, "unsupported_media_type", "expected multipart/form-data or application/json")


async def _edit(
    request: Request, door: Door, caller: Caller, fields: dict[str, Any], images: list[GivenImage]
) -> Response:
    as_links = _choice(fields, "response_format", "b64_json", ("b64_json", "url")) == "url"
    count = _number(fields, "n", 1, 1, MOST_IMAGES)
    seconds = _number(fields, "timeout", preferred_wait(request) or WAIT_SECONDS, 0, LONGEST_WAIT_SECONDS)
    jobs = _jobs(caller, fields, int(count), idempotency_key(request))
    await door.accept(caller, jobs, images)
    records = await door.wait(request, [job["id"] for job in jobs], seconds)
    if not all(record.state.is_terminal for record in records):
        return _not_yet(door, request, caller, records)
    return await _answer(door, request, records, as_links)


def _jobs(caller: Caller, fields: dict[str, Any], count: int, key: str | None) -> list[dict[str, Any]]:
    """The fields of as many jobs as images are asked for; several are a batch."""
    raw = _contract_fields(fields)
    name = caller.own(checked_id(key)) if key else uuid4().hex
    if count == 1:
        return [{**raw, "id": name}]
    return [
        {"batch": name, **raw, "id": f"{name}-{number}", "params": {**raw["params"], "seed": seed}}
        for number, seed in enumerate(_seeds(raw["params"].get("seed"), count), start=1)
    ]


def _seeds(given: Any, count: int) -> list[Any]:
    """A seed for each image: the next one after the other, or random ones; what is none stays for the job's check."""
    try:
        seed = EditParams.model_validate({"seed": given}).seed
    except ValidationError:
        return [given] * count
    return [None if seed is None else (seed + number) % 2**64 for number in range(count)]


def _contract_fields(fields: Mapping[str, Any]) -> dict[str, Any]:
    """The contract's job for fields of that API and ours beside them.

    Raises:
        HttpFault: a field that is unknown, or asks for what this model does not do.
    """
    raw: dict[str, Any] = {"prompt": fields.get("prompt", ""), "params": {}, "metadata": {}}
    for name, value in fields.items():
        if value is None or name in ("prompt", "n", "response_format", "timeout", *IMAGE_FIELDS):
            continue
        if name in TAKEN_WITHOUT_EFFECT or name in NOT_HERE:
            allowed = TAKEN_WITHOUT_EFFECT.get(name, set())
            if allowed is not None and str(value).lower() not in allowed:
                raise wrong(name, NOT_HERE.get(name, f"expected one of {', '.join(sorted(allowed))}"))
        elif name == "size":
            raw["params"] |= _size(value)
        elif name == "output_compression":
            raw["params"]["quality"] = value
        elif name == "quality" and str(value) in QUALITIES:
            continue
        elif name == "user":
            raw["metadata"] |= {"user": str(value)}
        elif name in ("metadata", "callback"):
            raw[name] = {**raw.get(name, {}), **_object(name, value)}
        elif name in EditParams.model_fields:
            raw["params"][name] = value
        elif name in OURS:
            raw[name] = value
        else:
            raise wrong(name, "unknown parameter; docs/http.md lists those that are taken", "unknown_parameter")
    return raw


def _size(value: Any) -> dict[str, int]:
    if value == "auto":
        return {}
    found = re.fullmatch(r"(\d{1,5})x(\d{1,5})", str(value))
    if found is None:
        raise wrong("size", f"{str(value)[:40]!r}: expected auto or WIDTHxHEIGHT, such as 1024x1024")
    return {"width": int(found[1]), "height": int(found[2])}


def _object(name: str, value: Any) -> dict[str, Any]:
    try:
        parsed = json.loads(value) if isinstance(value, str) else value
    except (ValueError, RecursionError):
        parsed = None
    if not isinstance(parsed, dict):
        raise wrong(name, "expected a JSON object")
    return parsed


def _number(fields: Mapping[str, Any], name: str, default: float, least: float, most: float) -> float:
    given = fields.get(name)
    try:
        value = default if given is None else float(given)
        if not least <= value <= most or (name == "n" and value != int(value)):
            raise ValueError
    except (ValueError, TypeError, OverflowError) as error:
        raise wrong(name, f"{str(given)[:40]!r}: expected {least:g} to {most:g}") from error
    return value


def _choice(fields: Mapping[str, Any], name: str, default: str, choices: tuple[str, ...]) -> str:
    value = default if fields.get(name) is None else fields[name]
    if value not in choices:
        raise wrong(name, f"{str(value)[:40]!r}: expected {' or '.join(choices)}")
    return str(value)


def _fields(form: FormData) -> dict[str, Any]:
    """The fields of a form that are no inputs; `loras` may be repeated, `name[]` is `name`."""
    fields: dict[str, Any] = {}
    for name, value in form.multi_items():
        if name in IMAGE_FIELDS:
            continue
        if isinstance(value, UploadFile):
            raise wrong(name, NOT_HERE.get(name, "a file is not expected here"))
        plain = name.removesuffix("[]")
        fields[plain] = [*fields.get(plain, []), value] if plain == "loras" else value
    return fields


def _addresses(fields: Mapping[str, Any]) -> list[GivenImage]:
    """Inputs of a JSON body: `image` as a URI or a list of them, or `images` as objects with `image_url`."""
    given = [fields[name] for name in IMAGE_FIELDS if fields.get(name) is not None]
    listed = [item for value in given for item in (value if isinstance(value, list) else [value])]
    return [_address(item) for item in listed]


def _address(item: Any) -> str:
    value = item.get("image_url") if isinstance(item, dict) else item
    value = value.get("url") if isinstance(value, dict) else value
    if not isinstance(value, str):
        raise wrong("image", "expected an https:// address or a data: URI, or {'image_url': ...}")
    return value


def _not_yet(door: Door, request: Request, caller: Caller, records: list[JobRecord]) -> Response:
    (first, *others) = records
    place = f"batches/{first.job.batch}" if others else f"edits/{first.job.id}"
    address = f"{door.base(request)}/v1/{place}"
    body = ImagesView(created=int(time.time()), data=[], job=address, state=first.state).body()
    return JSONResponse(body, 202, {**NO_CACHE, "Location": address})


async def _answer(door: Door, request: Request, records: list[JobRecord], as_links: bool) -> Response:
    for record in records:
        if record.state is not JobState.SUCCEEDED:
            raise _fault_of_end(record)
    images = []
    for record in records:
        image = ImageView(seed=record.job.params.seed, id=record.job.id)
        if as_links:
            image.url = await door.client.run(door.access.image_link, door.base(request), record.job.id)
        else:
            data = await door.client.run(door.storage.read, record.result.output or "")
            image.b64_json = base64.b64encode(data).decode()
        images.append(image)
    result = records[0].result
    size = f"{result.width}x{result.height}" if result.width else None
    body = ImagesView(created=int(time.time()), data=images, output_format=result.params.output_format, size=size)
    return JSONResponse(body.body(), headers=NO_CACHE)


def _fault_of_end(record: JobRecord) -> HttpFault:
    """A failed job: 400 when the caller is to blame, otherwise 500. A retry by the client itself would be a new job."""
    error = record.result.error
    code, message = (error.code, error.message) if error else (ErrorCode.INTERNAL, "no reason is known")
    is_callers = code in FAILED_FOR_GOOD or (code.startswith("input_") and code is not ErrorCode.INPUT_UNREACHABLE)
    said = f"{message} (job {record.job.id})"
    return HttpFault(400 if is_callers else 500, code, said, headers=NEVER_AGAIN)

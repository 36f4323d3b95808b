"""Bodies of requests, read within limits: JSON in memory, uploads through a file on disk."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from starlette.datastructures import FormData, UploadFile
from starlette.formparsers import MultiPartException
from starlette.requests import ClientDisconnect, Request
from starlette.types import Message

from jobs.names import LARGEST_MESSAGE_BYTES, check_metadata
from jobs.schema import MAX_IMAGES
from producer.http.faults import HttpFault

UPLOAD_FIELDS = ("image", "image[]")
"""Names that the files of a form may have."""

LONGEST_FIELD_BYTES = 2**20
MOST_FIELDS = 64
BODY_SECONDS = 120.0
"""For a whole body, as for a worker's download: 64 MiB at 4.5 Mbit/s."""

FORM_BYTES = 2**20
"""What a form may have beside its files."""


def content_type(request: Request) -> str:
    """The kind of a body, such as `application/json`."""
    return request.headers.get("content-type", "").partition(";")[0].strip().lower()


async def read_json(request: Request) -> dict[str, Any]:
    """Read a JSON object.

    Raises:
        HttpFault: it is too large, too slow, or no object that can be kept.
    """
    async with _in_time():
        body = await _limited(request, LARGEST_MESSAGE_BYTES).body()
    try:
        value = json.loads(body)
        check_metadata(value)  # depth, and halves of characters
    except (ValueError, RecursionError) as error:
        raise HttpFault(400, "invalid_json", f"the body is not JSON: {error}") from error
    if not isinstance(value, dict):
        raise HttpFault(400, "invalid_json", "the body is not a JSON object")
    return value


@asynccontextmanager
async def open_form(request: Request, max_image_bytes: int) -> AsyncIterator[FormData]:
    """Read a multipart form for the length of a block; files wait on disk.

    Raises:
        HttpFault: it is too large, too slow, or no form.
    """
    limited = _limited(request, MAX_IMAGES * max_image_bytes + FORM_BYTES)
    try:
        async with _in_time():
            form = await limited.form(
                max_files=MAX_IMAGES + 1, max_fields=MOST_FIELDS, max_part_size=LONGEST_FIELD_BYTES
            )
    except MultiPartException as error:
        raise HttpFault(400, "invalid_form", f"the form cannot be read: {error.message}") from error
    try:
        yield form
    finally:
        await form.close()


def uploads_in(form: FormData) -> list[UploadFile | str]:
    """The inputs of a form, in their order."""
    return [item for name in UPLOAD_FIELDS for item in form.getlist(name)]


def _limited(request: Request, most_bytes: int) -> Request:
    """The request, whose body ends in a fault when it is longer; announced lengths need not be true."""
    announced = request.headers.get("content-length", "")
    if announced.isdecimal() and int(announced[:19]) > most_bytes:
        raise _too_large(most_bytes)
    left = most_bytes

    async def receive() -> Message:
        nonlocal left
        message = await request.receive()
        left -= len(message.get("body", b""))
        if left < 0:
            raise _too_large(most_bytes)
        return message

    scope = {name: value for name, value in request.scope.items() if name != "app"}  # else form() answers by itself
    return Request(scope, receive)


@asynccontextmanager
async def _in_time() -> AsyncIterator[None]:
    try:
        async with asyncio.timeout(BODY_SECONDS):
            yield
    except TimeoutError as error:
        raise HttpFault(408, "too_slow", f"the body was not here within {BODY_SECONDS:g} s") from error
    except ClientDisconnect as error:
        raise HttpFault(400, "disconnected", "the body broke off") from error


def _too_large(most_bytes: int) -> HttpFault:
    # The connection stays open: the server reads the rest away, and a client that is still sending gets the answer.
    return HttpFault(413, "request_too_large", f"the body has more than {most_bytes:,} bytes")

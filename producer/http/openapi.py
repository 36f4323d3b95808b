"""The OpenAPI 3.1 document of the door; bodies are described by the models that make and read them."""

from __future__ import annotations

from functools import cache
from typing import Any

from pydantic import BaseModel
from pydantic.json_schema import JsonSchemaMode, models_json_schema

from jobs.schema import (
    JOB_ID_PATTERN,
    LARGEST_SIDE,
    LONGEST_PROMPT,
    MAX_IMAGES,
    SMALLEST_SIDE,
    EditJob,
    EditParams,
)
from jobs.version import program_version
from producer.http.door import LONGEST_WAIT_SECONDS
from producer.http.edits import LARGEST_OFFSET, LONGEST_KEY, MOST_SHOWN, SHOWN_BY_DEFAULT
from producer.http.faults import FaultBody
from producer.http.images import MOST_IMAGES, OURS, WAIT_SECONDS
from producer.http.views import BatchView, EditView, ImagesView

REF = "#/components/schemas/{model}"
FAULTS = {
    400: "The request cannot be used; `param` names the field",
    401: "No key, or one that is not known",
    403: "A web page of another origin",
    404: "No such job or batch of this caller",
    408: "The body came too slowly",
    409: "The id belongs to a job that asks for something else, or the job's state does not allow it",
    413: "A body or an input that is too large",
    415: "Another kind of body",
    429: "The queue is full, or the caller's images of this minute are spent",
    500: "The edit failed, or the server did",
    503: "The queue or the store does not answer",
}
JOB_ID = {
    "name": "id",
    "in": "path",
    "required": True,
    "schema": {"type": "string"},
    "description": "Name of the batch; or the job's id, or the Idempotency-Key that it was sent with",
}
PREFER = {
    "name": "Prefer",
    "in": "header",
    "schema": {"type": "string"},
    "description": "`wait=n`: answer once the job has ended, after n seconds at the latest "
    f"({LONGEST_WAIT_SECONDS:g} at most)",
}
IDEMPOTENCY_KEY = {
    "name": "Idempotency-Key",
    "in": "header",
    "schema": {"type": "string", "pattern": JOB_ID_PATTERN, "maxLength": LONGEST_KEY},
    "description": "The job's id: the same one twice is one job",
}
PROMPT = {"type": "string", "minLength": 1, "maxLength": LONGEST_PROMPT, "pattern": r"\S"}
ADDRESS = {"type": "string", "pattern": "^(https?://|data:|s3://)", "description": "https:// or data:"}
ADDRESSES = {"oneOf": [ADDRESS, {"type": "array", "items": ADDRESS, "minItems": 1, "maxItems": MAX_IMAGES}]}
FILES = {"type": "array", "items": {"type": "string", "format": "binary"}, "minItems": 1, "maxItems": MAX_IMAGES}


@cache
def document() -> dict[str, Any]:
    """The whole document."""
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "kontext-edits",
            "version": program_version(),
            "description": "FLUX.1 Kontext edits from a durable queue: OpenAI's image edits, and jobs to follow.",
        },
        "paths": _paths(),
        "components": {
            "schemas": _schemas(),
            "securitySchemes": {"key": {"type": "http", "scheme": "bearer"}},
        },
        "security": [{"key": []}, {}],
    }


def _schemas() -> dict[str, Any]:
    models: list[tuple[type[BaseModel], JsonSchemaMode]] = [
        *((model, "validation") for model in (EditJob, EditParams)),
        *((model, "serialization") for model in (EditView, BatchView, ImagesView, FaultBody)),
    ]
    _, definitions = models_json_schema(models, ref_template=REF)
    schemas: dict[str, Any] = definitions["$defs"]
    # More than the models can say: what callers may name as inputs, and that blanks are no prompt.
    schemas["EditJob"]["properties"] |= {"image": ADDRESSES, "prompt": PROMPT}
    return {**schemas, "ImagesRequest": _images_request()}


def _images_request() -> dict[str, Any]:
    """OpenAI's fields, and ours beside them."""
    return {
        "type": "object",
        "required": ["prompt"],
        "properties": {
            "prompt": PROMPT,
            "n": {"type": "integer", "minimum": 1, "maximum": MOST_IMAGES, "default": 1},
            "size": {
                "type": "string",
                "default": "auto",
                "description": f"auto, or WIDTHxHEIGHT with sides of {SMALLEST_SIDE} to {LARGEST_SIDE}",
            },
            "response_format": {"type": "string", "enum": ["b64_json", "url"], "default": "b64_json"},
            "output_compression": {"$ref": _field("quality")},
            "user": {"type": "string", "description": "Comes back in the job's metadata"},
            "model": {"type": "string", "description": "Taken, without effect: the workers have one model"},
            "timeout": {
                "type": "number",
                "default": WAIT_SECONDS,
                "minimum": 0,
                "maximum": LONGEST_WAIT_SECONDS,
                "description": "Seconds to wait",
            },
            **{name: {"$ref": _field(name)} for name in sorted(OURS)},
        },
    }


def _field(name: str) -> str:
    """The schema of a field of the contract."""
    model = "EditParams" if name in EditParams.model_fields else "EditJob"
    return f"{REF.format(model=model)}/properties/{name}"


def _paths() -> dict[str, Any]:
    edit = {200: "The job has ended", 202: "The job is queued or running"}
    return {
        "/v1/images/edits": {
            "post": _operation(
                "editImages",
                "Edit an image and wait for it, in the form of OpenAI's API",
                {200: "The images", 202: "Not done within `timeout`; `job` is its address"},
                "ImagesView",
                (400, 401, 403, 408, 409, 413, 415, 429, 500, 503),
                [IDEMPOTENCY_KEY, PREFER],
                {"multipart/form-data": _form("ImagesRequest"), "application/json": _json_images()},
            )
        },
        "/v1/edits": {
            "post": _operation(
                "submitEdit",
                "Queue a job",
                edit,
                "EditView",
                (400, 401, 403, 408, 409, 413, 415, 429, 500, 503),
                [IDEMPOTENCY_KEY, PREFER],
                {
                    "application/json": {"schema": {"$ref": REF.format(model="EditJob")}},
                    "multipart/form-data": _job_form(),
                },
            )
        },
        "/v1/edits/{id}": {
            "get": _operation(
                "getEdit", "How a job stands", edit, "EditView", (400, 401, 403, 404, 500, 503), [JOB_ID, PREFER]
            ),
            "delete": _operation("cancelEdit", "Cancel a job", edit, "EditView", (401, 403, 404, 500, 503), [JOB_ID]),
        },
        "/v1/edits/{id}/events": {
            "get": _stream(
                "followEdit",
                "Follow a job: an event for each change, named after the state, whose data is an EditView",
                "text/event-stream",
                {"type": "string"},
                (401, 403, 404, 500, 503),
            )
        },
        "/v1/edits/{id}/image": {
            "get": _stream(
                "getImage",
                "The image that a job has made",
                "image/*",
                {"type": "string", "format": "binary"},
                (400, 401, 403, 404, 409, 413, 500, 503),
            )
        },
        "/v1/edits/{id}/retry": {
            "post": _operation(
                "retryEdit",
                "Queue a failed or cancelled job again",
                edit,
                "EditView",
                (401, 403, 404, 409, 429, 500, 503),
                [JOB_ID],
            )
        },
        "/v1/batches/{id}": {
            "get": _operation(
                "getBatch",
                "A batch: its jobs by state, and a page of them",
                {200: "The batch"},
                "BatchView",
                (400, 401, 403, 404, 500, 503),
                [JOB_ID, _query("limit", MOST_SHOWN, SHOWN_BY_DEFAULT), _query("offset", LARGEST_OFFSET, 0)],
            )
        },
    }


def _operation(
    name: str,
    summary: str,
    answers: dict[int, str],
    view: str,
    faults: tuple[int, ...],
    parameters: list[dict[str, Any]],
    bodies: dict[str, Any] | None = None,
) -> dict[str, Any]:
    content = {"application/json": {"schema": {"$ref": REF.format(model=view)}}}
    operation = {
        "operationId": name,
        "summary": summary,
        "parameters": parameters,
        "responses": {
            **{str(status): {"description": words, "content": content} for status, words in answers.items()},
            **_faults(faults),
        },
    }
    return {**operation, "requestBody": {"required": True, "content": bodies}} if bodies else operation


def _stream(name: str, summary: str, kind: str, schema: dict[str, Any], faults: tuple[int, ...]) -> dict[str, Any]:
    answer = {"description": summary, "content": {kind: {"schema": schema}}}
    return {
        "operationId": name,
        "summary": summary,
        "parameters": [JOB_ID],
        "responses": {"200": answer, **_faults(faults)},
    }


def _faults(statuses: tuple[int, ...]) -> dict[str, Any]:
    content = {"application/json": {"schema": {"$ref": REF.format(model="FaultBody")}}}
    return {str(status): {"description": FAULTS[status], "content": content} for status in statuses}


def _query(name: str, most: int, default: int) -> dict[str, Any]:
    schema = {"type": "integer", "minimum": 0, "maximum": most, "default": default}
    return {"name": name, "in": "query", "schema": schema}


def _form(model: str) -> dict[str, Any]:
    files = {"type": "object", "required": ["image"], "properties": {"image": FILES}}
    return {"schema": {"allOf": [{"$ref": REF.format(model=model)}, files]}}


def _json_images() -> dict[str, Any]:
    addresses = {"type": "object", "required": ["image"], "properties": {"image": ADDRESSES}}
    return {"schema": {"allOf": [{"$ref": REF.format(model="ImagesRequest")}, addresses]}}


def _job_form() -> dict[str, Any]:
    job = {"type": "string", "contentMediaType": "application/json", "description": "The job without `image`"}
    return {"schema": {"type": "object", "required": ["image", "job"], "properties": {"image": FILES, "job": job}}}

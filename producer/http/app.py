"""The application: routes, and what holds for all of them."""

from __future__ import annotations

import logging
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.middleware.cors import CORSMiddleware
from starlette.requests import Request
from starlette.responses import JSONResponse, PlainTextResponse, Response
from starlette.routing import Route
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from jobs.errors import EditFailure, Error
from jobs.shown import one_line
from producer.async_client import AsyncClient
from producer.http import edits, images
from producer.http.door import Door
from producer.http.faults import HttpFault, answer_fault
from producer.http.openapi import document
from producer.http.page import page
from producer.http.settings import HttpSettings

log = logging.getLogger(__name__)

CORS_METHODS = ("GET", "POST", "DELETE")
CORS_HEADERS = ("Authorization", "Content-Type", "Idempotency-Key", "Prefer")
CORS_EXPOSED = ("Location", "Retry-After", "Preference-Applied")

SAFE_HEADERS = (
    (b"x-content-type-options", b"nosniff"),
    (b"referrer-policy", b"no-referrer"),
    (b"x-frame-options", b"DENY"),
)


def make_app(settings: HttpSettings) -> Starlette:
    """The ASGI application of `producer serve`; nothing is connected until the first request."""

    @asynccontextmanager
    async def lifespan(app: Starlette) -> AsyncIterator[None]:
        yield
        await door.client.aclose()
        door.storage.close()

    door = Door(settings, AsyncClient(settings=settings), settings.open_storage())
    middleware = [Middleware(Surroundings)]
    if settings.http_origins:
        middleware.append(
            Middleware(
                CORSMiddleware,
                allow_origins=settings.http_origins,
                allow_methods=CORS_METHODS,
                allow_headers=CORS_HEADERS,
                expose_headers=CORS_EXPOSED,
            )
        )
    app = Starlette(
        routes=[
            Route("/v1/images/edits", images.edit, methods=["POST"]),
            Route("/v1/edits", edits.submit, methods=["POST"]),
            Route("/v1/edits/{id}", edits.show_or_cancel, methods=["GET", "DELETE"]),
            Route("/v1/edits/{id}/events", edits.events, methods=["GET"]),
            Route("/v1/edits/{id}/image", edits.image, methods=["GET"]),
            Route("/v1/edits/{id}/retry", edits.retry, methods=["POST"]),
            Route("/v1/batches/{id}", edits.batch, methods=["GET"]),
            Route("/openapi.json", _openapi, methods=["GET"]),
            Route("/livez", _alive, methods=["GET"]),
            Route("/readyz", _ready, methods=["GET"]),
            Route("/", page, methods=["GET"]),
        ],
        middleware=middleware,
        exception_handlers=dict.fromkeys((HttpFault, Error, EditFailure, HTTPException, Exception), answer_fault),
        lifespan=lifespan,
    )
    app.state.door = door
    return app


async def _openapi(request: Request) -> Response:
    return JSONResponse(document())


async def _alive(request: Request) -> Response:
    return PlainTextResponse("alive")


async def _ready(request: Request) -> Response:
    """200 when jobs can be queued."""
    door: Door = request.app.state.door
    await door.client.run(door.client.client.ledger.waiting)
    return PlainTextResponse("ready")


class Surroundings:
    """Headers that every answer has, and one line of the log for each request, without query and without key."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        started, status = time.monotonic(), 0

        async def with_headers(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                given = {name for name, _ in message["headers"]}
                message["headers"] = [*message["headers"], *(pair for pair in SAFE_HEADERS if pair[0] not in given)]
            await send(message)

        try:
            await self._app(scope, receive, with_headers)
        finally:
            seconds = time.monotonic() - started
            path = one_line(scope["path"], 200)
            log.info("request method=%s path=%s status=%d seconds=%.3f", scope["method"], path, status, seconds)

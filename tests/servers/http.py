"""A real HTTP server whose answers a test writes, good and bad, and which remembers what it was asked."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import urlsplit


@dataclass(frozen=True)
class Answer:
    """What the server does with one request."""

    status: int = 200
    body: bytes = b""
    headers: dict[str, str] = field(default_factory=dict)
    delay_seconds: float = 0
    missing_bytes: int = 0  # announced in Content-Length, never sent
    dropped: bool = False  # the connection closes without a word

    @classmethod
    def html(cls, text: str = "<html><body>Please log in</body></html>", status: int = 200) -> Answer:
        return cls(status, text.encode(), {"Content-Type": "text/html; charset=utf-8"})

    @classmethod
    def redirect(cls, location: str, status: int = 302) -> Answer:
        return cls(status, headers={"Location": location})


@dataclass(frozen=True)
class Request:
    """What the server was asked; header names are lower case."""

    method: str
    path: str
    headers: dict[str, str]
    body: bytes

    def verified(self, secret: str) -> dict[str, Any]:
        """The callback in the body, once its signature is checked with the Standard Webhooks library."""
        from standardwebhooks import Webhook

        Webhook(secret).verify(self.body, self.headers)
        return dict(json.loads(self.body))


class HttpServer:
    """Answers by path; a path that nobody told it about is a 404."""

    def __init__(self, url: str, closing: threading.Event) -> None:
        self._url = url
        self._closing = closing
        self._lock = threading.Lock()
        self._answers: dict[str, list[Answer]] = {}
        self._requests: list[Request] = []

    def url(self, path: str) -> str:
        return self._url + path

    def serve_file(self, path: str, body: bytes, content_type: str = "application/octet-stream") -> str:
        """Serve these bytes at `path`; the whole URL."""
        return self.answer(path, Answer(body=body, headers={"Content-Type": content_type}))

    def answer(self, path: str, *answers: Answer) -> str:
        """Answer requests for `path` with these, one after the other, the last one for ever; the whole URL."""
        with self._lock:
            self._answers[path] = list(answers)
        return self.url(path)

    def requests(self, path: str) -> list[Request]:
        """The requests for `path` so far, oldest first."""
        with self._lock:
            return [request for request in self._requests if request.path == path]

    def next_answer(self, request: Request) -> Answer:
        """Remember the request and choose its answer, after the answer's delay or when the server closes."""
        with self._lock:
            self._requests.append(request)
            answers = self._answers.get(request.path, [Answer(404)])
            answer = answers.pop(0) if len(answers) > 1 else answers[0]
        self._closing.wait(answer.delay_seconds)
        return answer


@contextmanager
def running_http() -> Iterator[HttpServer]:
    """An HTTP server that runs inside the `with` block, on a free port of the loopback address."""
    closing = threading.Event()
    listener = _Listener(("127.0.0.1", 0), _Handler)
    listener.routes = HttpServer(f"http://127.0.0.1:{listener.server_port}", closing)
    thread = threading.Thread(target=listener.serve_forever, kwargs={"poll_interval": 0.01}, name="http-server")
    thread.start()
    try:
        yield listener.routes
    finally:
        closing.set()
        listener.shutdown()
        thread.join()
        listener.server_close()


class _Listener(ThreadingHTTPServer):
    routes: HttpServer
    request_queue_size = 128  # with the library's 5, many clients at once wait a second for their connection

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that hangs up in the middle is what tests are about, no news for the terminal."""


class _Handler(BaseHTTPRequestHandler):
    server: _Listener

    def handle_request(self) -> None:
        size = int(self.headers.get("Content-Length") or 0)
        headers = {name.lower(): value for name, value in self.headers.items()}
        body = self.rfile.read(size)
        if len(body) < size:  # the client died in the middle of its request
            return
        request = Request(self.command, urlsplit(self.path).path, headers, body)
        answer = self.server.routes.next_answer(request)
        if not answer.dropped:
            self._send(answer)

    do_GET = do_HEAD = do_POST = do_PUT = do_DELETE = handle_request  # noqa: N815 - the library's names

    def _send(self, answer: Answer) -> None:
        self.send_response(answer.status)
        for name, value in answer.headers.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(answer.body) + answer.missing_bytes))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(answer.body)

    def log_message(self, format: str, *arguments: object) -> None:
        """Say nothing: what was asked is in `HttpServer.requests`."""

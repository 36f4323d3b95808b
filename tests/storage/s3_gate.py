"""A gate before the S3 server: passes requests on as they are, except those it is told to answer itself."""

from __future__ import annotations

import http.client
import threading
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import urlsplit

Refusal = Callable[[str, str], int | None]
"""Says with which status to answer method and path itself; 0 drops the connection in the middle of the answer."""

HOP_BY_HOP = {"connection", "transfer-encoding"}


@contextmanager
def s3_gate(endpoint_url: str, refusal: Refusal) -> Iterator[str]:
    """A gate on a free port; its URL. Signatures stay right, since the `Host` header is passed on."""

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"  # with `100 Continue`, for which boto3 waits a second before each upload

        def handle_request(self) -> None:
            body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
            status = refusal(self.command, self.path)
            if status:
                self.answer(status, {}, b"")
            else:
                self.pass_on(body, is_cut=status == 0)

        do_GET = do_HEAD = do_POST = do_PUT = do_DELETE = handle_request  # noqa: N815 - the library's names

        def pass_on(self, body: bytes, is_cut: bool) -> None:
            with closing(http.client.HTTPConnection(str(urlsplit(endpoint_url).netloc))) as server:
                server.request(self.command, self.path, body, dict(self.headers.items()))
                with server.getresponse() as answer:
                    content = answer.read()
                    headers = {name: value for name, value in answer.headers.items() if name.lower() not in HOP_BY_HOP}
                    self.answer(answer.status, headers, content[: len(content) // 2] if is_cut else content)
            self.close_connection = is_cut

        def answer(self, status: int, headers: dict[str, str], content: bytes) -> None:
            self.send_response_only(status)
            for name, value in ({"Content-Length": str(len(content))} | headers).items():
                self.send_header(name, value)
            self.end_headers()
            self.wfile.write(content)

        def log_message(self, format: str, *arguments: object) -> None:
            """Say nothing."""

    class Gate(ThreadingHTTPServer):
        def handle_error(self, request: Any, client_address: Any) -> None:
            """A client that hangs up is no news."""

    gate = Gate(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=gate.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        yield f"http://127.0.0.1:{gate.server_port}"
    finally:
        gate.shutdown()
        thread.join()
        gate.server_close()

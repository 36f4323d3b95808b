"""The HTTP server of a daemon: `/livez`, `/readyz` and `/metrics`, for kubelets and for Prometheus."""

from __future__ import annotations

import logging
import socket
from collections.abc import Callable
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread
from typing import ClassVar
from urllib.parse import urlsplit

from prometheus_client import CollectorRegistry
from prometheus_client.exposition import choose_encoder

from jobs.errors import SettingsError
from worker.settings import Settings

log = logging.getLogger(__name__)

CLIENT_SECONDS = 10.0
"""Longest silence of a client; then its connection is closed."""

WhyNot = Callable[[], str | None]
"""Returns the reason why a probe fails, and None while it succeeds."""


def never() -> str | None:
    """The probe that always succeeds: an answer alone shows that the process runs."""
    return None


class MetricsServer:
    """Answers probes and scrapes in threads of its own, until `close`.

    Args:
        host, port: address to listen on; port 0 takes a free one.
        registry: metrics to show.
        why_not_live, why_not_ready: reasons behind `/livez` and `/readyz`: they answer 200 `ok`, or 503 and the reason.
    Raises:
        SettingsError: the address cannot be had.
    """

    def __init__(
        self,
        host: str,
        port: int,
        registry: CollectorRegistry,
        why_not_live: WhyNot = never,
        why_not_ready: WhyNot = never,
    ) -> None:
        probes = {"/livez": why_not_live, "/readyz": why_not_ready}
        handler = type("Handler", (_Handler,), {"registry": registry, "probes": probes})
        try:
            self._server = (_ServerV6 if ":" in host else _Server)((host, port), handler)
        except OSError as error:
            reason = error.strerror or str(error)
            raise SettingsError(
                f"DG_METRICS_PORT={port}: cannot listen on {host}:{port} ({reason}): choose another port, or unset it"
            ) from error
        Thread(target=self._server.serve_forever, name="metrics", daemon=True).start()

    @property
    def port(self) -> int:
        return int(self._server.server_address[1])

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()


def serve_metrics(
    settings: Settings, registry: CollectorRegistry, why_not_live: WhyNot = never, why_not_ready: WhyNot = never
) -> MetricsServer | None:
    """Start the server that the settings ask for; None when they ask for none.

    Raises:
        SettingsError: the address cannot be had.
    """
    if settings.metrics_port is None:
        return None
    return MetricsServer(settings.metrics_host, settings.metrics_port, registry, why_not_live, why_not_ready)


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    # Two daemons that were given the same port must not share it; BaseHTTPServer would let them on some systems.
    allow_reuse_port = False

    def handle_error(self, request: object, client_address: object) -> None:
        """Say nothing: a client that went away in the middle of an answer is no event."""


class _ServerV6(_Server):
    address_family = socket.AF_INET6


class _Handler(BaseHTTPRequestHandler):
    registry: ClassVar[CollectorRegistry]
    probes: ClassVar[dict[str, WhyNot]]
    timeout = CLIENT_SECONDS
    protocol_version = "HTTP/1.1"
    server_version = "kontext"
    sys_version = ""

    def do_GET(self) -> None:  # the name that http.server calls
        path = urlsplit(self.path).path
        if path == "/metrics":
            self._answer_scrape()
        elif path in self.probes:
            reason = self.probes[path]()
            status = HTTPStatus.OK if reason is None else HTTPStatus.SERVICE_UNAVAILABLE
            self._answer(status, f"{reason or 'ok'}\n".encode())
        else:
            self._answer(HTTPStatus.NOT_FOUND, b"here are /livez, /readyz and /metrics\n")

    def do_HEAD(self) -> None:
        self.do_GET()

    def log_message(self, format: str, *args: object) -> None:
        """Say nothing: probes come every few seconds."""

    def _answer_scrape(self) -> None:
        encode, content_type = choose_encoder(self.headers.get("Accept", ""))
        try:
            shown = encode(self.registry)
        except Exception as error:  # whatever a collector meets: the scrape fails, and Prometheus sees that it does
            log.exception("scrape_failed")
            self._answer(HTTPStatus.INTERNAL_SERVER_ERROR, f"{type(error).__name__}: {error}\n".encode())
        else:
            self._answer(HTTPStatus.OK, shown, content_type)

    def _answer(self, status: HTTPStatus, body: bytes, content_type: str = "text/plain; charset=utf-8") -> None:
        self.send_response(status)
        self.send_header("Content-Type", content_type)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

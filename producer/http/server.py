"""The process: uvicorn with the application, alone or with a private Redis and a worker behind it."""

from __future__ import annotations

import asyncio
import logging
import socket
from collections.abc import Callable
from types import FrameType

import uvicorn

from jobs.errors import BrokerError
from jobs.ledger import Ledger
from producer.errors import SetupError
from producer.http.app import make_app
from producer.http.settings import HttpSettings
from producer.terminal import say

LAST_ANSWERS_SECONDS = 10
"""Time for answers under way once the process is to stop; waits for jobs end at once, and the jobs go on."""

CHECK_SECONDS = 1.0


class DoorServer(uvicorn.Server):
    """Ends the waits of callers as soon as the process is asked to stop.

    Args:
        check: called every second; what it raises stops the server and is raised again by `run_door`.
    """

    def __init__(self, config: uvicorn.Config, stop_waits: Callable[[], None], check: Callable[[], None]) -> None:
        super().__init__(config)
        self._stop_waits = stop_waits
        self._check = check
        self.failure: BaseException | None = None

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        self._stop_waits()
        super().handle_exit(sig, frame)

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        if self.started:
            self._watch = asyncio.get_running_loop().create_task(self._keep_checking())

    async def _keep_checking(self) -> None:
        while not self.should_exit:
            await asyncio.sleep(CHECK_SECONDS)
            try:
                await asyncio.to_thread(self._check)
            except Exception as error:
                self.failure = error
                self._stop_waits()
                self.should_exit = True


def run_door(settings: HttpSettings, check: Callable[[], None] = lambda: None) -> None:
    """Serve until SIGINT or SIGTERM.

    Args:
        check: called every second; what it raises ends the door.
    Raises:
        SettingsError: open to others without keys.
        SetupError: the port is taken.
    """
    settings.check_open()
    with _listen(settings.http_host, settings.http_port) as listener:
        host, port = listener.getsockname()[:2]
        app = make_app(settings)

        def stop_waits() -> None:
            app.state.door.is_closing = True

        logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s %(message)s")
        config = uvicorn.Config(
            app,
            log_config=None,
            log_level="warning",
            access_log=False,  # it would write the signatures of links
            server_header=False,
            timeout_graceful_shutdown=LAST_ANSWERS_SECONDS,
        )
        server = DoorServer(config, stop_waits, check)
        _warn_of_silent_redis(app.state.door.client.client.ledger)
        say(f"open at http://{_shown(host)}:{port}/ (Ctrl-C stops it)")
        server.run(sockets=[listener])
        if server.failure is not None:
            raise server.failure


def _warn_of_silent_redis(ledger: Ledger) -> None:
    try:
        ledger.waiting()
    except BrokerError as error:
        say(f"warning: {error}; jobs are refused (503) until it does")


def _listen(host: str, port: int) -> socket.socket:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    listener = socket.socket(family)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind((host.strip("[]"), port))
    except OSError as error:
        listener.close()
        raise SetupError(
            f"{host}:{port} cannot be opened ({error.strerror or error}); choose another --port"
        ) from error
    return listener


def _shown(host: str) -> str:
    return f"[{host}]" if ":" in host else host

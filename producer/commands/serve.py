"""`producer serve`: the HTTP door."""

from __future__ import annotations

from contextlib import suppress
from typing import Annotated, Any

import typer

from jobs.errors import SettingsError
from jobs.settings import load_settings
from producer.commands import options
from producer.embedded.local_service import ends_like_ctrl_c, local_service
from producer.embedded.private_redis import private_folder
from producer.errors import SetupError
from producer.terminal import put, say


def serve(
    host: Annotated[
        str | None, options.option("--host", help="Address to open. [env: DG_HTTP_HOST] [default: 127.0.0.1]")
    ] = None,
    port: Annotated[
        int | None, options.option("--port", help="Port; 0: any free one. [env: DG_HTTP_PORT] [default: 8000]")
    ] = None,
    embedded: Annotated[
        bool,
        options.option("--embedded", help="With a private Redis and a worker, on this machine alone. [default: off]"),
    ] = False,
    new_key: Annotated[
        str | None,
        options.option("--new-key", help="Make a key for NAME, or NAME:IMAGES-A-MINUTE, and end. [default: none]"),
    ] = None,
    broker_url: options.BrokerUrl = None,
) -> None:
    """Open the queue over HTTP: OpenAI's image edits, the contract's jobs, and a page to try them.

    The door keeps nothing itself. Open to others than this machine it needs keys, in DG_API_KEYS.

    \b
    Example: producer serve --embedded
    """
    if new_key is not None:
        _put_new_key(new_key)
        return
    given = {"http_host": host, "http_port": port, "broker_url": broker_url}
    settings = _settings(**{name: value for name, value in given.items() if value is not None})
    if embedded and broker_url is not None:
        raise typer.BadParameter("--embedded has a Redis of its own; leave out --broker-url")
    _run_embedded(settings) if embedded else _run(settings)


def _run_embedded(settings: Any) -> None:
    settings.check_open()
    say("starting a private Redis and a worker; the page is open before the model is loaded")
    with private_folder() as folder, local_service(settings.output_uri, folder / "worker.log") as service:
        broker_url = service.client.settings.broker_url
        _run(settings.model_copy(update={"broker_url": broker_url, "max_queued": 0}), service.check)


def _run(settings: Any, *check: Any) -> None:
    from producer.http.server import run_door

    with ends_like_ctrl_c(), suppress(KeyboardInterrupt):  # uvicorn ends in order, then passes the signal on
        run_door(settings, *check)


def _settings(**given: Any) -> Any:
    try:
        from producer.http.server import run_door  # noqa: F401 - loads the server
        from producer.http.settings import HttpSettings
    except ImportError as error:
        raise SetupError(f"the door needs {error.name}: pip install 'kontext-edits[http]'") from error
    return load_settings(HttpSettings, **given)


def _put_new_key(name: str) -> None:
    from producer.http.keys import new_key as make_key

    try:
        key, entry = make_key(name)
    except ValueError as error:
        raise SettingsError(f"--new-key {name}: {error}") from error
    say("give the first line to the caller, and add the second to DG_API_KEYS, separated by a blank")
    put(key)
    put(entry)

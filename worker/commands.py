"""The subcommands of `worker`."""

from __future__ import annotations

import json
import os
import signal
import sys
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from threading import Event
from typing import Annotated

import typer

from jobs.errors import BrokerError, SettingsError
from jobs.settings import load_settings, unknown_variables
from jobs.version import program_version
from worker.health import answer_probe, find_runtime_dir
from worker.settings import Settings

app = typer.Typer(
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)

EXIT_USAGE = 2
EXIT_BROKER = 3


def main() -> None:
    """Run a subcommand; settings that cannot be used end in one line and exit code 2."""
    os.environ.setdefault("PYTHONSAFEPATH", "1")  # torch's compiler runs `python -m`, which would import from here
    try:
        app()
    except SettingsError as error:
        _say(f"error: {error}")
        sys.exit(EXIT_USAGE)
    except BrokerError as error:
        _say(f"error: {error}")
        sys.exit(EXIT_BROKER)


def _print_version(is_asked: bool) -> None:
    if is_asked:
        typer.echo(f"worker {program_version()}")
        raise typer.Exit


@app.callback()
def options(
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version and end.")
    ] = False,
) -> None:
    """Run FLUX.1 Kontext edits from the queue. Settings are DG_* variables; see docs/configuration.md."""


@app.command()
def run(
    gpus: Annotated[
        str | None, typer.Option(help="One worker process for each of these GPUs: all, or indexes such as 0,2.")
    ] = None,
) -> None:
    """Load the model and take jobs until SIGTERM or Ctrl-C.

    Example: DG_BROKER_URL=redis://redis:6379/0 DG_FLUX_KONTEXT_MODEL=/models/kontext worker run

    SIGTERM finishes the job on the GPU (at most DG_DRAIN_SECONDS, then it goes back to the queue); a second one hands
    it back at its next step. Exit codes: 0 stopped, 2 wrong settings, 4 no model, 70 broken device or one whose
    memory other programs hold, 71 hung device.
    """
    settings = _settings()
    if gpus is not None:
        from worker.fleet import run_fleet

        sys.exit(run_fleet(gpus, settings))
    from worker.lifecycle import make_worker
    from worker.logs import set_up_logs

    set_up_logs(settings)
    controller = make_worker(settings).app.Worker(
        quiet=True, without_gossip=True, without_mingle=True, without_heartbeat=True
    )
    controller.start()
    sys.exit(controller.exitcode or 0)


@app.command()
def callbacks() -> None:
    """Deliver callbacks only, without a model: for a process of its own.

    Example: DG_BROKER_URL=redis://redis:6379/0 DG_CALLBACK_SECRET=whsec_... worker callbacks
    """
    settings = _settings()
    from jobs.ledger import Ledger
    from storage.guarded_http import guarded_client
    from worker.background import Periodic
    from worker.callbacks import INTERVAL_SECONDS, CallbackSender
    from worker.events import Events, WorkerStopped
    from worker.listeners import listeners
    from worker.logs import set_up_logs
    from worker.metrics.activity import delivery_metrics
    from worker.metrics.server import serve_metrics

    set_up_logs(settings)
    client = guarded_client(settings, settings.callback_timeout_seconds)
    registry, count = delivery_metrics()
    events = Events(*listeners("kontext-callbacks", settings.worker_name), count)
    sender = CallbackSender(settings, Ledger.from_settings(settings), client, events)
    delivery = Periodic("callbacks", INTERVAL_SECONDS, sender.tick, events)
    server = serve_metrics(settings, registry, delivery.why_not_live, delivery.why_not_ready)
    delivery.start()
    _wait_for_sigterm()
    sender.close()
    delivery.stop()
    events.send(WorkerStopped(settings.worker_name))
    if server is not None:
        server.close()


@app.command()
def exporter() -> None:
    """Show the metrics of queue, callbacks, workers and Redis over HTTP, for Prometheus: one process for all workers.

    Example: DG_BROKER_URL=redis://redis:6379/0 DG_METRICS_PORT=9105 worker exporter

    Exit code 2 when the port is taken. docs/metrics.md lists the metrics.
    """
    settings = _settings()
    from worker.logs import set_up_logs
    from worker.metrics.queue import queue_registry
    from worker.metrics.server import serve_metrics

    set_up_logs(settings)
    registry, why_not_ready = queue_registry(settings)
    server = serve_metrics(settings, registry, why_not_ready=why_not_ready)
    if server is None:
        raise SettingsError("DG_METRICS_PORT is not set: name the port that Prometheus shall ask, for example 9105")
    _wait_for_sigterm()
    server.close()


@app.command()
def top(
    once: Annotated[bool, typer.Option("--once", help="Print one look and end.")] = False,
    seconds: Annotated[float, typer.Option(min=0.2, help="Pause between two looks.")] = 2.0,
) -> None:
    """Show the queue and every worker: its job, step, seconds per step, memory and last error.

    Example: DG_BROKER_URL=redis://redis:6379/0 worker top

    Reads Redis only, so it runs on any machine.
    """
    settings = load_settings(Settings)
    from rich.console import Console

    from jobs.connection import connect
    from jobs.ledger import Ledger
    from jobs.registry import WorkerRegistry
    from worker.top import Top, show, show_once

    view = Top(Ledger.from_settings(settings), WorkerRegistry(connect(settings.redis_url), settings.key_prefix))
    console = Console(highlight=False)
    if once:
        show_once(view, console)
        return
    with suppress(KeyboardInterrupt):
        show(view, console, seconds)


@app.command()
def check(
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object a line.")] = False,
    verify: Annotated[bool, typer.Option("--verify", help="Also compare the weights' SHA-256; takes minutes.")] = False,
) -> None:
    """Say what this machine has and lacks: device, model, Redis, store, callback secret.

    Example: worker check

    Exit code 1 when something is missing that a worker needs.
    """
    settings = load_settings(Settings)
    from worker.check import Level, check_machine

    findings = list(check_machine(settings, verify))
    if as_json:
        for finding in findings:
            typer.echo(json.dumps(asdict(finding)))
    else:
        from rich.console import Console
        from rich.table import Table

        table = Table(box=None, show_header=False)
        for column in ("level", "subject"):
            table.add_column(column, no_wrap=True)
        table.add_column("found", overflow="fold")
        for finding in findings:
            style = {Level.OK: "green", Level.WARN: "yellow", Level.FAIL: "red"}[finding.level]
            said = f"{finding.found}\n-> {finding.remedy}" if finding.remedy else finding.found
            table.add_row(f"[{style}]{finding.level}[/]", finding.subject, said)
        Console(highlight=False).print(table)
    sys.exit(1 if any(finding.level is Level.FAIL for finding in findings) else 0)


@app.command()
def fetch_model(
    repository: Annotated[str, typer.Argument(help="Hub id.", metavar="REPOSITORY")],
    folder: Annotated[Path, typer.Argument(help="Where they go; right files stay.", metavar="FOLDER")],
    revision: Annotated[str | None, typer.Option(help="Branch, tag or commit. [default: the newest]")] = None,
) -> None:
    """Fetch a model's weights from the Hugging Face hub and check them.

    Example: worker fetch-model black-forest-labs/FLUX.1-Kontext-dev /models/kontext

    Fetches only the files that the engine reads, goes on where it was interrupted, and compares SHA-256. Accept the
    licence on the model's page first, then log in (hf auth login) or set HF_TOKEN.
    """
    from worker.weights import fetch_model as fetch

    lock = fetch(repository, folder, revision, _say)
    _say(f"{len(lock.files)} files are right; next: DG_FLUX_KONTEXT_MODEL={folder} worker check")


@app.command()
def prepare(
    folder: Annotated[
        Path | None, typer.Argument(help="Folder of all that is prepared. [default: DG_PREPARED_DIR]", metavar="FOLDER")
    ] = None,
    within: Annotated[
        float | None, typer.Option(help="Seconds after which the second start has to be ready.", min=0)
    ] = None,
    again: Annotated[bool, typer.Option("--again", help="Also where it is prepared already.")] = False,
) -> None:
    """Compile and measure once, so that workers on such machines are ready sooner.

    Example: DG_FLUX_KONTEXT_MODEL=/models/kontext worker prepare /var/cache/kontext/prepared

    Run it with the settings and on the device that the workers have; they use it with DG_PREPARED_DIR=FOLDER. Starts
    the model twice, the second time with empty caches, and keeps what the first has found out only if the second
    compiles nothing and its images are the same, bit for bit. What is kept, and how to remove it: docs/operations.md.

    Exit codes: 0 prepared, 1 not proven, 2 wrong settings, 4 no model.
    """
    settings = load_settings(Settings)
    root = folder or settings.prepared_dir
    if root is None:
        raise SettingsError("name the folder: worker prepare FOLDER, or set DG_PREPARED_DIR")
    from worker.prepare import NotProven
    from worker.prepare import prepare as prepare_in

    try:
        prepare_in(settings, root.absolute(), within, again, _say)
    except NotProven as error:
        _say(f"error: not prepared: {error}")
        sys.exit(1)


@app.command()
def health(
    live: Annotated[bool, typer.Option("--live", help="Exit 1 when a process should be restarted.")] = False,
    ready: Annotated[bool, typer.Option("--ready", help="Exit 1 when a worker takes no jobs now.")] = False,
    runtime_dir: Annotated[
        Path | None, typer.Option(help="Where the workers leave their health files.", envvar="DG_RUNTIME_DIR")
    ] = None,
    name: Annotated[str | None, typer.Option(help="Ask about this worker only; default: all on this machine.")] = None,
) -> None:
    """Ask the workers on this machine how they are; for probes. Needs neither Redis nor the model.

    Example: worker health --ready
    """
    sys.exit(answer_probe(runtime_dir or find_runtime_dir(os.environ), live=live, ready=ready, name=name))


def _settings() -> Settings:
    """Read a daemon's settings, and warn of variables that none of them is."""
    settings = load_settings(Settings)
    for found in unknown_variables(Settings):
        _say(f"warning: {found}")
    return settings


def _wait_for_sigterm() -> None:
    stop = Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stop.set())
    while not stop.wait(1):
        pass


def _say(words: str) -> None:
    """Print words for people, on stderr."""
    typer.echo(words, err=True)

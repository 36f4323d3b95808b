"""`producer callbacks`: what receivers have not taken, and sending it again or giving it up."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict
from enum import StrEnum
from typing import Annotated

import typer

from jobs.ledger import Outbox, OutboxEntry
from producer.client import Client
from producer.commands import options
from producer.commands.look import counts_of
from producer.terminal import plural, put, put_json, say


class State(StrEnum):
    """State of a callback."""

    PENDING = "pending"
    DELIVERED = "delivered"
    DROPPED = "dropped"


def callbacks(
    name: Annotated[
        str | None,
        options.argument(metavar="[BATCH|JOB]", help="A batch or a job. [default: all that are pending or dropped]"),
    ] = None,
    state: Annotated[
        State | None,
        options.option("--state", help="pending, delivered or dropped. [default: pending; dropped with --replay]"),
    ] = None,
    replay: Annotated[
        bool, options.option("--replay", help="Send them again, with all attempts ahead. [default: off]")
    ] = False,
    drop: Annotated[bool, options.option("--drop", help="Drop the pending ones. [default: off]")] = False,
    broker_url: options.BrokerUrl = None,
    as_json: options.AsJson = False,
) -> None:
    """List callbacks, send them again, or give them up.

    \b
    Example: producer callbacks spring-2026 --state dropped --replay
    """
    state = state or (State.DROPPED if replay else State.PENDING)
    if replay and drop:
        raise typer.BadParameter("--replay and --drop exclude each other")
    if drop and state is not State.PENDING:
        raise typer.BadParameter(f"--drop gives up pending callbacks, not {state} ones")
    if name is None and state is State.DELIVERED:
        raise typer.BadParameter("delivered callbacks are listed by batch or job: name one")
    client = Client(settings=options.settings_with(broker_url))
    entries = _entries(client, name, state)
    if not (replay or drop):
        for entry in entries:
            _put(entry, as_json)
        return
    webhook_ids = [entry.webhook_id for entry in entries]  # all of them first: what is changed leaves the list
    outbox = Outbox(client.ledger)
    change = outbox.replay if replay else outbox.drop
    changed = change(webhook_ids)
    say(f"{plural(changed, 'callback')} {'sent again' if replay else 'given up'}")
    if as_json:
        put_json(**{"replayed" if replay else "dropped": changed})


def _entries(client: Client, name: str | None, state: State) -> Iterator[OutboxEntry]:
    outbox = Outbox(client.ledger)
    if name is None:
        return outbox.dropped() if state is State.DROPPED else outbox.pending()
    if client.ledger.get_many([name])[0] is not None:
        found = outbox.of_jobs([name])
    else:
        counts_of(client, name)
        found = outbox.of_jobs(client.ledger.batch_job_ids(name))
    return (entry for entry in found if entry.state == state)


def _put(entry: OutboxEntry, as_json: bool) -> None:
    if as_json:
        put_json(**asdict(entry))
        return
    due = f", due {entry.due_at:%Y-%m-%d %H:%M:%S} UTC" if entry.due_at else ""
    said = f", {entry.said}" if entry.said else ""
    put(f"{entry.webhook_id}: {entry.state}, {plural(entry.attempts, 'attempt')}{said}{due}")

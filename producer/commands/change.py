"""`producer cancel` and `retry`: end jobs early, or queue them again."""

from __future__ import annotations

from typing import Annotated

import typer

from jobs.errors import ErrorCode, JobNotFound
from jobs.schema import JobState
from producer.client import Client
from producer.commands import options
from producer.commands.look import counts_of
from producer.terminal import plural, put_json, say

BATCH_OR_JOB = options.argument("BATCH|JOB", help="Name of a batch, or id of a job.")


def cancel(
    name: Annotated[str, BATCH_OR_JOB], broker_url: options.BrokerUrl = None, as_json: options.AsJson = False
) -> None:
    """Cancel a job, or every job of a batch: queued ones end at once, running ones within a step.

    \b
    Example: producer cancel spring-2026
    """
    client = Client(settings=options.settings_with(broker_url))
    if client.ledger.get_many([name])[0] is not None:
        before = dict.fromkeys(JobState, 0) | {client.cancel(name): 1}
    else:
        counts_of(client, name)
        before = client.cancel_batch(name)
    ended = sum(count for state, count in before.items() if state.is_terminal)
    words = f"cancelled {before[JobState.QUEUED]:,} queued, stopping {before[JobState.RUNNING]:,} running"
    say(f"{words}, {ended:,} had ended before")
    if as_json:
        put_json(name=name, cancelled=before[JobState.QUEUED], stopping=before[JobState.RUNNING], ended_before=ended)


def retry(
    name: Annotated[str, BATCH_OR_JOB],
    code: Annotated[
        list[ErrorCode] | None,
        options.option("--code", help="Of a batch, jobs with this error; may be repeated. [default: all failed ones]"),
    ] = None,
    broker_url: options.BrokerUrl = None,
    as_json: options.AsJson = False,
) -> None:
    """Queue a failed or cancelled job again, or the failed jobs of a batch, under their ids.

    \b
    Example: producer retry spring-2026 --code input_unreachable --code worker_lost
    """
    client = Client(settings=options.settings_with(broker_url))
    if client.ledger.get_many([name])[0] is None:
        counts_of(client, name)
        retried = client.retry_batch(name, code or ())
    elif code:
        raise typer.BadParameter(f"--code chooses among the jobs of a batch, and {name} is one job")
    else:
        retried = int(client.retry(name) in (JobState.FAILED, JobState.CANCELLED))
    say(f"{plural(retried, 'job')} back in the queue")
    cancelled = _still_cancelled(client, name)
    if cancelled:
        say(f"{cancelled:,} cancelled stay as they are; take them up with: producer retry {name} --code cancelled")
    if as_json:
        put_json(name=name, retried=retried, cancelled=cancelled)


def _still_cancelled(client: Client, name: str) -> int:
    """Number of cancelled jobs of a batch; 0 for a job."""
    try:
        return client.status(name)[JobState.CANCELLED]
    except JobNotFound:
        return 0

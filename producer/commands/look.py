"""`producer status`, `watch` and `batches`: the queue, a batch or a job, and how far they are."""

from __future__ import annotations

import json
from dataclasses import asdict
from typing import Annotated

import typer

from jobs.errors import JobNotFound
from jobs.ledger import JobRecord
from jobs.schema import JobState
from producer.client import Client
from producer.commands import options
from producer.exit_codes import ExitCode
from producer.failures import group_failures, tell_failures
from producer.progress import watch as watch_batch
from producer.terminal import plural, put, put_json, say
from producer.waiting import no_worker_hint, wait_for


def status(
    name: Annotated[
        str | None,
        options.argument(metavar="[BATCH|JOB]", help="A batch or a job. [default: queue and workers]"),
    ] = None,
    broker_url: options.BrokerUrl = None,
    as_json: options.AsJson = False,
) -> None:
    """Print how a batch or a job stands; without a name, the queue and the workers.

    \b
    Example: producer status spring-2026
    """
    client = Client(settings=options.settings_with(broker_url))
    if name is None:
        _put_queue(client, as_json)
    elif (record := client.ledger.get_many([name])[0]) is not None:
        _put_job(client, record, as_json)
    else:
        counts = counts_of(client, name)
        put_json(batch=name, **counts) if as_json else put(f"batch {name}: {_in_words(counts)}")


def watch(
    name: Annotated[str, options.argument("BATCH|JOB", help="Name of a batch, or id of a job.")],
    broker_url: options.BrokerUrl = None,
    as_json: options.AsJson = False,
) -> None:
    """Show the progress of a batch or a job until it has ended; exit code 1 when a job has not succeeded.

    \b
    Example: producer watch spring-2026
    """
    client = Client(settings=options.settings_with(broker_url))
    if client.ledger.get_many([name])[0] is not None:
        record = wait_for(client, name, as_json=as_json)
        _put_job(client, record, as_json)
        raise typer.Exit(ExitCode.OK if record.state is JobState.SUCCEEDED else ExitCode.INCOMPLETE)
    counts_of(client, name)
    snapshot = watch_batch(client, name, as_json)
    tell_failures(group_failures(client.ledger, name), as_json, name)
    raise typer.Exit(ExitCode.INCOMPLETE if snapshot.failed else ExitCode.OK)


def batches(broker_url: options.BrokerUrl = None, as_json: options.AsJson = False) -> None:
    """List the batches that the ledger knows, newest first.

    \b
    Example: producer batches --json
    """
    client = Client(settings=options.settings_with(broker_url))
    for batch in client.ledger.batches():
        if as_json:
            put_json(batch=batch.name, submitted_at=batch.submitted_at.isoformat(), **batch.counts)
        else:
            put(f"{batch.name}: {batch.submitted_at:%Y-%m-%d %H:%M:%S} UTC, {_in_words(batch.counts)}")


def _put_queue(client: Client, as_json: bool) -> None:
    counts, workers = client.ledger.queue_counts(), client.registry.workers()
    tenants = client.ledger.tenant_counts()
    if as_json:
        put_json(**counts, tenants=tenants, workers=[asdict(worker) for worker in workers])
        return
    put(", ".join(f"{count:,} {name}" for name, count in counts.items()))
    for tenant, by_state in tenants.items() if any(tenants) else ():
        put(f"tenant {tenant or '(none)'}: {', '.join(f'{count:,} {name}' for name, count in by_state.items())}")
    for worker in workers:
        facts = [worker.state, worker.device, worker.model, worker.detail, ", ".join(worker.jobs)]
        put(f"{worker.name}: {'; '.join(fact for fact in facts if fact)}")
    if not workers:
        say(no_worker_hint(client))


def _put_job(client: Client, record: JobRecord, as_json: bool) -> None:
    position = client.ledger.position(record.job.id)
    if as_json:
        fields = json.loads(record.result.model_dump_json())
        progress = asdict(record.progress) if record.progress else None
        put_json(**fields, queue_position=position, worker=record.worker, progress=progress, callback=record.callback)
        return
    put(f"job {record.job.id}: {record.state}, {plural(record.attempts, 'attempt')}")
    for attempt in record.history:
        put(f"  {attempt.worker}: {attempt.reason}")
    if position is not None:
        put(f"  {plural(position, 'job')} before it in the queue")
    if record.progress is not None:
        put(f"  {record.progress.stage}, step {record.progress.step} of {record.progress.total_steps}")
    if record.outcome.output:
        put(f"  output: {record.outcome.output}")
    if record.outcome.error:
        put(f"  {record.outcome.error.code}: {record.outcome.error.message}")
    if record.callback:
        put(f"  callback: {record.callback}")


def counts_of(client: Client, name: str) -> dict[JobState, int]:
    """Count a batch's jobs by state.

    Raises:
        JobNotFound: there is neither a batch nor a job of that name.
    """
    try:
        return client.status(name)
    except JobNotFound as error:
        raise JobNotFound(
            f"no batch and no job {name!r} in the ledger (ended ones are forgotten after DG_RETENTION_SECONDS)"
        ) from error


def _in_words(counts: dict[JobState, int]) -> str:
    return ", ".join(f"{count:,} {state}" for state, count in counts.items())

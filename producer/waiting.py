"""Following one job to its end: what it waits for, on a terminal as a line that changes, elsewhere as lines."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from jobs.errors import BrokerUnavailable
from jobs.ledger import JobRecord
from jobs.registry import WorkerState
from jobs.schema import JobState
from producer.client import Client
from producer.terminal import people_console, put_json, say

POLL_SECONDS = 0.1
AWAY_POLL_SECONDS = 0.5
LINE_SECONDS = 5.0
NO_WORKER = "no worker"

Tell = Callable[[str, str], None]
"""Shows what a job waits for: the kind of it, and the words with what changes often, such as the step."""


def wait_for(client: Client, job_id: str, tick: Callable[[], None] = lambda: None, as_json: bool = False) -> JobRecord:
    """Show what a job waits for until it has ended, and return its record.

    A Redis that stops answering is waited for.

    Args:
        tick: called at every look; what it raises ends the wait.
        as_json: progress as objects on stdout, instead of words.
    Raises:
        JobNotFound: no such job.
        BrokerUnavailable: Redis does not answer the first look.
    """
    record: JobRecord | None = None
    is_told = False
    with _display(as_json) as tell:
        while record is None or not record.state.is_terminal:
            tick()
            try:
                record = client.get(job_id)
                kind, words = describe(record, client)
                tell(kind, words)
                if kind == NO_WORKER and not is_told and client.registry.strange_prefixes():
                    say(no_worker_hint(client))
                    is_told = True
            except BrokerUnavailable:
                if record is None:
                    raise
                tell("redis", "Redis does not answer; waiting for it")
                time.sleep(AWAY_POLL_SECONDS)
            time.sleep(0 if record.state.is_terminal else POLL_SECONDS)
    return record


def no_worker_hint(client: Client) -> str:
    """What to say and do when no worker is there."""
    if not (others := client.registry.strange_prefixes()):
        return "no worker is running; start one with: worker run"
    ours = client.settings.key_prefix
    return (
        f"no worker has DG_KEY_PREFIX={ours}, but one with {' or '.join(others)} takes messages of this queue; "
        "give producers and workers the same"
    )


def describe(record: JobRecord, client: Client) -> tuple[str, str]:
    """What a job waits for: a short name of it, and words for people."""
    if record.state.is_terminal:
        return record.state, record.state
    if (progress := record.progress) is not None:
        steps = f" {progress.step} of {progress.total_steps}" if progress.total_steps else ""
        return progress.stage, progress.stage + steps
    if record.state is JobState.RUNNING:
        return "running", f"running on {record.worker}"
    workers = client.registry.workers()
    if not workers:
        return NO_WORKER, "waiting for a worker"
    if {worker.state for worker in workers} == {WorkerState.LOADING}:
        return "loading", "loading the model"
    before = client.ledger.position(record.job.id)
    return "queued", f"waiting; {before:,} before it" if before else "waiting for a worker that is free"


@contextmanager
def _display(as_json: bool) -> Iterator[Tell]:
    console = people_console()
    if as_json:
        yield _JsonLines().tell
    elif not console.is_terminal:
        yield _Lines().tell
    else:
        with console.status("starting") as status:
            yield lambda kind, words: status.update(words)


class _Lines:
    """A line when the kind changes, and every `LINE_SECONDS` when only the words do."""

    def __init__(self) -> None:
        self._kind = self._words = ""
        self._said_at = 0.0

    def tell(self, kind: str, words: str) -> None:
        is_due = words != self._words and time.monotonic() - self._said_at >= LINE_SECONDS
        if kind != self._kind or is_due:
            say(words)
            self._kind, self._words, self._said_at = kind, words, time.monotonic()


class _JsonLines:
    """An object when the words change."""

    def __init__(self) -> None:
        self._words = ""

    def tell(self, kind: str, words: str) -> None:
        if words != self._words:
            put_json(event="progress", stage=kind, words=words)
            self._words = words

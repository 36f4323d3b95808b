"""`worker top`: the queue and every worker at a glance, read from Redis."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, field

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.table import Table
from rich.text import Text

from jobs.errors import BrokerError
from jobs.ledger import JobRecord, Ledger
from jobs.registry import WorkerInfo, WorkerRegistry, WorkerState

STYLES = {
    WorkerState.READY: "green",
    WorkerState.BUSY: "green",
    WorkerState.STUCK: "red",
    WorkerState.BROKEN: "red",
}
COLUMNS = ("worker", "state", "device", "memory", "job", "stage", "step", "s/step", "last error")


@dataclass
class Pace:
    """Seconds per step of the running jobs, from the steps seen between two looks."""

    _seen: dict[str, tuple[int, float]] = field(default_factory=dict)
    _pace: dict[str, float] = field(default_factory=dict)

    def of(self, job_id: str, step: int, now: float) -> float | None:
        """Note the step that a job has reached; None until it has been seen to move."""
        before, at = self._seen.get(job_id, (step, now))
        if step > before:
            self._pace[job_id] = (now - at) / (step - before)
        if step != before or job_id not in self._seen:
            self._seen[job_id] = (step, now)
        return self._pace.get(job_id)

    def forget_all_but(self, job_ids: Sequence[str]) -> None:
        for job_id in set(self._seen) - set(job_ids):
            self._seen.pop(job_id)
            self._pace.pop(job_id, None)


class Top:
    """Reads queue and workers and draws them; `look` is one look."""

    def __init__(self, ledger: Ledger, registry: WorkerRegistry) -> None:
        self._ledger = ledger
        self._registry = registry
        self._pace = Pace()

    def look(self) -> Group:
        """Draw how things stand.

        Raises:
            BrokerError: Redis does not answer.
        """
        counts, ages, workers = self._ledger.queue_counts(), self._ledger.queue_ages(), self._registry.workers()
        job_ids = [job_id for worker in workers for job_id in worker.jobs]
        found = self._ledger.get_many(job_ids)
        records = {record.job.id: record for record in found if record is not None}
        self._pace.forget_all_but(job_ids)
        oldest = f", the oldest for {_ago(ages.oldest_queued_seconds)}" if counts["queued"] else ""
        words = [
            f"{counts['queued']:,} queued{oldest}",
            f"{counts['delayed']:,} delayed",
            f"{counts['running']:,} running",
            f"{counts['callbacks']:,} callbacks pending",
        ]
        if ages.callback_overdue_seconds > 1:
            words.append(f"one overdue by {_ago(ages.callback_overdue_seconds)}")
        parts: list[RenderableType] = [Text("; ".join(words)), self._table(workers, records)]
        if not workers:
            parts.append(Text("no worker has reported within 15 s", style="yellow"))
        return Group(*parts)

    def _table(self, workers: Sequence[WorkerInfo], records: dict[str, JobRecord]) -> Table:
        table = Table(box=None, pad_edge=False, header_style="bold")
        for name in COLUMNS:
            table.add_column(name, overflow="fold", justify="right" if name in ("memory", "step", "s/step") else "left")
        for worker in workers:
            jobs = [(job_id, records.get(job_id)) for job_id in worker.jobs] or [("", None)]
            for number, (job_id, record) in enumerate(jobs):
                about = self._about(worker) if number == 0 else ("", Text(), "", "")
                table.add_row(*about, job_id, *self._progress(job_id, record), worker.last_error if number == 0 else "")
        return table

    def _about(self, worker: WorkerInfo) -> tuple[str, Text, str, str]:
        memory = f"{worker.memory_bytes / 2**30:.1f} GiB" if worker.memory_bytes else ""
        return worker.name, Text(worker.state, style=STYLES.get(worker.state, "yellow")), worker.device, memory

    def _progress(self, job_id: str, record: JobRecord | None) -> tuple[str, str, str]:
        progress = record.progress if record is not None else None
        if progress is None:
            return "", "", ""
        pace = self._pace.of(job_id, progress.step, time.monotonic())
        step = f"{progress.step}/{progress.total_steps}" if progress.total_steps else ""
        return progress.stage, step, f"{pace:.2f}" if pace is not None else ""


def show_once(top: Top, console: Console) -> None:
    """Print one look."""
    console.print(top.look())


def show(top: Top, console: Console, seconds: float) -> None:
    """Look again and again, until Ctrl-C; each look is one small redraw."""
    with Live(console=console, auto_refresh=False, screen=console.is_terminal) as live:
        while True:
            try:
                live.update(top.look(), refresh=True)
            except BrokerError as error:
                live.update(Text(str(error), style="red"), refresh=True)
            time.sleep(seconds)


def _ago(seconds: float) -> str:
    if seconds < 120:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"

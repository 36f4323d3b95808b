"""What happened to one job, from everyone's words: the faults, the workers' logs, the ledger."""

from __future__ import annotations

import json
from collections.abc import Collection, Iterable, Iterator
from datetime import datetime, timedelta

from tests.chaos.bench import Bench
from tests.servers.worker import WorkerProcess

JOBS_SHOWN = 3
AROUND = timedelta(seconds=10)


def moment(at: datetime) -> str:
    """A time as Python's logs write it, so that lines of all kinds sort together."""
    return at.strftime("%Y-%m-%d %H:%M:%S,") + f"{at.microsecond // 1000:03d}"


class Timeline:
    """Collects lines that begin with their moment."""

    def __init__(self, bench: Bench) -> None:
        self._bench = bench
        self._notes: list[str] = []
        self._logs: list[str] = []

    def note(self, what: str) -> None:
        self._notes.append(f"{moment(datetime.now())} -- {what}")

    def keep_log(self, worker: WorkerProcess) -> None:
        """Keep the log of a process that has ended: its successor writes over it."""
        self._logs += _lines_of(worker)

    def concerned(self, broken: Iterable[str], job_ids: Collection[str]) -> list[str]:
        """The first few jobs that lines of broken promises begin with."""
        named = dict.fromkeys(line.partition(":")[0] for line in broken)
        return [job_id for job_id in named if job_id in job_ids][:JOBS_SHOWN]

    def of(self, job_id: str) -> str:
        """The life of a job with the faults around it."""
        record = self._bench.ledger.get_many([job_id])[0]
        said = [line for line in self._all_logs() if f"job={job_id} " in f"{line} "]
        first, last = (said[0][:23], max(said)[:23]) if said else ("", "9")
        if record is not None and record.created_at is not None:
            first = moment(record.created_at.astimezone() - AROUND)
            last = max(last, moment((record.finished_at or record.created_at).astimezone() + AROUND))
        around = [line for line in self._notes if first <= line[:23] <= last]
        history = [] if record is None else [str(attempt) for attempt in record.history]
        known = json.dumps(self._raw(job_id), indent=2)
        return "\n".join([f"== {job_id}", *sorted([*said, *around]), *history, known])

    def _raw(self, job_id: str) -> dict[str, str]:
        with self._bench.redis.client() as redis:
            return dict(redis.hgetall(self._bench.ledger.key("job", job_id)))

    def _all_logs(self) -> Iterator[str]:
        yield from self._logs
        for worker in self._bench.workers.values():
            yield from _lines_of(worker)


def _lines_of(worker: WorkerProcess) -> list[str]:
    lines = (line for line in worker.log.splitlines() if line[:2] == "20")
    return [f"{line[:23]} {worker.name} |{line[23:]}" for line in lines]

"""Messages of jobs that the ledger does not know are told with a remedy, and not one by one."""

from __future__ import annotations

from worker.events import Event, Events, JobsUnknown
from worker.unknown_jobs import PAUSE_SECONDS, UnknownJobs


def test_many_messages_of_unknown_jobs_are_one_line_a_minute() -> None:
    heard: list[Event] = []
    now = [0.0]
    unknown = UnknownJobs("dg:", Events(heard.append), lambda: now[0])

    for number in range(100):
        unknown.note(f"job-{number}")
    now[0] += PAUSE_SECONDS
    unknown.note("last")

    told = [(event.messages, event.job_id, event.key_prefix) for event in heard if isinstance(event, JobsUnknown)]
    assert told == [(1, "job-0", "dg:"), (100, "last", "dg:")]
    assert all("DG_KEY_PREFIX" in event.remedy for event in heard if isinstance(event, JobsUnknown))

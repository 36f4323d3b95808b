"""The record of every job in Redis: its life, its callbacks, and the repair of what was lost."""

from jobs.ledger.ledger import Ledger
from jobs.ledger.life import Claim, JobLife, Lease, Refusal, Requeued, Spent, Submission
from jobs.ledger.outbox import DueCallback, Outbox, OutboxEntry, Verdict
from jobs.ledger.reading import JobReading, QueueAges
from jobs.ledger.record import Attempt, CallbackState, JobRecord, Progress, parse_event
from jobs.ledger.repairs import Expired, Repairs
from jobs.ledger.scripts import MICROSECONDS, PIPELINE_LENGTH, redis_key

__all__ = [
    "MICROSECONDS",
    "PIPELINE_LENGTH",
    "Attempt",
    "CallbackState",
    "Claim",
    "DueCallback",
    "Expired",
    "JobLife",
    "JobReading",
    "JobRecord",
    "Lease",
    "Ledger",
    "Outbox",
    "OutboxEntry",
    "Progress",
    "QueueAges",
    "Refusal",
    "Repairs",
    "Requeued",
    "Spent",
    "Submission",
    "Verdict",
    "parse_event",
    "redis_key",
]
